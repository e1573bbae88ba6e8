"""Clients of connections that can't go on are told so, until they can be taken to know it.

A client believes an RST that has exactly the number that it expects next; one elsewhere in its window it answers with
an acknowledgement that says what it expects, and any other it ignores (RFC 5961 section 3.2). What it expects lies
between what it has acknowledged and the right edge of its window, and nobody who is alive knows better: it may have got
more than it had time to acknowledge. So there is one RST for each place where it may be, one of them inside of its
window unless it has filled that; what it answers tells the place, unless an older segment of its has been late. All of
them may be lost: they are repeated, ever more rarely.

And the edge that is known may be an old one: if the tap, or the primary's death, has lost what the client said last,
all of these places may lie before what it expects by now, and it ignores them in silence. So with each repeat goes
something that it answers wherever it is: an acknowledgement before its window (RFC 9293 section 3.10.7.4, first), as a
keep-alive probe is. A client that knows answers that with an RST.
"""

from __future__ import annotations

from typing import Final, Protocol

from nfq_failover.constants import ACK, RST
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import diff

WAITS_S: Final = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""How long each of the repeats comes after the one before; together longer than most outages of a path."""
Stamps = tuple[int, int]


class Told(Protocol):
    """A connection that is over, and whose client is told."""

    @property
    def flow(self) -> FlowKey:
        """Client, client port, server, server port."""

    def reset_places(self) -> list[int]:
        """The sequence numbers that its client may expect next, the most probable one first."""

    def reset_ack(self) -> int:
        """The client's next sequence number, as far as this host knows."""

    @property
    def perhaps_opening(self) -> bool:
        """Whether its client may be in SYN-SENT. There it believes an RST that acknowledges its SYN, and takes no
        notice of one that acknowledges nothing (RFC 9293 section 3.10.7.3). It is not asked anything."""

    def stamps(self) -> Stamps | None:
        """TSval and TSecr of a segment to the client, as new as is known; None without timestamps."""


def places(una: int, sent: int, edge: int) -> list[int]:
    """Where a client may be, as sequence numbers: `una` it has acknowledged, `sent` the server is known to have sent,
    and `edge` is the right edge of its window. The byte before the edge is in the window, whatever has come of it,
    until the client has filled that: then it expects the edge."""
    found = [una]
    for at in (sent, (edge - 1) & 0xFFFFFFFF, edge):
        if diff(at, una) > 0 and at not in found:
            found.append(at)
    return found


class Resets:
    """All clients that are being told, by flow."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self._told: dict[FlowKey, Told] = {}
        self._turn: dict[FlowKey, int] = {}
        self._exact: dict[FlowKey, int] = {}
        self._timers: TimerQueue[FlowKey] = TimerQueue()

    def tell(self, told: Told, now: float) -> None:
        """Tell a client that its connection is over, now and again."""
        self._told[told.flow] = told
        self._turn[told.flow] = 0
        self._exact.pop(told.flow, None)
        self._say(told.flow, now)

    def _say(self, flow: FlowKey, now: float) -> None:
        told = self._told[flow]
        exact = self._exact.get(flow)
        places = told.reset_places()
        if exact is not None:  # or an old segment has said so that was late
            places = [exact, *(at for at in places if diff(at, exact) > 0)]
        for seq in places:
            send_reset(self.out, flow, seq, None if told.perhaps_opening else told.reset_ack())
        turn = self._turn[flow]
        if turn and not told.perhaps_opening:
            self._ask(told, places[0])
        if turn < len(WAITS_S):
            self._turn[flow] = turn + 1
            self._timers.set(flow, now + WAITS_S[turn])
        else:
            self.forget(flow)

    def _ask(self, told: Told, una: int) -> None:
        """Have a client say what it expects. `una`: it expects no less. Kernels differ in whether they look at one with
        old timestamps, or at one without (see `Resync.ask`): it gets both. It does not look at the window of what lies
        before its own; this one takes nothing back."""
        client, port, server, server_port = told.flow
        ends, seq, stamps = ((server, server_port), (client, port)), (una - 1) & 0xFFFFFFFF, told.stamps()
        for each in (None,) if stamps is None else (None, stamps):
            self.out.outward(build_segment(*ends, seq, told.reset_ack(), ACK, 0xFFFF, ack_options(each, [])))
        self.out.counters["reset-asked"] += 1

    def heard(self, told: Told, seg: Segment, now: float) -> None:
        """Its client has sent something, and says where it is: tell it there. Nothing, if that is an RST."""
        if seg.flags & RST:
            self.forget(told.flow)
            return
        if not seg.flags & ACK:
            return
        send_reset(self.out, told.flow, seg.ack, (seg.seq + seg.seg_len) & 0xFFFFFFFF)
        self._told[told.flow] = told
        self._exact[told.flow] = seg.ack
        self._turn[told.flow] = 1
        self._timers.set(told.flow, now + WAITS_S[0])

    def forget(self, flow: FlowKey) -> None:
        """The client knows, or begins a new connection from the same port."""
        if self._told.pop(flow, None) is not None:
            self._turn.pop(flow, None)
            self._exact.pop(flow, None)
            self._timers.cancel(flow)

    def clear(self) -> None:
        """Tell nobody any more."""
        self._told.clear()
        self._turn.clear()
        self._exact.clear()
        self._timers.clear()

    def tells(self, flow: FlowKey) -> bool:
        """Whether the client of a connection is being told."""
        return flow in self._told

    @property
    def size(self) -> int:
        """How many clients are being told."""
        return len(self._told)

    def on_timer(self, now: float) -> None:
        """Tell again."""
        for flow in self._timers.pop_due(now):
            if flow in self._told:
                self._say(flow, now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self._timers.next()


def send_reset(out: Outbox, flow: FlowKey, seq: int, ack: int | None) -> None:
    """Send a client one RST. `ack`: None if it is to acknowledge nothing."""
    client, port, server, server_port = flow
    flags = RST if ack is None else RST | ACK
    out.counters["reset-sent"] += 1
    out.outward(build_segment((server, server_port), (client, port), seq, ack or 0, flags, 0))
