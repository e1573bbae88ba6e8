"""A demonstration's verdict: what must have held, and how a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nfq_failover.lab.demo.download import Download

# What a takeover, a resend and a busy machine may add to the detection time before the demo calls it a failure.
ALLOWANCE_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured. Sizes in bytes, times in milliseconds; None where there was nothing to measure."""

    size: int
    sha256_served: str
    sha256_received: str | None
    curl_exit_code: int
    curl_message: str
    crashed_at_bytes: int | None
    primary_before: str | None
    primary_after: str | None
    detection_ms: int
    heartbeat_ms: int
    connections: int
    resets: int
    unseen_acknowledged: int
    tshark_ack_lost: int
    dropped_by_capture: int
    silence_ms: float | None


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict."""

    ok: bool
    claim: str
    evidence: str


def facts_of(
    download: Download,
    *,
    size: int,
    sha256_served: str,
    primary_before: str | None,
    primary_after: str | None,
    detection_ms: int,
    heartbeat_ms: int,
) -> Facts:
    """The facts of a download, with what it does not know itself."""
    result = download.result
    return Facts(
        size=size,
        sha256_served=sha256_served,
        sha256_received=download.sha256,
        curl_exit_code=download.exit_code,
        curl_message=download.message,
        crashed_at_bytes=download.crashed_at_bytes,
        primary_before=primary_before,
        primary_after=primary_after,
        detection_ms=detection_ms,
        heartbeat_ms=heartbeat_ms,
        connections=result.connections,
        resets=len(result.resets_from_service),
        unseen_acknowledged=len(result.unseen_acknowledged),
        tshark_ack_lost=len(result.ack_lost_segments),
        dropped_by_capture=result.dropped_by_capture or 0,
        silence_ms=download.stall.ms if download.stall else None,
    )


def checks_of_the_connection(facts: Facts) -> list[Check]:
    """What every demonstration claims of its one connection, each with its evidence."""
    equal = facts.sha256_received == facts.sha256_served
    curl = "" if facts.curl_exit_code == 0 else f"; curl failed ({facts.curl_exit_code}): {facts.curl_message}"
    return [
        Check(
            equal and facts.curl_exit_code == 0,
            "the file is intact",
            (f"SHA-256 {facts.sha256_served[:16]}… at both ends" if equal else "the SHA-256 differ") + curl,
        ),
        Check(
            facts.connections == 1 and facts.resets == 0,
            "it was one TCP connection",
            f"connections {facts.connections}, RST from the service {facts.resets}",
        ),
        Check(
            facts.unseen_acknowledged == 0 and facts.dropped_by_capture == 0,
            "nothing was acknowledged that was not sent",
            f"such ACKs {facts.unseen_acknowledged} (tshark's ack_lost_segment {facts.tshark_ack_lost}), packets "
            f"that the capture lost {facts.dropped_by_capture}",
        ),
    ]


def silence_in_words(facts: Facts) -> str:
    """The longest silence, for a sentence."""
    return "that never ended" if facts.silence_ms is None else f"{facts.silence_ms:.0f} ms"


def judge(facts: Facts) -> list[Check]:
    """Every claim of the demonstration in the lab, each with its evidence."""
    crashed = facts.crashed_at_bytes is not None
    moved = None not in (facts.primary_before, facts.primary_after) and facts.primary_before != facts.primary_after
    return [
        Check(
            crashed,
            "the primary lost its power half way",
            f"{facts.primary_before} died when {(facts.crashed_at_bytes or 0) / 1e6:.1f} of {facts.size / 1e6:g} MB "
            "had arrived"
            if crashed
            else "the download was over before the crash, so this run shows nothing; try a lower --rate",
        ),
        *checks_of_the_connection(facts),
        Check(
            facts.silence_ms is not None and facts.silence_ms <= facts.detection_ms + ALLOWANCE_MS,
            "the client hardly noticed",
            f"longest silence {silence_in_words(facts)}; the crash is detected after {facts.detection_ms} ms "
            f"({facts.detection_ms // facts.heartbeat_ms} heartbeats of {facts.heartbeat_ms} ms)",
        ),
        Check(
            moved,
            "the backup is the primary now",
            f"before: {facts.primary_before or 'nobody'}, now: {facts.primary_after or 'nobody'}",
        ),
    ]


def is_good(checks: Sequence[Check]) -> bool:
    """Whether every claim held."""
    return all(check.ok for check in checks)


def end_of_caption(facts: Facts) -> str:
    """What every picture's caption ends with."""
    equal = "equal" if facts.sha256_received == facts.sha256_served else "DIFFERENT"
    return f"Connections {facts.connections}, RST {facts.resets}, SHA-256 {equal}."


def render(checks: Sequence[Check], good: bool, pictures: Sequence[Path], took_s: float) -> str:
    """The verdict as text."""
    lines = ["", "The connection survived its server." if good else "The verdict is BAD.", ""]
    width = max(len(check.claim) for check in checks)
    lines += [f"  {'yes' if check.ok else 'NO ':<3}  {check.claim:<{width}}  {check.evidence}" for check in checks]
    lines += [
        "",
        f"Picture: {', '.join(map(str, pictures)) or 'none, there was no data to draw'}   ({took_s:.0f} s in all)",
    ]
    return "\n".join(lines)
