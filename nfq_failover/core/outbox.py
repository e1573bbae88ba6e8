"""Where the parts of a node put what they want done; the node hands it out in order.

A *lane* is the list of the records that wait for the next datagram to one peer. The gate's records go into the lane
towards the host that protects its connections, the shadow's into the lane towards the host that it shadows: each side
has its own view of the one outbox (`towards`). In a pair both lanes are the same one.
"""

from __future__ import annotations

from collections import Counter, deque

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.core.concerns import Concerns
from nfq_failover.core.events import Effect, Inject, Log, Queue, Verdict
from nfq_failover.core.injected import Injected
from nfq_failover.core.mishaps import Mishaps
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.records import Record
from nfq_failover.wire.segment import Segment

Lane = list[Record]


class Outbox:
    """Effects in order, counters, what is of concern, what went wrong, what was sent to clients, and the lane that
    `record` fills."""

    def __init__(self) -> None:
        self.effects: deque[Effect] = deque()
        self.records: Lane = []
        self.counters: Counter[str] = Counter()
        self.concerns = Concerns(self.log)
        self.injected = Injected(self.concerns)
        self.mishaps = Mishaps()
        self._withheld = False

    def towards(self, lane: Lane) -> Outbox:
        """A view of this outbox that puts records into `lane`; everything else is the same."""
        view = Outbox()
        view.effects, view.counters, view.concerns = self.effects, self.counters, self.concerns
        view.injected, view.mishaps = self.injected, self.mishaps
        view.records = lane
        return view

    def withhold(self, withheld: bool) -> None:
        """Drop what this view sends to clients from now on, as a host in doubt must; or send it again."""
        self._withheld = withheld

    def accept(self, queue: Queue, packet_id: int, packet: bytearray | None = None) -> None:
        """Let a queued packet go on, rewritten if `packet` is given."""
        self.effects.append(Verdict(queue, packet_id, True, packet))

    def drop(self, queue: Queue, packet_id: int, why: str) -> None:
        """Drop a queued packet, counted under `why`."""
        self.counters[why] += 1
        self.effects.append(Verdict(queue, packet_id, False))

    def outward(self, packet: bytes | bytearray) -> None:
        """Send a packet to the client, unless such packets are withheld."""
        if self._withheld:
            self.counters["in-doubt"] += 1
            return
        self.injected.note(packet)
        self.effects.append(Inject(packet, inward=False))

    def inward(self, packet: bytes | bytearray) -> None:
        """Deliver a packet to the local TCP."""
        self.effects.append(Inject(packet, inward=True))

    def reset_unknown(self, seg: Segment) -> None:
        """End a connection of our TCP that nobody is at the other end of, at the byte that it expects.

        Left alone it would send for minutes, and answer the client's next SYN from the same port (RFC 9293 section
        3.10.7.4) with an acknowledgement that nobody may hear.
        """
        if seg.flags & (SYN | RST | ACK) == ACK:
            self.counters["stranger-reset"] += 1
            self.inward(build_segment((seg.dst, seg.dport), (seg.src, seg.sport), seg.ack, 0, RST, 0))

    def record(self, record: Record) -> None:
        """Send a record with the next datagram to this view's peer."""
        self.records.append(record)

    def log(self, level: str, event: str, **fields: object) -> None:
        """Write a structured log line."""
        self.effects.append(Log(level, event, fields))
