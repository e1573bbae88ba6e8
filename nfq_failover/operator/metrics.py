"""The status as Prometheus text (exposition format 0.0.4): `nfq-failover metrics`, and the page's `/metrics`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.operator.daemon import add_command, ask_daemon
from nfq_failover.operator.status import is_protected

PREFIX: Final = "nfq_failover_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ROLES: Final = ("joining", "backup", "primary", "leaving")
_WEIGHTS: Final = ("warning", "degraded", "unprotected")
_EPILOG: Final = """\
examples:
  nfq-failover metrics                                                    to standard output
  nfq-failover metrics --file /var/lib/node_exporter/nfq-failover.prom    for node_exporter's textfile collector

Without a daemon there is one series, nfq_failover_up 0, and exit code 1. `nfq-failover web` serves the same by HTTP.
"""
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name without the prefix, its type, what it says, and its samples."""

    name: str
    kind: str  # gauge | counter
    help: str
    samples: list[tuple[Labels, float]] = field(default_factory=list)


def add_parser(subparsers: Any) -> None:
    """Add the command `metrics`."""
    parser = add_command(subparsers, "metrics", "the status as Prometheus metrics", run, _EPILOG)
    parser.add_argument("--file", type=Path, help="replace this file at once, instead of writing to standard output")


def run(args: argparse.Namespace) -> int:
    """Write the metrics. Returns the exit code: 1 if there is no daemon."""
    code = 0
    try:
        text = render(metrics(ask_daemon(args, "status"), time.time()))
    except CommandError:
        text, code = render(without_daemon()), 1
    if args.file is None:
        print(text, end="")
    else:
        _replace(args.file, text)
    return code


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole, or not at all: somebody may be reading it."""
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "w") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CommandError(f"can't write {path}: {error.strerror}") from None


# ------------------------------------------------------------------------------------ what there is


def without_daemon() -> list[Metric]:
    """What can be said where no daemon answers."""
    return [_one("up", "gauge", "Whether the daemon answers.", 0)]


def metrics(status: dict[str, Any], now: float) -> list[Metric]:
    """All metrics of a status. `now`: seconds since 1970, for what is given as a time."""
    return [
        *_host(status, now),
        *_connections(status),
        *_concerns(status),
        *_peer(status),
        *_takeover(status, now),
        *_stores(status),
    ]


def _one(name: str, kind: str, text: str, value: float | bool) -> Metric:
    return Metric(name, kind, text, [((), float(value))])


def _each(name: str, kind: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    return Metric(name, kind, text, [(((label, key),), float(value)) for key, value in values])


def _host(status: dict[str, Any], now: float) -> Iterator[Metric]:
    versions = status["versions"]
    labels = {"name": status["name"], "version": versions["own"], "peer_version": versions["peer"]}
    yield _one("up", "gauge", "Whether the daemon answers.", 1)
    yield Metric(
        "info", "gauge", "Constant 1: the host's name, and the versions of both.", [(tuple(labels.items()), 1)]
    )
    roles = ((role, role == status["role"]) for role in _ROLES)
    yield _each("role", "gauge", "1 for the part that this host has.", "role", roles)
    yield _one(
        *("protected", "gauge", "1 if a takeover now would keep what is called protected, as far as this host knows."),
        is_protected(status),
    )
    state = ((status["state"], 1.0),)
    yield _each("state", "gauge", "Constant 1: the state that the status shows.", "state", state)
    yield _one("epoch", "gauge", "The epoch: it grows with each change of the host that serves.", status["epoch"])
    happenings = status["happenings"]
    since = now - happenings[0]["ago_s"] if happenings else now
    yield _one("state_since_timestamp_seconds", "gauge", "Since when role, state and epoch are as they are.", since)
    application = status["application"]
    yield _one("application_checked", "gauge", "Whether [health] checks the application.", application["checked"])
    yield _one("application_well", "gauge", "0 if the application's health checks fail.", application["well"])


def _connections(status: dict[str, Any]) -> Iterator[Metric]:
    rows, pace = status["connections"], status["pace"]
    protected = sum(bool(row["protected"]) for row in rows)
    numbers = (("true", protected), ("false", len(rows) - protected))
    yield _each("connections", "gauge", "Living connections that this host knows.", "protected", numbers)
    lag = max((row["lag_bytes"] for row in rows), default=0)
    yield _one("lag_bytes", "gauge", "Of a client's bytes, the most that the backup has not confirmed.", lag)
    behind = max((row.get("lag_out_bytes", 0) for row in rows), default=0)
    yield _one("replica_behind_bytes", "gauge", "Of a server's bytes, the most that its replica has not sent.", behind)
    yield _one("replica_late_seconds", "gauge", "How late the latest replica is.", pace["worst_ms"] / 1000)
    yield _one("slowed_connections", "gauge", "Connections whose clients wait for the replica.", pace["slowed"])
    yield _one(
        "let_go_connections", "gauge", "Connections that are unprotected until the replica is there.", pace["let_go"]
    )
    fetched = pace["fetched_percent"] / 100
    yield _one("tap_fetched_ratio", "gauge", "Of the clients' bytes, what the tap did not bring lately.", fetched)
    differences = sum(row["differences"] for row in rows)
    yield _one("differences", "gauge", "Places where the outputs of living connections have differed.", differences)


def _concerns(status: dict[str, Any]) -> Iterator[Metric]:
    concerns = status["concerns"]
    numbers = ((weight, sum(each["weight"] == weight for each in concerns)) for weight in _WEIGHTS)
    yield _each("concerns", "gauge", "What is wrong with either host, by its weight.", "weight", numbers)
    samples = [
        ((("code", each["code"]), ("weight", each["weight"]), ("host", each["host"] or status["name"])), 1.0)
        for each in concerns
    ]
    yield Metric("concern", "gauge", "Constant 1: each thing that is wrong.", list(dict(samples).items()))
    mishaps = ((each["what"], each["count"]) for each in _summed(status["mishaps"]))
    yield _each(
        "mishaps", "gauge", "What went wrong lately with connections, as far as it is remembered.", "what", mishaps
    )


def _summed(mishaps: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mishaps of one kind together, whatever their reasons."""
    counts: dict[str, int] = {}
    for each in mishaps:
        counts[each["what"]] = counts.get(each["what"], 0) + each["count"]
    return ({"what": what, "count": count} for what, count in counts.items())


