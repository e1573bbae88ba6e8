"""What a client's capture says about each connection, from the raw numbers: what must never be is a sentence."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socket import inet_aton

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.lab.topology import TWO_HOSTS
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff
from nfq_failover.wire.tcp_options import SynOptions

_SERVICE = inet_aton(TWO_HOSTS.service)
_FILE_HEADER, _RECORD, _ETHERNET = 24, struct.Struct("<IIII"), 14


@dataclass(slots=True)
class Captured:
    """A segment with its time (Unix, seconds). `seq`, `ack` and `edge` are unwrapped: they pass 2^32 and go on.

    `edge` is the right window edge, None where there is none (SYN, RST, no ACK).
    """

    time: float
    from_service: bool
    raw: Segment
    seq: int = 0
    ack: int = 0
    edge: int | None = None

    @property
    def end(self) -> int:
        """The first sequence number after it."""
        length: int = self.raw.seg_len
        return self.seq + length


@dataclass(slots=True)
class Stream:
    """One connection: the segments since a client's SYN with a number of its own."""

    client_port: int
    segments: list[Captured] = field(default_factory=list)
    _near: dict[bool, int] = field(default_factory=dict)  # by sender: an unwrapped number close to the next
    _offered: dict[bool, int | None] = field(default_factory=dict)

    def add(self, captured: Captured) -> None:
        """The next segment, in the order of the capture."""
        raw, sender = captured.raw, captured.from_service
        captured.seq = self._unwrap(sender, raw.seq)
        if raw.flags & SYN:
            self._offered[sender] = SynOptions.parse(raw.options()).wscale
        if raw.flags & ACK:
            captured.ack = self._unwrap(not sender, raw.ack)
            if not raw.flags & (SYN | RST):
                captured.edge = captured.ack + (raw.wnd << self.scale(sender))
        self.segments.append(captured)

    def scale(self, sender: bool) -> int:
        """The sender's window shift, 0 unless both sides have offered one (RFC 7323 section 2.2)."""
        offered = [self._offered.get(side) for side in (sender, not sender)]
        return 0 if None in offered else offered[0] or 0

    def _unwrap(self, sender: bool, number: int) -> int:
        near = self._near.setdefault(sender, (1 << 32) + number)
        found = near + diff(number, near & MASK)
        self._near[sender] = max(near, found)
        return found

    def sent(self, from_service: bool) -> list[Captured]:
        """What one side has sent."""
        return [one for one in self.segments if one.from_service is from_service]

    def syn_acks(self) -> list[Segment]:
        """The SYN-ACKs as they came."""
        return [one.raw for one in self.sent(True) if one.raw.flags & SYN]

    def syns(self) -> list[Segment]:
        """The client's SYNs."""
        return [one.raw for one in self.sent(False) if one.raw.flags & SYN]

    def resets(self, from_service: bool) -> list[Captured]:
        """The side's RSTs that break the connection.

        When all is over a client answers a repeated ACK of its FIN by RST, having no connection any more (RFC 9293
        section 3.10.7.1); that breaks nothing.
        """
        found, fin_acked, fin_seen = [], False, False
        fin = next((one.end for one in self.sent(False) if one.raw.flags & FIN), None)
        for one in self.segments:
            if one.from_service:
                fin_seen = fin_seen or bool(one.raw.flags & FIN)
                fin_acked = fin_acked or (fin is not None and one.ack >= fin)
            if one.raw.flags & RST and one.from_service is from_service and (from_service or not fin_acked & fin_seen):
                found.append(one)
        return found

    # ------------------------------------------------------------------------------------ what must never be

    def problems(self, *, in_order: bool) -> Iterator[str]:
        """In words. `in_order`: the path neither reorders nor repeats, so that every segment can be compared with the
        one before it."""
        if len({raw.seq for raw in self.syn_acks()}) > 1:
            yield "SYN-ACKs with different initial sequence numbers"
        if len({_granted(raw) for raw in self.syn_acks()}) > 1:
            yield "SYN-ACKs that grant different options"
        yield from self._numbers_out_of_bounds()
        if in_order:
            yield from self._numbers_that_fall()

    def _judged(self) -> Iterator[Captured]:
        """All segments but the questions to a client whose connection is reset: empty ones, from before its window, of
        which it takes nothing but that it is to say where it is (RFC 9293 section 3.10.7.4, first)."""
        reset, has = False, 0
        for one in self.segments:
            if one.from_service:
                question = reset and one.raw.is_pure_ack and one.end < has
                reset = reset or bool(one.raw.flags & RST)
                if question:
                    continue
            else:
                has = max(has, one.ack)
            yield one

    def _numbers_out_of_bounds(self) -> Iterator[str]:
        sent = {True: 0, False: 0}  # the end of what each side has sent
        edge = {True: 0, False: 0}  # the right edge that each side has granted to the other
        timestamps = None
        for one in self._judged():
            me, other = one.from_service, not one.from_service
            if me and one.raw.flags & (ACK | RST) == ACK and one.ack > sent[other]:
                yield f"{one.raw} acknowledges {one.ack - sent[other]} bytes that were never sent"
            if me and not one.raw.flags & (SYN | RST) and one.raw.payload_len and one.end > edge[other]:
                yield f"{one.raw} goes {one.end - edge[other]} bytes beyond the client's window"
            if me and not one.raw.flags & RST:
                timestamps = bool(one.raw.ts_off) if timestamps is None else timestamps
                if bool(one.raw.ts_off) is not timestamps:
                    yield f"{one.raw} has other options than the segments before"
            sent[me] = max(sent[me], one.end)
            if one.edge is not None:
                edge[me] = max(edge[me], one.edge)
            elif one.raw.flags & SYN and one.raw.flags & ACK:
                edge[me] = one.ack + one.raw.wnd

    def _numbers_that_fall(self) -> Iterator[str]:
        edge, tsval, ack = 0, None, 0
        unit, taken_back = 1 << self.scale(True), False
        for one in self._judged():
            if not one.from_service or one.raw.flags & RST:
                continue
            if one.raw.ts_off:
                if tsval is not None and diff(one.raw.tsval, tsval) < 0:
                    yield f"{one.raw} has a TSval {diff(tsval, one.raw.tsval)} below the one before"
                tsval = one.raw.tsval
            if one.ack < ack:
                yield f"{one.raw} acknowledges {ack - one.ack} bytes less than the one before"
            ack = max(ack, one.ack)
            if one.edge is not None:
                back = edge - one.edge
                if back >= unit and back <= max(unit, ROUNDING_BYTES) and not taken_back:
                    edge, taken_back = one.edge, True  # once, by the survivor, which can't know what rounding had added
                elif back >= unit:  # less is rounding (RFC 7323 section 2.4)
                    yield f"{one.raw} takes {back} bytes of the window back"
                edge = max(edge, one.edge)


