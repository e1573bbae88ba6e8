"""Connections that the primary serves without a replica here. What is known of them is what their clients have to be
told at a takeover, namely that they are over: a client that only listens would never find out."""

from __future__ import annotations

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.resets import places
from nfq_failover.wire.records import Open, Served
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import add, diff

UNHEARD_BYTES = (4_095, 16_383, 65_534)  # how far a client may be that our tap has not heard, within a likely window


class Stray:
    """One of them. `told` is what the primary has said of it at last; what the tap has brought since is newer."""

    __slots__ = ("_ack", "_edge", "_seq", "_served", "_stamps", "flow", "told")

    def __init__(self, told: Served, served: bool = True) -> None:
        """`served`: the primary has said so; else its client may still be waiting for the SYN-ACK."""
        self.flow = told.flow
        self.told = told
        self._served = served
        self._ack: int | None = None  # what the client has acknowledged, for all that the tap has brought
        self._edge = 0
        self._seq = told.ack
        self._stamps: tuple[int, int] | None = None

    def note(self, told: Served) -> None:
        """The primary has told where both ends are."""
        self.told = told
        if diff(told.ack, self._seq) > 0:
            self._seq = told.ack

    def heard(self, seg: Segment) -> None:
        """The client has sent a segment."""
        if seg.flags & (ACK | RST | SYN) != ACK:
            return
        if self._ack is None or diff(seg.ack, self._ack) >= 0:
            self._ack = seg.ack
            self._edge = add(seg.ack, seg.wnd << self.told.wscale)
            self._stamps = (seg.tsecr, seg.tsval) if seg.ts_off else None
        stop = add(seg.seq, seg.seg_len)
        if diff(stop, self._seq) > 0:
            self._seq = stop

    def reset_places(self) -> list[int]:
        """The sequence numbers that its client may expect next, the most probable one first."""
        if self._ack is None:
            return [self.told.seq, *(add(self.told.seq, ahead) for ahead in UNHEARD_BYTES)]
        return places(self._ack, self.told.seq, self._edge)

    def reset_ack(self) -> int:
        """The client's next sequence number, as far as this host knows."""
        return self._seq

    @property
    def perhaps_opening(self) -> bool:
        """Whether its client may be in SYN-SENT."""
        return not self._served

    def stamps(self) -> tuple[int, int] | None:
        """TSval and TSecr of a segment to the client, as new as is known; None without timestamps."""
        return self._stamps


def unanswered(opening: Open) -> Stray:
    """A connection whose replica has not answered: its client may have its SYN-ACK all the same, if the primary has
    ceased to wait, and has died before it could say so."""
    return Stray(Served(opening.conn, opening.flow, add(opening.iss, 1), add(opening.irs, 1), 0), served=False)


class Strays:
    """All of them, by flow."""

    def __init__(self, out: Outbox, settings: Settings) -> None:
        """At most `settings.max_connections` are kept."""
        self.out = out
        self._settings = settings
        self._numbers: dict[int, FlowKey] = {}
        self.flows: dict[FlowKey, Stray] = {}

    def on_served(self, record: Served) -> None:
        """The primary tells of one, or where it is now."""
        stray = self.flows.get(record.flow)
        if stray is not None and stray.told.conn == record.conn:
            stray.note(record)
            return
        if stray is not None:
            del self._numbers[stray.told.conn]
        elif len(self.flows) >= self._settings.max_connections:
            self.out.counters["stray-not-kept"] += 1
            return
        self.flows[record.flow] = Stray(record)
        self._numbers[record.conn] = record.flow

    def heard(self, flow: FlowKey, seg: Segment) -> None:
        """The tap has brought a client's segment of no connection that has a replica."""
        stray = self.flows.get(flow)
        if stray is not None:
            stray.heard(seg)

    def forget(self, conn: int) -> None:
        """The primary has it no more, or it has a replica now."""
        flow = self._numbers.pop(conn, None)
        if flow is not None:
            del self.flows[flow]

    def take(self) -> list[Stray]:
        """This host serves: returns all, which are forgotten."""
        found = list(self.flows.values())
        self.clear()
        return found

    def clear(self) -> None:
        """Forget all."""
        self.flows.clear()
        self._numbers.clear()
