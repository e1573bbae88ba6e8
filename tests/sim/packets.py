"""A server host's packets: from the network card and from the stack, through the daemon's queues, and on."""

from __future__ import annotations

from itertools import count
from random import Random
from typing import TYPE_CHECKING

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import (
    FrameCopied,
    PacketQueued,
    PacketsWait,
    Profile,
    Queue,
    QueueOverrun,
    Verdict,
)
from nfq_failover.wire.icmp import is_icmp
from nfq_failover.wire.segment import FlowKey, Segment

from .kernel import cut_super_segment

if TYPE_CHECKING:
    from .host import SimHost
    from .promises import Seen

STEP_S = 0.00002  # from the stack to the queue


class Returning(bytearray):
    """A packet of the daemon that comes back to it by the queue, since another rule has taken its mark away. `of`: its
    connection, as it looked on the wire then."""

    of: Seen | None = None


class Packets:
    """The ways of the packets of one host. `waiting`: what has no verdict yet, and whether it has come in; `latest`:
    the last packet's number."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self._returns, self._returns_at = Random(f"{host.world.scenario.seed}/returns {host.name}"), 0.0
        self.restart()

    def restart(self) -> None:
        """The daemon starts, with new queues."""
        self._ids = count(1)
        self.latest = 0
        self._busy_until = 0.0
        self.drop()

    def drop(self) -> None:
        """Nobody reads the queues any more."""
        self.waiting: dict[tuple[Queue, int], bool] = {}

    def read(self, event: PacketQueued) -> None:
        """The daemon reads a packet, and owes a verdict."""
        self.waiting[event.queue, event.packet_id] = event.queue is Queue.IN
        self._packets = {(event.queue, event.packet_id): event.packet}

    def wire_input(self, packet: bytes) -> None:
        """A packet of the client for the service address has come in by the network card."""
        if len(packet) <= self.host.plan.mtu and self.host.hears():
            self.host.later(0.0, self._from_wire, packet)

    def _from_wire(self, packet: bytes) -> None:
        host = self.host
        seg = Segment(bytearray(packet))
        if host.profile is Profile.PRIMARY and host.world.tap == "clone" and not host.unplugged:
            host.world.clone(host, packet)
        flow = (seg.src, seg.sport, seg.dst, seg.dport)
        syn = seg.flags & (SYN | ACK | RST | FIN) == SYN
        if host.copying and host.running and (seg.payload_len or seg.flags & (FIN | RST)):
            host.tell(host.random.random() * 0.004, FrameCopied(bytearray(packet)))
        if host.profile is Profile.BACKUP or flow in host.inherited or syn:
            self._queue(Queue.IN, bytearray(packet), False, flow)
        else:
            host.kernel.input(packet)

    def stack_output(self, packet: bytearray, gso: bool) -> None:
        """The host's TCP sends something."""
        self.host.later(STEP_S, self._from_stack, packet, gso)

    def _from_stack(self, packet: bytearray, gso: bool) -> None:
        seg = Segment(packet)
        self._queue(Queue.OUT, packet, gso, (seg.dst, seg.dport, seg.src, seg.sport))

    def _queue(self, queue: Queue, packet: bytearray, gso: bool, flow: FlowKey) -> None:
        host = self.host
        if host.running:
            self.latest = next(self._ids)
            event = PacketQueued(queue, self.latest, packet, checksum_pending=gso, gso=gso)
            if host.plan.packets_per_s and host.profile is Profile.BACKUP and not host.world.healed:
                self._queue_slowly(event)
            elif self._busy_until + STEP_S > host.clock.now:  # what waits comes first
                self._busy_until += 1e-7
                wait_s = self._busy_until + STEP_S - host.clock.now
                host.later(wait_s, self._read_slowly, host.run, event, host.ticks.now)
            else:
                host.feed(event)
        elif host.profile is Profile.ALONE and flow not in host.inherited:  # bypass; else nobody reads the queue
            if queue is Queue.IN:
                host.kernel.input(packet)
            else:
                self._to_wire(packet)

    @property
    def busy(self) -> bool:
        """Whether packets wait for the daemon."""
        return self._busy_until > self.host.clock.now

    @property
    def waits_s(self) -> float:
        """How long a packet that comes now has to wait for the daemon."""
        return max(self._busy_until - self.host.clock.now, 0.0)

    def _queue_slowly(self, event: PacketQueued) -> None:
        """The daemon has time for so many packets; as many may wait, and what comes beyond is lost."""
        host = self.host
        self._busy_until = max(self._busy_until, host.clock.now)
        waits = self._busy_until - host.clock.now
        if waits * host.plan.packets_per_s >= host.plan.queue_packets:
            host.tell(0.0, QueueOverrun(event.queue, 1))
            return
        self._busy_until += 1 / host.plan.packets_per_s
        host.later(self.waits_s, self._read_slowly, host.run, event, host.ticks.now)

    def _read_slowly(self, run: int, event: PacketQueued, came: float) -> None:
        """The daemon reads a packet that came at `came`: all that came before it, in either queue, has been read."""
        host = self.host
        if run != host.run:
            return
        host.feed(event)
        for queue in Queue:
            host.feed(PacketsWait(queue, came if self.busy else None))

    def _to_wire(self, packet: bytearray) -> None:
        host = self.host
        if host.unplugged:
            return
        pieces = cut_super_segment(packet, host.plan.mtu) if len(packet) > host.plan.mtu else [packet]
        for piece in pieces:
            host.world.outward(host, bytes(piece), piece if isinstance(piece, Returning) else None)

    def inject(self, packet: bytearray) -> None:
        """A packet of the daemon goes out; unless another rule takes its mark away, past the queue."""
        host = self.host
        assert len(packet) <= host.plan.mtu, f"{host.name} builds a packet that does not fit: {len(packet)} bytes"
        if not host.plan.marks_lost or is_icmp(packet):  # our rules queue TCP alone
            self._to_wire(packet)
        elif not host.unplugged:
            host.world.checks.emitted(host, bytes(packet))
            # Until the daemon's process has the processor to send it, our TCP says more, and that comes first.
            self._returns_at = max(self._returns_at, host.clock.now + self._returns.choice((0.0, 0.0, 0.002, 0.05)))
            back = Returning(packet)
            back.of = host.world.checks.seen(packet)
            host.later(self._returns_at + STEP_S - host.clock.now, self._come_back, back, host.run)

    def _come_back(self, packet: bytearray, run: int) -> None:
        """A packet of the daemon is in the queue, unless the daemon has ended before."""
        if run == self.host.run:
            self._from_stack(packet, False)

    def verdict(self, verdict: Verdict) -> None:
        """The daemon says what becomes of a packet."""
        key = (verdict.queue, verdict.packet_id)
        if key not in self.waiting:
            raise AssertionError(f"a second verdict: {verdict}")
        inward = self.waiting.pop(key)
        if not verdict.accept:
            return
        packet = bytearray(verdict.packet) if verdict.packet is not None else self._packets[key]
        if inward:
            self.host.later(0.0, self.host.kernel.input, bytes(packet))
        else:
            self._to_wire(packet)
