"""What a client's capture says: silences, resets, acknowledgements of bytes that nobody sent.

tshark dissects the capture, so that the judgement on the packets is not our own; the functions on packets are pure.

    python -m nfq_failover.lab.measure CAPTURE --service 10.77.0.100 [--json]
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.errors import CommandError
from nfq_failover.lab.measure.capture import read_counts
from nfq_failover.lab.topology import TWO_HOSTS

_FIELDS: Final = (
    "frame.number",
    "frame.time_epoch",
    "ip.src",
    "ipv6.src",
    "tcp.stream",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.flags",
    "tcp.seq",
    "tcp.ack",
    "tcp.len",
    "tcp.window_size",
    "tcp.options.timestamp.tsval",
    "tcp.analysis.ack_lost_segment",
    "tcp.analysis.retransmission",
)
_HALF: Final = 1 << 31
_FULL: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured segment. `time` is Unix time in seconds; `seq` and `ack` count from the stream's first (SYN = 0).

    `window` is scaled, in bytes. `retransmission` and `ack_lost_segment` are tshark's opinion.
    """

    number: int
    time: float
    stream: int
    from_service: bool
    client_port: int
    flags: int
    seq: int
    ack: int
    length: int
    window: int = 0
    tsval: int | None = None
    ack_lost_segment: bool = False
    retransmission: bool = False

    @property
    def seq_end(self) -> int:
        """The sequence number after this segment's last byte; SYN and FIN count as one each (RFC 9293, 3.4)."""
        return self.seq + self.length + bool(self.flags & SYN) + bool(self.flags & FIN)


@dataclass(frozen=True, slots=True)
class Gap:
    """A time without something: from one Unix time to another, both in seconds."""

    begin: float
    end: float

    @property
    def ms(self) -> float:
        """Its length in milliseconds."""
        return round((self.end - self.begin) * 1000, 3)


