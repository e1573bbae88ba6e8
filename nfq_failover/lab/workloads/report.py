"""What a client saw: the silence it sat through, its latencies, its verdict."""

from __future__ import annotations

import builtins
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from nfq_failover.lab.workloads.content import Receipt, count_wrong, first_wrong

PERCENTILES: Final = (50, 90, 99, 100)


class SilenceClock:
    """The longest time between two signs of progress, idle time not counted.

    All times are seconds of one monotonic clock. `ask` is called when the client starts to wait for something,
    `progress` at each sign that the peer lives: bytes read, or bytes of an upload acknowledged.
    """

    def __init__(self, now: float) -> None:
        self.longest = 0.0
        self.longest_from = now
        self.last = now

    def ask(self, now: float) -> None:
        """The client was idle until now; the silence counts from here."""
        self.last = now

    def progress(self, now: float) -> None:
        """The peer was heard."""
        if now - self.last > self.longest:
            self.longest, self.longest_from = now - self.last, self.last
        self.last = now


@dataclass(slots=True)
class ConnectionReport:
    """One connection's result. `bytes` is the payload verified: read, or for uploads counted by the server.

    `connect_ms` is no part of the longest silence, unless the connection never opened. `longest_silence_from` and
    `started` are Unix times, for comparison with a capture. `first_wrong_offset` counts from the start of the
    connection's inbound stream (upload: None, the server counts the wrong bytes only).
    """

    kind: str
    port: int
    ok: bool = False
    bytes: int = 0
    wrong_bytes: int = 0
    first_wrong_offset: int | None = None
    error: str | None = None
    exchanges: int = 0
    sha256: str | None = None
    started: float = 0.0
    duration_s: float = 0.0
    connect_ms: float | None = None
    longest_silence_ms: float = 0.0
    longest_silence_from: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))

    def begin(self, now: float) -> None:
        """The connection is being opened. `now`: monotonic seconds."""
        self.started = _unix_time(now)

    def connected(self, seconds: float) -> None:
        """The connection is open; opening it took this long."""
        self.connect_ms = round(seconds * 1000, 3)

    def read(self, chunk: memoryview, right: builtins.bytes) -> None:
        """The next bytes of the inbound stream have come; `right` is what they must be."""
        if chunk != right:
            self.wrong_bytes += count_wrong(chunk, right)
            if self.first_wrong_offset is None:
                self.first_wrong_offset = self.bytes + (first_wrong(chunk, right) or 0)
        self.bytes += len(chunk)

    def uploaded(self, receipt: Receipt) -> None:
        """The server has counted the bytes of an upload."""
        self.bytes += receipt.received
        self.wrong_bytes += receipt.wrong_bytes

    def add_wrong(self, count: int) -> None:
        """Count bytes that are wrong wherever they stand: of a record, or beyond the end of the stream."""
        self.wrong_bytes += count

    def exchanged(self, seconds: float) -> None:
        """An exchange is over, and took this long."""
        self.latencies_s.append(seconds)
        self.exchanges += 1

    def succeed(self) -> None:
        """The connection did all that it must do."""
        self.ok = True

    def fail(self, reason: str) -> None:
        """The connection did not do what it must do."""
        self.error = reason

    def end(self, seconds: float, silence: SilenceClock, sha256: str | None) -> None:
        """The connection is over. `seconds`: from its beginning; `sha256`: of the payload, None without a digest."""
        self.duration_s = seconds
        self.longest_silence_ms = round(silence.longest * 1000, 3)
        self.longest_silence_from = _unix_time(silence.longest_from)
        self.sha256 = sha256

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; the latencies become percentiles."""
        values = {name: value for name, value in asdict(self).items() if name != "latencies_s"}
        return values | {"latency_ms": latency_percentiles(self.latencies_s)}


def latency_percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """{"p50": ms, "p90": ms, "p99": ms, "max": ms}, nearest rank; {} if there is none."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    names = {100: "max"}
    return {
        names.get(percent, f"p{percent}"): round(1000 * ordered[-(-percent * len(ordered) // 100) - 1], 4)
        for percent in PERCENTILES
    }


def summarize(kind: str, reports: Sequence[ConnectionReport]) -> dict[str, Any]:
    """All connections' reports in one, as JSON values. Of several connections each one's own report is in `each`."""
    failed = [report for report in reports if not report.ok]
    worst = max(reports, key=lambda report: report.longest_silence_ms)
    started = min(report.started for report in reports)
    duration = max(report.started + report.duration_s for report in reports) - started
    payload = sum(report.bytes for report in reports)
    latencies = [latency for report in reports for latency in report.latencies_s]
    summary: dict[str, Any] = {
        "ok": not failed,
        "kind": kind,
        "connections": len(reports),
        "failed_connections": len(failed),
        "bytes": payload,
        "sha256": reports[0].sha256 if len(reports) == 1 else None,
        "wrong_bytes": sum(report.wrong_bytes for report in reports),
        "first_wrong_offset": next((r.first_wrong_offset for r in reports if r.first_wrong_offset is not None), None),
        "error": _error(failed),
        "exchanges": sum(report.exchanges for report in reports),
        "started": started,
        "duration_s": round(duration, 6),
        "mbit_per_s": round(payload * 8 / duration / 1e6, 3) if duration else 0.0,
        "connect_ms": max((r.connect_ms for r in reports if r.connect_ms is not None), default=None),
        "longest_silence_ms": worst.longest_silence_ms,
        "longest_silence_from": worst.longest_silence_from,
        "latency_ms": latency_percentiles(latencies),
    }
    if len(reports) > 1:
        summary["each"] = [report.to_json() for report in reports]
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary in one line for a person."""
    verdict = "all bytes right" if summary["ok"] else f"FAILED: {summary['error']}"
    return (
        f"{summary['kind']}: {verdict}; {summary['connections']} connection(s), {summary['exchanges']} exchange(s), "
        f"{summary['bytes']:,} bytes in {summary['duration_s']:.2f} s ({summary['mbit_per_s']:.1f} Mbit/s); "
        f"longest silence {summary['longest_silence_ms']:.0f} ms; wrong bytes {summary['wrong_bytes']}"
    )


def _unix_time(monotonic: float) -> float:
    """The Unix time at which the monotonic clock showed `monotonic` seconds."""
    return time.time() - (time.monotonic() - monotonic)


def _error(failed: Sequence[ConnectionReport]) -> str | None:
    if not failed:
        return None
    rest = f" (and {len(failed) - 1} more connections failed)" if len(failed) > 1 else ""
    return f"{failed[0].kind}: {failed[0].error}{rest}"
