"""Connections come into the gate's table from here: those that open before our eyes, and those that are found open.

A client's SYN is remembered, the SYN-ACK of our TCP is held, and `Open` asks the backup, again and again, until the
replica is ready or the deadline has passed. A connection that nobody saw open is either adopted, unprotected, or left
over from an earlier role of this host, and reset (core/leftovers.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nfq_failover.constants import ACK, FIN, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import (
    BEFORE_BACKUP,
    NOBODY_GOES_ON,
    NOT_READY,
    SYN_UNSEEN,
    Gate,
    GatedConnection,
)
from nfq_failover.core.gate.pace import Pacing
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.ports import Ports, has, union
from nfq_failover.core.settings import Settings
from nfq_failover.core.tcp.syn import hold_to_mss, strip
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Open, Opened
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import MASK, le
from nfq_failover.wire.tcp_options import NEGOTIABLE, SIGNED, SynOptions, each_option

MAX_SYNS: Final = 8192
MAX_DIALLED: Final = 8192
POLL_MAX_S: Final = 0.05
OPEN_RETRY_FIRST_S: Final = 0.005
FULL_LOG_EVERY_S: Final = 1.0
HURRIED_S: Final = 0.05  # how long a SYN-ACK waits for the replica while no replica goes on
NO_ROOM: Final = "there was no room in the table when it was opened"
UNSEEN: Final = "opened while no daemon was there"
OLDER_THAN_PORT: Final = "opened before its port was added"
DIALLED: Final = "opened by the server: no replica can open it"


class Opening:
    """Opens connections, and remembers what comes before they are in the table.

    `flows`, `numbers` and `timers` are the gate's. `unprotect(connection, reason, now)` lets a connection go
    unprotected without telling the backup; `let_go(connection, reason, now)` makes it wait for its replica no longer,
    as `pace` has it. `adopts_unknown`: connections may be there that clients know by our TCP's own numbers, though
    nobody saw them open: from before the daemon's start. That is not so on a host that has been a
    backup or has stepped down: what its TCP has from then is a replica's, or of a service period that another host has
    taken over, and is kept from the clients.
    """

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        flows: dict[FlowKey, GatedConnection],
        numbers: dict[int, GatedConnection],
        timers: TimerQueue[int],
        unprotect: Callable[[GatedConnection, str, float], object],
        adopts_unknown: bool,
        *,
        let_go: Callable[[GatedConnection, str, float], None],
        pace: Pacing,
    ) -> None:
        self.out = out
        self.adopts_unknown = adopts_unknown
        self._last_words: int | None = None
        self._settings = settings
        self._joined: Ports = ()
        self._flows = flows
        self._numbers = numbers
        self._timers = timers
        self._unprotect = unprotect
        self._let_go = let_go
        self._pace = pace
        self._probed: frozenset[FlowKey] = frozenset()
        self._syns: OrderedDict[tuple[FlowKey, int], tuple[int, bytes, bool]] = OrderedDict()  # by flow and ISN
        self._dialled: OrderedDict[FlowKey, str] = OrderedDict()  # left alone, and why
        self._without: frozenset[int] = frozenset()
        self._mss: int | None = None
        self._next_conn = 1
        self._next_full_log = 0.0

    def knows(self, flow: FlowKey) -> bool:
        """Whether the connection is left alone without being an unknown one."""
        return flow in self._dialled

    @property
    def has_room(self) -> bool:
        """Whether another connection fits into the table."""
        return len(self._flows) < self._settings.max_connections

    # ------------------------------------------------------------------------------------ handshakes

    def fit_backup(self, without: frozenset[int], mss: int | None) -> None:
        """Grant clients no option of the kinds in `without`, and tell them no greater MSS (None: any): the backup's TCP
        could not go on with that."""
        self._without, self._mss = without, mss

    def inbound_syn(self, event: PacketQueued, seg: Segment, protecting: bool) -> None:
        """Take out of a client's SYN what a takeover couldn't continue, and remember the rest for `Open`."""
        flow: FlowKey = (seg.src, seg.sport, seg.dst, seg.dport)
        signed = SynOptions.parse(seg.options()).signed
        granted = NEGOTIABLE - self._without if protecting else NEGOTIABLE
        changed = strip(seg, granted | SIGNED)
        self._syns[flow, seg.seq] = (seg.wnd, seg.options(), signed)
        self._syns.move_to_end((flow, seg.seq))
        if len(self._syns) > MAX_SYNS:
            self._syns.popitem(last=False)
            self.out.counters["syn-forgotten"] += 1
        if changed:
            self.out.counters["syn-stripped"] += 1
        self.out.accept(event.queue, event.packet_id, seg.buf if changed else None)

    def repeats(self, event: PacketQueued, seg: Segment, have: GatedConnection) -> bool:
        """Whether a SYN-ACK is one more of the connection that `have` is; it is judged then."""
        if (have.open.irs, have.open.iss) != ((seg.ack - 1) & MASK, seg.seq):
            return False
        changed = bool(have.open.mss) and hold_to_mss(seg, have.open.mss)
        if have.state is Gate.SYN_HELD:
            have.hold_syn_ack(seg.buf)
            self.out.drop(event.queue, event.packet_id, "syn-ack-held")
        else:
            self.out.accept(event.queue, event.packet_id, seg.buf if changed else None)
        return True

    def syn_ack(self, event: PacketQueued, seg: Segment, unprotected: str, now: float) -> GatedConnection:
        """Put a new connection into the table, and ask the backup for a replica of it. `unprotected`: why it can't be
        protected, empty if it may be. Returns the connection."""
        reason, opening = self._describe(seg, unprotected)
        connection = GatedConnection(opening, now, rcv_edge=seg.wnd)
        self._flows[opening.flow] = self._numbers[opening.conn] = connection
        if reason:
            connection.unprotect(reason, self.out)
            self.out.log("warning", "connection unprotected", conn=opening.conn, reason=reason)
            self.out.accept(event.queue, event.packet_id)
            return connection
        if hold_to_mss(seg, opening.mss):
            self.out.counters["mss-lowered"] += 1
        connection.hold_syn_ack(seg.buf)
        self.out.drop(event.queue, event.packet_id, "syn-ack-held")
        self.out.record(opening)
        self._timers.set(opening.conn, now + connection.back_off(OPEN_RETRY_FIRST_S, POLL_MAX_S))
        return connection

    def no_room(self, event: PacketQueued, seg: Segment, now: float) -> None:
        """Leave a new connection alone that can't even be listed as unprotected. It is counted, and logged at times."""
        self.out.counters["connection-not-tracked"] += 1
        if now >= self._next_full_log:
            self._next_full_log = now + FULL_LOG_EVERY_S
            count = self.out.counters["connection-not-tracked"]
            self.out.log("error", "connection table full: new connections are not protected", count=count)
        self._leave_alone(event, seg, NO_ROOM)  # when there is room again it must not be taken for an unknown one

    def _describe(self, seg: Segment, unprotected: str) -> tuple[str, Open]:
        """Why the connection can't be protected (empty: it can), and its opening record."""
        flow: FlowKey = (seg.dst, seg.dport, seg.src, seg.sport)
        irs = (seg.ack - 1) & MASK
        granted = SynOptions.parse(seg.options())
        syn = self._syns.pop((flow, irs), None)
        reason = unprotected
        wnd, options = 0, b""
        if syn is None:
            reason = reason or SYN_UNSEEN
        else:
            wnd, options, signed = syn
            if signed:
                reason = "TCP-MD5 or TCP-AO signs the header"
            elif not reason and any(kind in self._without for kind, *_ in each_option(seg.options())):
                reason = BEFORE_BACKUP  # its SYN came when nothing was to be taken out of it
        return reason, Open(
            conn=self._take_number(),
            flow=flow,
            irs=irs,
            iss=seg.seq,
            tsval=granted.tsval,
            wscale=granted.wscale,
            mss=granted.mss if reason or self._mss is None else min(granted.mss, self._mss),
            sack_permitted=granted.sack_permitted,
            syn_wnd=wnd,
            syn_options=options,
        )

    def _take_number(self) -> int:
        conn = self._next_conn
        self._next_conn = self._next_conn % 0xFFFFFFFF + 1
        return conn

    # ------------------------------------------------------------------------------------ the backup's answer

    def on_opened(self, record: Opened, now: float) -> None:
        """The backup has told whether its replica can continue the connection."""
        connection = self._numbers.get(record.conn)
        if connection is None:
            return
        if not record.ready:
            if connection.state is Gate.SYN_HELD and record.reason:
                self._unprotect(connection, record.reason, now)
            return
        held = connection.state is Gate.SYN_HELD
        if held and self._pace.stands_still:
            connection.accept_edge(record)
            self._let_go(connection, NOBODY_GOES_ON, now)
            return
        connection.opened(record, self.out)
        if connection.gated:
            self._timers.cancel(record.conn)

    def repeat(self, connection: GatedConnection, now: float) -> None:
        """The backup has not answered in time: ask again, until the deadline."""
        deadline_s = self._settings.open_deadline_ms / 1000
        if self._pace.stands_still:
            deadline_s = min(deadline_s, HURRIED_S)
        if now - connection.opened_at > deadline_s:
            self._unprotect(connection, NOT_READY, now)
            self._timers.set(connection.conn, now + POLL_MAX_S)
            return
        wait_s = connection.back_off(OPEN_RETRY_FIRST_S, POLL_MAX_S)
        self.out.record(connection.open)
        self._timers.set(connection.conn, now + wait_s)

    # ------------------------------------------------------------------------------------ nobody saw it open

    def dialled(self, event: PacketQueued, seg: Segment) -> None:
        """The server opens a connection: it is left alone, and listed when it is open."""
        self._leave_alone(event, seg, DIALLED)

    def _leave_alone(self, event: PacketQueued, seg: Segment, why: str) -> None:
        flow: FlowKey = (seg.dst, seg.dport, seg.src, seg.sport)
        self._dialled[flow] = why
        self._dialled.move_to_end(flow)
        if len(self._dialled) > MAX_DIALLED:
            self._dialled.popitem(last=False)
            self.out.counters["dialled-forgotten"] += 1
        self.out.accept(event.queue, event.packet_id)

    def adopt_unknown(self, adopts: bool, after: int | None = None) -> None:
        """Say whether connections that nobody saw open may speak from now on.

        `after`: the number of a packet in the output queue. What came into the queue up to it may be the last words of
        a connection of an earlier role, which the kernel knows no more.
        """
        self.adopts_unknown = adopts
        self._last_words = after if adopts else None
        if not adopts:
            self._joined = ()

    def ports_join(self, more: Ports) -> None:
        """From now on packets from these ports are seen, too, while this host serves: what is open there is its own,
        and known to its clients by our TCP's numbers."""
        self._joined = union(self._joined, more)

    def note_probed(self, flows: frozenset[FlowKey]) -> None:
        """These connections were probed: a reset of theirs is the answer to us, not to the client."""
        self._probed = flows

    def _may_speak(self, event: PacketQueued, port: int) -> bool:
        """Whether a connection that nobody saw open is this host's own."""
        if has(self._joined, port):
            return True
        if self._last_words is not None and not le(event.packet_id, self._last_words):
            self._last_words = None
        return self.adopts_unknown and self._last_words is None

    def unknown(self, event: PacketQueued, seg: Segment, flow: FlowKey, now: float) -> GatedConnection | None:
        """Judge a segment that our TCP sends for a connection that is not in the table. Returns it, if it is now."""
        found = None
        if flow in self._dialled:
            self._dialled.move_to_end(flow)
            if seg.flags & (RST | FIN | ACK) == ACK and self.has_room:
                found = self._adopt(seg, flow, self._dialled.pop(flow), now)
        elif seg.flags & RST and flow in self._probed:
            self.out.drop(event.queue, event.packet_id, "stranger-gone")
            return None
        elif not self._may_speak(event, flow[3]) and not seg.flags & RST and self.has_room:
            self.out.drop(event.queue, event.packet_id, "stranger")
            self.out.reset_unknown(seg)
            return None
        elif seg.flags & (RST | FIN | ACK) == ACK and self.has_room:
            found = self._adopt(seg, flow, OLDER_THAN_PORT if has(self._joined, flow[3]) else UNSEEN, now)
        self.out.accept(event.queue, event.packet_id)
        return found

    def _adopt(self, seg: Segment, flow: FlowKey, reason: str, now: float) -> GatedConnection:
        """Nobody has described it to a backup, nor will: it is listed, as unprotected."""
        opening = Open(
            conn=self._take_number(),
            flow=flow,
            irs=(seg.ack - 1) & MASK,
            iss=(seg.seq - 1) & MASK,
            tsval=None,
            wscale=None,
            mss=0,
            sack_permitted=False,
            syn_wnd=0,
            syn_options=b"",
        )
        connection = GatedConnection(opening, now, Gate.UNPROTECTED, reason)
        connection.own.note_established()
        self._flows[flow] = self._numbers[opening.conn] = connection
        return connection

    def tables(self) -> dict[str, int]:
        """Returns how many entries the tables have."""
        return {"syns": len(self._syns), "dialled": len(self._dialled)}

    def clear(self) -> None:
        """Forget everything."""
        self._syns.clear()
        self._dialled.clear()
