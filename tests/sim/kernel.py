"""A host's TCP: connections and listeners behind one address. Segments to nobody are answered by RST."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from struct import pack_into

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.checksum import ipv4_header_checksum
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import add

from .clock import Clock, HostClock
from .tcp import Address, Personality, Tcp


class Kernel:
    """`output(packet, gso)` takes what the stack sends. `ticks` is the clock of its timestamps. `refused`: SYNs that
    met nobody who listens, by flow and the number that their RST acknowledges."""

    def __init__(
        self,
        clock: Clock,
        who: Personality,
        output: Callable[[bytearray, bool], None],
        random: Random,
        ticks: HostClock,
    ) -> None:
        self.clock, self.who, self.output, self.random, self.ticks = clock, who, output, random, ticks
        self.flows: dict[tuple[Address, Address], Tcp] = {}
        self._latest: dict[tuple[Address, Address], Tcp] = {}  # of each flow, also when it is over
        self.listeners: dict[int, Callable[[Tcp], None]] = {}
        self.refused: set[tuple[FlowKey, int]] = set()
        self.alive = True
        self.drop = 0.0

    def _emit(self, packet: bytearray, gso: bool) -> None:
        if self.alive:
            self.output(packet, gso)

    def connect(self, local: Address, remote: Address) -> Tcp:
        """Returns a new connection."""
        tcp = Tcp(self.clock, self.who, local, remote, self._emit, self.random, self.ticks)
        earlier = self._latest.get((local, remote))
        if earlier is not None:
            tcp.begin_after(earlier)
        self.flows[local, remote] = self._latest[local, remote] = tcp
        return tcp

    def input(self, packet: bytes | bytearray) -> None:
        """The stack gets a packet."""
        if is_icmp(bytearray(packet)):
            self._unreachable(IcmpError(bytearray(packet)))
            return
        try:
            seg = Segment(bytearray(packet))
        except MalformedSegment:
            return
        if not self.alive or not seg.checksum_ok():
            return
        if self.drop and seg.payload_len and self.random.random() < self.drop:
            return
        local, remote = (seg.dst, seg.dport), (seg.src, seg.sport)
        tcp = self.flows.get((local, remote))
        if tcp is not None and (tcp.state == "closed" or (tcp.state == "time-wait" and seg.flags & SYN)):
            del self.flows[local, remote]
            tcp = None
        if tcp is not None and tcp.orphan and tcp.is_news(seg):
            tcp.abandon()  # nobody will ever read it (RFC 1122 section 4.2.2.13)
            del self.flows[local, remote]
            tcp = None
        if tcp is not None:
            tcp.input(seg)
        elif seg.flags & (SYN | ACK | RST) == SYN and (application := self.listeners.get(seg.dport)):
            tcp = self.connect(local, remote)
            application(tcp)
            tcp.accept(seg)
        elif not seg.flags & RST:
            if seg.flags & (SYN | ACK) == SYN:
                self.refused.add(((seg.src, seg.sport, seg.dst, seg.dport), add(seg.seq, 1)))
            seq, ack = (seg.ack, 0) if seg.flags & ACK else (0, add(seg.seq, seg.seg_len))
            self._emit(build_segment(local, remote, seq, ack, RST | (0 if seg.flags & ACK else ACK), 0), False)

    def _unreachable(self, error: IcmpError) -> None:
        tcp = self.flows.get(((error.src, error.sport), (error.dst, error.dport)))
        if self.alive and error.checksum_ok() and tcp is not None:
            tcp.unreachable(error.seq)

    def knows(self, flow: FlowKey) -> bool:
        """Whether there is a socket for (client, client port, server, server port)."""
        tcp = self.flows.get(((flow[2], flow[3]), (flow[0], flow[1])))
        return tcp is not None and tcp.state != "closed"

    def established(self) -> list[FlowKey]:
        """The connections at the service's ports, but for half-open ones and those in TIME_WAIT."""
        unlisted = ("closed", "time-wait", "syn-received", "syn-sent")
        return [(*remote, *local) for (local, remote), tcp in self.flows.items() if tcp.state not in unlisted]

    def die(self) -> None:
        """The host loses power: nothing more comes out of its stack."""
        self.alive = False
        for tcp in self.flows.values():
            tcp.timers.clear()
            tcp.app = None
            tcp.state = "closed"


def cut_super_segment(packet: bytearray, mtu: int) -> list[bytearray]:
    """What the network card makes of a super-segment: sealed segments that fit into the MTU."""
    seg = Segment(packet)
    size = mtu - seg.data_off
    pieces: list[bytearray] = []
    for at in range(0, max(seg.payload_len, 1), size):
        end = min(at + size, seg.payload_len)
        piece = packet[: seg.data_off] + packet[seg.data_off + at : seg.data_off + end]
        last = end == seg.payload_len
        pack_into("!H", piece, 2, len(piece))
        pack_into("!H", piece, 10, 0)
        pack_into("!H", piece, 10, ipv4_header_checksum(piece[: seg.tcp_off]))
        if not last:
            piece[seg.tcp_off + 13] &= ~0x09  # FIN and PSH belong to the last one
        cut = Segment(piece)
        cut.set_seq(add(seg.seq, at))
        cut.seal()
        pieces.append(piece)
    return pieces