def _granted(raw: Segment) -> tuple[int, int | None, bool, bool]:
    options = SynOptions.parse(raw.options())
    return options.mss, options.wscale, options.sack_permitted, options.tsval is None


def read_streams(path: Path) -> list[Stream]:
    """The connections that clients opened to the service, in the order of their SYNs."""
    streams: dict[int, Stream] = {}
    opened: list[Stream] = []
    for time, raw in _segments(path):
        from_service = raw.src == _SERVICE
        port = raw.dport if from_service else raw.sport
        if not from_service and raw.flags & (SYN | ACK) == SYN:
            known = streams.get(port)
            if known is None or known.syns()[0].seq != raw.seq:
                streams[port] = Stream(port)
                opened.append(streams[port])
        if port in streams:
            streams[port].add(Captured(time, from_service, raw))
    return opened


def senders(path: Path) -> dict[int, list[str]]:
    """By client port: the hardware addresses that its segments of the service came from, one for each change."""
    turns: dict[int, list[str]] = {}
    for _, frame in _frames(path):
        packet = frame[_ETHERNET:]
        if is_icmp(packet):
            error = IcmpError(packet)
            source, port = error.dst, error.sport
        else:
            raw = Segment(packet)
            source, port = raw.src, raw.dport
        if source == _SERVICE:
            heard, mac = turns.setdefault(port, []), frame[6:12].hex(":")
            if heard[-1:] != [mac]:
                heard.append(mac)
    return turns


def _segments(path: Path) -> Iterator[tuple[float, Segment]]:
    for time, frame in _frames(path):
        if not is_icmp(frame[_ETHERNET:]):
            yield time, Segment(frame[_ETHERNET:])


def _frames(path: Path) -> Iterator[tuple[float, bytearray]]:
    data = path.read_bytes()
    if data[:4] != b"\xd4\xc3\xb2\xa1":
        raise ValueError(f"{path} is not a little-endian pcap file in microseconds")
    at = _FILE_HEADER
    while at < len(data):
        seconds, microseconds, held, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        frame = bytearray(data[at : at + held]) + bytes(length - held)  # only headers matter
        at += held
        yield seconds + microseconds / 1e6, frame
