"""Whether a task of the campaign of faults kept the contract: from the clients' reports and their capture."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nfq_failover.constants import RST
from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.faults.plan import PORT, Record, Task
from nfq_failover.lab.measure.verdict import Measurement, measure, read_capture
from nfq_failover.lab.topology import Topology

_FILE_HEADER: Final = 24
_RECORD: Final = struct.Struct("<IIII")
# Two packets of different hosts may overtake each other by this much on their way.
_REORDERING_S: Final = 0.010


@dataclass(frozen=True, slots=True)
class Heard:
    """A segment from the service at the client. `time`: Unix time in seconds; `node`: whose hardware address it has."""

    time: float
    node: str
    service_port: int
    client_port: int
    flags: int


def heard(path: Path, topology: Topology) -> Iterator[Heard]:
    """Every segment from the service in a capture by tcpdump. CommandError if the file is of another format."""
    service = socket.inet_aton(topology.service)
    owners = {bytes.fromhex(topology.hardware(host).replace(":", "")): host for host in topology.hosts}
    data = path.read_bytes()
    if data[:4] != b"\xd4\xc3\xb2\xa1":
        raise CommandError(f"{path} is not a little-endian pcap file with microseconds")
    at = _FILE_HEADER
    while at + _RECORD.size <= len(data):
        seconds, microseconds, held, _length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        frame = data[at : at + held]
        at += held
        if frame[12:14] != b"\x08\0" or frame[26:30] != service:
            continue
        tcp = 14 + (frame[14] & 15) * 4
        service_port, client_port = struct.unpack_from("!HH", frame, tcp)
        yield Heard(
            seconds + microseconds / 1e6,
            owners.get(frame[6:12], "a stranger"),
            service_port,
            client_port,
            frame[tcp + 13],
        )


def owners(segments: Sequence[Heard]) -> str:
    """The hosts heard, one letter for each time that one followed another, like "ab"; overtaking is not counted."""
    turns: list[Heard] = []
    last: dict[str, float] = {}
    for one in segments:
        if not turns or turns[-1].node != one.node:
            previous = last.get(one.node)
            overtaken = previous is not None and turns and one.time - turns[-1].time < _REORDERING_S
            if not overtaken:
                turns.append(one)
        last[one.node] = one.time
    return "".join(turn.node for turn in turns)


@dataclass(slots=True)
class Evidence:
    """What a task left to judge. `promised`: reports of clients whose connections must live, with what each may wait
    beyond the detection time; `spent`: reports of those that may end. `primary`: who was it first; `crashed`: the hosts
    that went down as the primary, in order; `faults_at`: Unix times of the faults."""

    topology: Topology
    primary: str
    promised: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    spent: list[dict[str, Any]] = field(default_factory=list)
    faults_at: list[float] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    unprotected: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def promise(self, report: dict[str, Any], allowed_ms: float) -> None:
        """Add the report of a client whose connections must live, and may wait this long beyond the detection time."""
        self.promised.append((report, allowed_ms))

    def struck(self, host: str, at: float) -> None:
        """A fault has struck the primary `host`, at this Unix time."""
        self.faults_at.append(at)
        self.crashed.append(host)

    def found_unprotected(self, reasons: Sequence[str]) -> None:
        """Add connections that were not protected before the fault: one reason for each."""
        self.unprotected.extend(reasons)

    @property
    def due(self) -> list[str]:
        """Who should be heard, in turn: after each crash the other host."""
        turns = [self.primary]
        for _ in self.crashed:
            turns.append(self.topology.other(turns[-1]))
        return turns


def judge(task: Task, record: Record, evidence: Evidence, capture: Path, missing: int) -> Record:
    """Complete a record. `missing`: how many packets the capture lacks."""
    segments = list(heard(capture, evidence.topology))
    result = measure(read_capture(capture, evidence.topology.service), missing)
    reports = [report for report, _ in evidence.promised]
    rows = [*reports, *evidence.spent]
    silences = [float(report["longest_silence_ms"]) for report in reports if "longest_silence_ms" in report]
    resets = [one for one in segments if one.flags & RST and str(one.service_port) == PORT]
    record = replace(
        record,
        crashed="".join(evidence.crashed),
        connections=sum(int(row.get("connections", 0)) for row in rows),
        unprotected=len(evidence.unprotected),
        wrong_bytes=sum(int(row["wrong_bytes"]) for row in rows),
        broken=sum(int(row["failed_connections"]) for row in reports),
        ended=sum(int(row["failed_connections"]) for row in evidence.spent),
        resets=len(resets),
        bytes=sum(int(row["bytes"]) for row in rows),
        silence_ms=round(max(silences), 1) if silences else None,
        connect_ms=max((float(row["connect_ms"]) for row in reports if row.get("connect_ms")), default=None),
    )
    violations = [*evidence.violations, *_violations(task, record, evidence, segments, result)]
    return replace(record, violations=violations, notes=_notes(task, record, evidence, result))


def _violations(
    task: Task, record: Record, evidence: Evidence, segments: Sequence[Heard], result: Measurement
) -> list[str]:
    found = [f"promised connections broke: {report['error']}" for report, _ in evidence.promised if not report["ok"]]
    if record.wrong_bytes:
        found.append(f"{record.wrong_bytes} wrong bytes")
    if record.resets:
        found.append(f"{record.resets} RST from the service at promised connections")
    if result.dropped_by_capture:
        return found  # nothing follows from a capture that lacks packets
    heard_in_turn, due = owners(segments), "".join(evidence.due)
    if heard_in_turn != due and not (task.mix == "ending" and due.startswith(heard_in_turn)):
        found.append(f"heard in turn: {heard_in_turn or 'nobody'} instead of {due}")
    if result.unseen_acknowledged:
        found.append(f"{len(result.unseen_acknowledged)} acknowledgements of bytes that were never seen")
    if result.timestamps_back:
        found.append(f"{len(result.timestamps_back)} timestamps that go back")
    return found


def _notes(task: Task, record: Record, evidence: Evidence, result: Measurement) -> list[str]:
    found = []
    if result.dropped_by_capture:
        found.append(f"the capture lacks {result.dropped_by_capture} packets")
    for report, allowed_ms in evidence.promised:
        silence = float(report.get("longest_silence_ms") or 0)
        if silence > record.detection_ms + max(task.slow_ms, allowed_ms):
            found.append(f"slow: {silence:.0f} ms of silence")
    if (record.connect_ms or 0) > record.detection_ms + 1500:
        found.append(f"slow: {record.connect_ms:.0f} ms to connect")
    if evidence.unprotected:
        found.append(f"{len(evidence.unprotected)} connections unprotected before the fault: {evidence.unprotected[0]}")
    if task.mix != "ending" and not any(_still_ran(report, evidence) for report, _ in evidence.promised):
        found.append("the fault did not come during the transfer")
    return found


def _still_ran(report: dict[str, Any], evidence: Evidence) -> bool:
    ended = float(report.get("started", 0.0)) + float(report.get("duration_s", 0.0))
    return not evidence.faults_at or ended > evidence.faults_at[-1]