def _peer(status: dict[str, Any]) -> Iterator[Metric]:
    peer, heartbeat = status["peer"], status["peer"]["heartbeat"]
    yield _one(
        "peer_lost", "gauge", "1 if no living heartbeat of the peer has come for the detection time.", peer["lost"]
    )
    yield _one("peer_session", "gauge", "Whether there is an authenticated session with the peer.", peer["session"])
    yield _one("heartbeats_received_total", "counter", "Heartbeats of the peer that were heard.", heartbeat["received"])
    yield _one("heartbeats_missed_total", "counter", "Heartbeats of the peer that did not come.", heartbeat["missed"])
    gap = heartbeat["largest_gap_ms"] / 1000
    yield _one("heartbeat_largest_gap_seconds", "gauge", "The longest time between two of them.", gap)
    detection = heartbeat["detection_ms"] / 1000
    yield _one("detection_seconds", "gauge", "After how long a silence the peer counts as lost.", detection)


def _takeover(status: dict[str, Any], now: float) -> Iterator[Metric]:
    took = status["takeover"]
    if took is None:
        return
    yield _one(
        "takeover_timestamp_seconds", "gauge", "When this host took over for the last time.", now - took["ago_s"]
    )
    yield _one("takeover_connections", "gauge", "Connections that went on at that takeover.", took["connections"])
    yield _one("takeover_reset_connections", "gauge", "Connections that were reset at that takeover.", took["reset"])
    _, after_ms = took["phases"][-1]
    if after_ms is not None:
        text = "From the last heartbeat of the peer to that takeover."
        yield _one("takeover_silence_seconds", "gauge", text, after_ms / 1000)


def _stores(status: dict[str, Any]) -> Iterator[Metric]:
    bounds, shell = status["bounds"], status["shell"]
    used = ((name, row["now"]) for name, row in bounds.items())
    yield _each("store_entries", "gauge", "How full each store is; docs/operate/limits.md.", "store", used)
    limits = ((name, row["limit"]) for name, row in bounds.items())
    yield _each("store_limit", "gauge", "How much each store takes.", "store", limits)
    events = ((name, count) for name, count in status["counters"].items())
    yield _each("events_total", "counter", "Packets and datagrams by what became of them.", "event", events)
    queues = shell["queues"]
    waiting = ((name, queue["now"]) for name, queue in queues.items())
    yield _each("queue_packets", "gauge", "Packets that wait in a netfilter queue.", "queue", waiting)
    dropped = ((name, queue["dropped"]) for name, queue in queues.items())
    yield _each("queue_dropped_total", "counter", "Packets that a queue had no room for.", "queue", dropped)
    yield _one("injected_packets_total", "counter", "Packets that the daemon has sent to clients.", shell["injected"])
    late = "Packets dropped since the daemon was paused between its decision and the act."
    yield _one("decided_late_packets_total", "counter", late, shell["decided_late"])
    yield _one(
        "internal_errors_total", "counter", "Bugs of ours that the daemon has survived.", shell["internal_errors"]
    )


# ------------------------------------------------------------------------------------ the text


def render(found: Iterable[Metric]) -> str:
    """The text of metrics."""
    lines = []
    for metric in found:
        name = PREFIX + metric.name
        lines.append(f"# HELP {name} {_escape(metric.help)}")
        lines.append(f"# TYPE {name} {metric.kind}")
        for labels, value in metric.samples:
            inside = ",".join(f'{key}="{_escape(text, quoted=True)}"' for key, text in labels)
            lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escape(text: str, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