@dataclass(slots=True)
class Measurement:
    """What one capture says. `silence`: no packet from the service; `stall`: the stream did not advance."""

    packets: int = 0
    connections: int = 0
    resets_from_service: list[int] = field(default_factory=list)
    resets_from_client: list[int] = field(default_factory=list)
    ack_lost_segments: list[int] = field(default_factory=list)
    unseen_acknowledged: list[int] = field(default_factory=list)
    timestamps_back: list[int] = field(default_factory=list)
    window_edges_back: list[int] = field(default_factory=list)
    retransmissions: int = 0
    bytes_from_service: int = 0
    bytes_from_client: int = 0
    silence: Gap | None = None
    stall: Gap | None = None
    dropped_by_capture: int | None = None

    def problems(self) -> list[str]:
        """What must not be there, in words; the numbers are tshark's frame numbers. Empty for a good capture.

        tshark's ack_lost_segment is not among them: see `unseen_acknowledged`.
        """
        found = []
        if self.dropped_by_capture:
            found.append(f"the capture lacks {self.dropped_by_capture} packets, so nothing follows from it")
        if self.packets == 0:
            found.append("the capture is empty")
        for text, frames in (
            ("reset from the service", self.resets_from_service),
            ("acknowledgement of a byte that was never seen", self.unseen_acknowledged),
            ("timestamp from the service that goes back", self.timestamps_back),
        ):
            if frames:
                found.append(f"{text}: {len(frames)} times, first in frame {frames[0]}")
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, with `problems` and the lengths of the gaps in ms."""
        values = asdict(self)
        for name, gap in (("silence", self.silence), ("stall", self.stall)):
            values[name] = asdict(gap) | {"ms": gap.ms} if gap else None
        return values | {"problems": self.problems()}


def read_capture(path: Path, service: str) -> list[Packet]:
    """Read the TCP packets of a capture, dissected by tshark. Raises CommandError if tshark can't read it."""
    # Not what an ICMP error quotes, either.
    command = ["tshark", "-n", "-r", str(path), "-Y", "tcp && !icmp", "-T", "fields", "-E", "separator=/t"]
    command += ["-E", "occurrence=f"]
    command += [part for name in _FIELDS for part in ("-e", name)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise CommandError("tshark is not installed. Run script/bootstrap.") from error
    except subprocess.CalledProcessError as error:
        raise CommandError(f"tshark can't read {path}: {error.stderr.strip()}") from error
    return list(parse_fields(result.stdout.splitlines(), service))


def parse_fields(lines: Iterable[str], service: str) -> Iterator[Packet]:
    """Packets from tshark's lines of tab-separated `_FIELDS`."""
    for line in lines:
        number, when, ip4, ip6, stream, sport, dport, flags, seq, ack, length, window, tsval, lost, again = line.split(
            "\t"
        )
        from_service = service in (ip4, ip6)
        yield Packet(
            number=int(number),
            time=float(when),
            stream=int(stream),
            from_service=from_service,
            client_port=int(dport if from_service else sport),
            flags=int(flags, 16),
            seq=int(seq),
            ack=int(ack or 0),
            length=int(length),
            window=int(window),
            tsval=int(tsval) if tsval else None,
            ack_lost_segment=bool(lost),
            retransmission=bool(again),
        )


def measure(packets: Sequence[Packet], dropped_by_capture: int | None = None) -> Measurement:
    """Measure what one pass over a capture tells. `dropped_by_capture`: what `CaptureCounts.missing` said."""
    return Measurement(
        packets=len(packets),
        connections=count_connections(packets),
        resets_from_service=[p.number for p in packets if p.from_service and p.flags & RST],
        resets_from_client=[p.number for p in packets if not p.from_service and p.flags & RST],
        ack_lost_segments=[p.number for p in packets if p.ack_lost_segment],
        unseen_acknowledged=unseen_acknowledged(packets),
        timestamps_back=timestamps_back(packets),
        window_edges_back=window_edges_back(packets),
        retransmissions=sum(p.retransmission for p in packets),
        bytes_from_service=_bytes(packets, from_service=True),
        bytes_from_client=_bytes(packets, from_service=False),
        silence=longest_silence(packets),
        stall=longest_stall(packets),
        dropped_by_capture=dropped_by_capture,
    )


def count_connections(packets: Iterable[Packet]) -> int:
    """How many connections the client opened: its SYNs, those sent again for the same stream counted once."""
    return len({p.stream for p in packets if not p.from_service and p.flags & (SYN | ACK) == SYN})


def longest_silence(packets: Iterable[Packet]) -> Gap | None:
    """The longest time between two packets from the service, up to its last packet that carries data or a FIN."""
    times = [(p.time, p.length > 0 or bool(p.flags & FIN)) for p in packets if p.from_service]
    last = max((index for index, (_, matters) in enumerate(times) if matters), default=len(times) - 1)
    return _longest([when for when, _ in times[: last + 1]])


class Reassembly:
    """Which part of one direction of a stream has been seen without a hole."""

    def __init__(self) -> None:
        self.next: int | None = None  # the first byte that has not been seen; None before the first packet
        self._beyond: list[tuple[int, int]] = []  # seen after a hole: [begin, end), sorted, apart from each other

    def add(self, begin: int, end: int) -> bool:
        """Note the bytes from `begin` to before `end`; True if `next` moved on."""
        if self.next is None:
            self.next = end
            return True
        if end <= self.next:
            return False
        index = bisect.bisect_left(self._beyond, (begin, end))
        while index > 0 and self._beyond[index - 1][1] >= begin:
            index -= 1
            begin, end = self._merge(index, begin, end)
        while index < len(self._beyond) and self._beyond[index][0] <= end:
            begin, end = self._merge(index, begin, end)
        if begin <= self.next:
            self.next = end
            return True
        self._beyond.insert(index, (begin, end))
        return False

    def _merge(self, index: int, begin: int, end: int) -> tuple[int, int]:
        other_begin, other_end = self._beyond.pop(index)
        return min(begin, other_begin), max(end, other_end)


def longest_stall(packets: Iterable[Packet]) -> Gap | None:
    """The longest time in which no stream advanced: no next byte from the service, and none newly acknowledged by it.

    Bytes beyond a hole are no advance: the client's application can't have them yet.
    """
    received: dict[int, Reassembly] = {}
    acked: dict[int, int] = {}
    times = []
    for packet in packets:
        if packet.from_service:
            advanced = received.setdefault(packet.stream, Reassembly()).add(packet.seq, packet.seq_end)
            if advanced or packet.ack > acked.get(packet.stream, -1):
                acked[packet.stream] = max(packet.ack, acked.get(packet.stream, -1))
                times.append(packet.time)
    return _longest(times)


def unseen_acknowledged(packets: Iterable[Packet]) -> list[int]:
    """Frames that acknowledge a byte which the capture has not seen sent: a hole below it counts.

    Like tshark's ack_lost_segment, but stricter, and right where tshark errs: the survivor of a crash cuts its segments
    at other places, and tshark flags a healthy ACK of one that repeats old bytes and brings new ones.
    """
    seen: dict[tuple[int, bool], Reassembly] = {}
    frames = []
    for packet in packets:
        seen.setdefault((packet.stream, packet.from_service), Reassembly()).add(packet.seq, packet.seq_end)
        other = seen.get((packet.stream, not packet.from_service))
        seen_to = None if other is None else other.next
        if packet.flags & (ACK | RST) == ACK and seen_to is not None and packet.ack > seen_to:
            frames.append(packet.number)
    return frames


def timestamps_back(packets: Iterable[Packet]) -> list[int]:
    """Frames from the service whose TSval is lower than one seen before in the stream with a higher or equal SEQ.

    A retransmission carries an older SEQ with a newer TSval, so reordering alone does not count (RFC 7323, section 5).
    """
    newest: dict[int, tuple[int, int]] = {}
    frames = []
    for packet in packets:
        if not packet.from_service or packet.tsval is None or packet.flags & RST:
            continue
        seq, tsval = newest.get(packet.stream, (packet.seq, packet.tsval))
        if packet.seq >= seq and (packet.tsval - tsval) % _FULL >= _HALF:
            frames.append(packet.number)
        elif (packet.tsval - tsval) % _FULL < _HALF and packet.seq >= seq:
            newest[packet.stream] = (packet.seq, packet.tsval)
    return frames


def window_edges_back(packets: Iterable[Packet]) -> list[int]:
    """Frames from the service that take back window granted before: ACK + window falls (RFC 9293, section 3.8.6).

    Only frames that acknowledge at least as much as all before them count; an older one is reordering.
    """
    edges: dict[int, tuple[int, int]] = {}
    frames = []
    for packet in packets:
        if not packet.from_service or packet.flags & (SYN | RST) or not packet.flags & ACK:
            continue
        ack, edge = edges.get(packet.stream, (packet.ack, 0))
        if packet.ack >= ack:
            if packet.ack + packet.window < edge:
                frames.append(packet.number)
            edges[packet.stream] = (packet.ack, max(edge, packet.ack + packet.window))
    return frames


def _bytes(packets: Iterable[Packet], *, from_service: bool) -> int:
    ends: dict[int, int] = {}
    for packet in packets:
        if packet.from_service is from_service and packet.length:
            ends[packet.stream] = max(ends.get(packet.stream, 0), packet.seq + packet.length - 1)
    return sum(ends.values())


def _longest(times: Sequence[float]) -> Gap | None:
    gaps = [Gap(begin, end) for begin, end in itertools.pairwise(times)]
    return max(gaps, key=lambda gap: gap.end - gap.begin, default=None)


def describe(result: Measurement) -> str:
    """The measurement for a person, one line each."""
    lost = "unknown" if result.dropped_by_capture is None else result.dropped_by_capture
    table = {
        "packets": f"{result.packets} (lost by the capture: {lost})",
        "connections": result.connections,
        "bytes": f"{result.bytes_from_service:,} from the service, {result.bytes_from_client:,} from clients",
        "longest silence": f"{result.silence.ms if result.silence else 0:.1f} ms",
        "longest stall": f"{result.stall.ms if result.stall else 0:.1f} ms",
        "resets": f"{len(result.resets_from_service)} from the service, {len(result.resets_from_client)} from clients",
        "unseen, acknowledged": len(result.unseen_acknowledged),
        "ack_lost_segment (tshark)": len(result.ack_lost_segments),
        "retransmissions": result.retransmissions,
        "timestamps going back": len(result.timestamps_back),
        "window edges taken back": len(result.window_edges_back),
    }
    lines = [f"{name:<26} {value}" for name, value in table.items()]
    problems = result.problems()
    return "\n".join(lines + (["PROBLEMS", *(f"  {text}" for text in problems)] if problems else ["no problem found"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a capture; exit code 0 if it shows no problem, 1 if it does, 2 if it can't be read."""
    parser = argparse.ArgumentParser(prog="python -m nfq_failover.lab.measure", description="Judge a client's capture.")
    parser.add_argument("capture", type=Path)
    parser.add_argument("--service", default=TWO_HOSTS.service, help="the service address (default: the lab's)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        counts = read_counts(arguments.capture)
        result = measure(read_capture(arguments.capture, arguments.service), counts.missing if counts else None)
    except CommandError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result.to_json()) if arguments.json else describe(result))
    return 1 if result.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
