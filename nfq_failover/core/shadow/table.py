"""The shadow's connections, by flow and by number: their timers, and how a connection ends.

What belongs to one subject is a part of its own, which is given the tables and the functions that it needs: `openings`,
`segments`, `repair`, `holding`, `divergence`, `lengths`, `feeding`, `ends`, `takeover`, `vanished`,
`handovers`, `records`.
"""

from __future__ import annotations

from nfq_failover.core.application import ANEW_REASONS, Begun
from nfq_failover.core.backlog import Backlog
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.checkpoint import CheckpointWriter
from nfq_failover.core.shadow.closing import CLOSED_S
from nfq_failover.core.shadow.connection import LISTENS, Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.ends import ShadowEnds
from nfq_failover.core.shadow.feeding import Feeding
from nfq_failover.core.shadow.handover import ShadowHandovers
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.lengths import Lengths
from nfq_failover.core.shadow.missing import MissingReplicas
from nfq_failover.core.shadow.opening import Openings
from nfq_failover.core.shadow.records import Records
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.shadow.resets import Resets
from nfq_failover.core.shadow.segments import Segments
from nfq_failover.core.shadow.strays import Strays
from nfq_failover.core.shadow.takeover import Takeover
from nfq_failover.core.shadow.vanished import LINGER_S, Vanished
from nfq_failover.core.shadow.wholeness import Wholeness
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Anew, Record, Unprotected
from nfq_failover.wire.segment import FlowKey, Segment


class ShadowTable:
    """All connections that this host shadows or, after a takeover, continues: by flow and by number."""

    def __init__(self, settings: Settings, out: Outbox, checkpoint: CheckpointWriter | None = None) -> None:
        """`checkpoint`: writes down what was taken over, None if nobody will read it."""
        self.settings = settings
        self.out = out
        self.flows: dict[FlowKey, ShadowConnection] = {}
        self.numbers: dict[int, ShadowConnection] = {}
        self.timers: TimerQueue[int] = TimerQueue()
        self.checkpoint = checkpoint
        self.backlog = Backlog()
        self._unconfirmed: dict[int, ShadowConnection] = {}
        flows, numbers, backlog = self.flows, self.numbers, self.backlog
        self.holding = Holding(out, numbers, backlog)
        self.repair = Repair(out, self.timers, self.holding, backlog, settings.tap == "multicast")
        self.wholeness = Wholeness(out, settings.service_state == "shared")
        self.feeding = Feeding(out, numbers, self._fed_enough)
        self.resets = Resets(out)
        self.strays = Strays(out, settings)
        self.missing = MissingReplicas(out, flows)
        self.lengths = Lengths(settings, out, numbers, self.resets, self._part)
        self.divergence = Divergence(settings, out, numbers, self.lengths, self._part)
        self.ends = ShadowEnds(out, numbers, self.divergence, settings)
        self.takeover = Takeover(
            *(settings, out, flows, numbers, self.repair, self.divergence, self.lengths, self.feeding),
            *(self.resets, self.strays, self.wholeness, self.holding),
            die=self._die,
            forget=self.forget,
        )
        self.openings = Openings(
            *(settings, out, flows, numbers, self.timers, self.repair, self.strays, self.missing),
            unconfirmed=self._unconfirmed,
            die=self._die,
            forget=self.forget,
        )
        self.vanished = Vanished(out, flows, numbers, self.timers, die=self._die, forget=self.forget)
        self.handovers = ShadowHandovers(
            *(out, flows, numbers, self.divergence, checkpoint),
            resets=self.resets,
            be_heard=self.takeover.be_heard,
            give_up=self._give_up,
            forget=self.forget,
            release_number=self._release_number,
        )
        self.segments = Segments(
            *(out, self.timers, self.openings, self.repair, self.divergence, self.feeding, self.resets),
            *(self.ends, self.takeover, self.holding),
            unconfirmed=self._unconfirmed,
            suspect=self.vanished.suspect,
            give_up=self._give_up,
            die=self._die,
        )
        self._deadlines = (
            *(self.timers.next, self.ends.poll_timeout, self.divergence.poll_timeout),
            *(self.takeover.backoff.poll_timeout, self.takeover.recovery.poll_timeout),
            *(self.vanished.poll_timeout, self.feeding.poll_timeout),
            *(self.lengths.poll_timeout, self.resets.poll_timeout, self.holding.poll_timeout),
        )
        self.records = Records(
            *(out, numbers, self.timers, self.openings, self.repair, self.holding, self.divergence, self.ends),
            *(self.feeding, self.handovers, self.strays, self.vanished, self.wholeness, self.missing),
            unconfirmed=self._unconfirmed,
            give_up=self._give_up,
            die=self._die,
        )

    def take(self, record: Record, now: float) -> None:
        """Take a record of the primary (see `Records`)."""
        self.records.take(record, now)

    # ------------------------------------------------------------------------------------ how a connection ends

    def _die(self, connection: ShadowConnection, reason: str, now: float) -> None:
        """Give a connection up for a reason of our own: the primary is told until it answers."""
        level = "error" if connection.heard else "warning"  # a client is cut off, or would be if the primary died
        self.out.log(level, "connection lost its replica", conn=connection.conn, reason=reason)
        self.out.mishaps.note("connection lost its replica", reason, connection.flow, now)
        self._give_up(connection, reason)
        if not connection.heard:
            connection.closing.tell()
            self._tell(connection, now)

    def _part(self, connection: ShadowConnection, reason: str, now: float) -> None:
        """The replica's output is of no use any more. It goes on getting the client's input, if that goes on; after a
        takeover it gets what was acknowledged to the client."""
        if connection.state is Shadow.ACTIVE and not connection.handed and connection.inward.lagging:
            self.out.log("error", "connection lost its replica", conn=connection.conn, reason=reason)
            self.out.mishaps.note("connection lost its replica", reason, connection.flow, now)
            self.feeding.begin(connection, reason, now, tell=False)
            self.takeover.cut(connection, now)
            return
        if connection.state is not Shadow.SHADOW or connection.handed or connection.closing.closed_at is not None:
            self._die(connection, reason, now)
            return
        self.out.log("warning", "connection lost its replica", conn=connection.conn, reason=reason, fed=True)
        self.out.mishaps.note("connection lost its replica", reason, connection.flow, now)
        self.feeding.begin(connection, reason, now, tell=True)

    def _fed_enough(self, connection: ShadowConnection, now: float) -> None:
        """A connection is over, and its replica has got what it could be given."""
        lingers = connection.ended and not connection.heard
        if connection.misses_input:
            self.wholeness.lacks(connection.conn, connection.flow, connection.reason)
        if not lingers:
            self._give_up(connection, connection.reason)
        self.timers.set(connection.conn, now + (LINGER_S if lingers else CLOSED_S))

    def _give_up(self, connection: ShadowConnection, reason: str) -> None:
        """Give a connection up. Nobody is at the other end of our TCP any more, so it is reset, now and whenever it
        still sends something."""
        self.feeding.forget(connection.conn)
        # What comes after the point where both servers have reset the connection, neither of them reads.
        both = connection.output.rst_out is not None and connection.end.primary_ended_at is not None
        if connection.state is not Shadow.DEAD and connection.misses_input and not connection.over and not both:
            self.wholeness.lacks(connection.conn, connection.flow, reason)
        connection.give_up(reason)
        if connection.closing.closed_at is None:
            self.timers.cancel(connection.conn)
        if connection.map is not None:
            connection.reset_own(self.out)

    def _tell(self, connection: ShadowConnection, now: float) -> None:
        """Tell the primary, or ask it: if it knows of no such connection, its answer is `Close`."""
        if connection.heard:
            connection.closing.told()
            return
        self.out.record(Unprotected(connection.conn, connection.reason))
        wait_s = connection.closing.tell_again()
        if wait_s:
            self.timers.set(connection.conn, now + wait_s)

    def application_begun(self, begun: Begun, life: int, inodes: frozenset[int], watched: bool, now: float) -> None:
        """Our application has begun to listen (see `Wholeness.begun`). What was opened since it was last seen to be
        another one is answered from another state than the server's."""
        if not self.wholeness.begun(life, inodes, bool(begun.anew), watched, now):
            return
        for connection in list(self.flows.values()):
            if connection.opened_at >= begun.at and connection.state in (Shadow.SHADOW, Shadow.OPENING):
                self._part(connection, ANEW_REASONS[Anew.REPLICA], now)

    def invalidate(self, reason: str) -> None:
        """The primary may have acknowledged what we lack: none of the connections can be continued."""
        for connection in self.flows.values():
            if connection.state in LISTENS:  # what they lack is of before the next backup's time
                connection.give_up(reason)
                self._give_up(connection, reason)

    def forget(self, connection: ShadowConnection) -> None:
        """Drop all state of a connection."""
        if self.flows.get(connection.flow) is connection:
            self.takeover.over(connection)
            del self.flows[connection.flow]
            if self.checkpoint is not None:
                self.checkpoint.forget(connection.flow)
        self._release_number(connection)
        self.handovers.forgotten(connection)

    def _release_number(self, connection: ShadowConnection) -> None:
        """Nothing is due any more for a connection's number."""
        conn = connection.conn
        self.numbers.pop(conn, None)
        self.openings.over(conn)
        self.missing.over(conn)
        self.timers.cancel(conn)
        self.takeover.recovery.forget(connection)
        self._unconfirmed.pop(conn, None)
        self.divergence.forget(conn)
        self.feeding.forget(conn)
        self.holding.forget(conn)

    def clear(self, reason: str, keep_handed: bool = False) -> None:
        """Forget everything (but for what was handed over to us); our TCP is told to do the same."""
        for connection in list(self.flows.values()):
            if keep_handed and connection.handed and connection.heard:
                continue
            if connection.map is not None and connection.state in LISTENS:
                connection.reset_own(self.out)
            self.forget(connection)
        self.repair.tap.clear()
        self.feeding.clear()
        self.holding.clear()
        self.strays.clear()
        self.missing.clear()
        self.resets.clear()
        self.ends.clear()
        self.vanished.clear()
        self.divergence.clear()
        self.openings.clear()
        self.out.log("info", "shadow connections dropped", reason=reason)

    def flows_gone(self, flows: list[FlowKey], now: float) -> None:
        """Judge connections that our TCP no longer has."""
        self.vanished.flows_gone(flows, now)

    # ------------------------------------------------------------------------------------ this host serves

    def take_over(self, now: float) -> tuple[int, int]:
        """Every connection is ours now. Returns how many go on, and how many are reset."""
        self.handovers.adopt()
        self._unconfirmed.clear()
        self.missing.clear()
        self.repair.tap.clear()
        return self.takeover.take_over(now)

    def serve(self, now: float) -> None:
        """This host serves, and takes nothing over: what it has is its own."""
        self.handovers.adopt()
        self.takeover.cut_dead(now)

    def gives_way(self, connection: ShadowConnection, syn: Segment) -> bool:
        """Whether a client's SYN is for a new connection from the same port, which is this host's own; then nothing is
        left to be told of one that could not be continued."""
        if connection.taken_over or not connection.heard or connection.handed or syn.seq == connection.open.irs:
            return connection.taken_over
        if connection.restored:  # our TCP may still have it, and would answer the SYN in its way
            if connection.map is not None:
                connection.resync.ask(connection.map, connection.inward, self.out)  # it shows itself, and is reset
            return False
        if connection.state is Shadow.FED:
            if self.feeding.drains(connection):
                return False  # what our application has still to read comes first: the client repeats its SYN
            connection.reset_own(self.out)
        self.forget(connection)
        return True

    def restore(self, connections: list[ShadowConnection], now: float) -> None:
        """Go on, after a restart of the daemon, with what was taken over in its earlier life (ACTIVE, or DEAD: to be
        cut)."""
        for connection in connections:
            self.flows[connection.flow] = connection
            if connection.handed:
                self.handovers.keep(connection, now)
            self.numbers[connection.conn] = connection
            dead = connection.state is Shadow.DEAD and not connection.ended
            if connection.resync.pending or dead:
                self._ask_where(connection, now)  # one that is dead shows itself, and is reset
            if dead and connection.heard:
                self.resets.tell(connection, now)

    def _ask_where(self, connection: ShadowConnection, now: float) -> None:
        """Ask our TCP where it is; again and again, until it answers, or is reset and has forgotten it."""
        if connection.map is None:
            return
        wait_s = connection.resync.ask(connection.map, connection.inward, self.out)
        self.timers.set(connection.conn, now + wait_s)

    # ------------------------------------------------------------------------------------ timers

    def flush(self) -> None:
        """Confirm what has come in since the last flush."""
        if not self._unconfirmed:
            return
        for connection in self._unconfirmed.values():
            if connection.state in LISTENS:
                self.out.record(connection.inward.confirm(connection.conn))
        self._unconfirmed.clear()

    def on_timer(self, now: float) -> None:
        """Repeat what was not answered."""
        for conn in self.timers.pop_due(now):
            connection = self.numbers.get(conn)
            if connection is not None:
                self._due(connection, now)
        self.repair.tap.on_timer(now)
        self.ends.on_timer(now)
        self.divergence.on_timer(now)
        self.lengths.on_timer(now)
        self.resets.on_timer(now)
        self.feeding.on_timer(now)
        self.holding.on_timer(now)
        self.takeover.backoff.on_timer(now)
        self.takeover.recovery.on_timer(now)
        if self.flows:
            self.vanished.on_timer(now)

    def _due(self, connection: ShadowConnection, now: float) -> None:
        """The connection's timer has run out."""
        closed_at = connection.closing.closed_at
        if closed_at is not None and now - closed_at >= CLOSED_S and not self.feeding.drains(connection):
            self.forget(connection)
        elif connection.state is Shadow.OPENING:
            self.openings.repeat(connection, now)
        elif connection.state is Shadow.DEAD and connection.restored and connection.closing.gone_at is None:
            self._ask_where(connection, now)
        elif connection.state is Shadow.DEAD:
            self._tell(connection, now)
        elif connection.resync.pending:
            self._ask_where(connection, now)
        else:
            inward = connection.inward
            if connection.state in LISTENS and inward.rcv_edge > inward.confirmed_edge:
                self._unconfirmed[connection.conn] = connection
            self.repair.repeat(connection, now)

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        earliest: float | None = None
        for deadline in self._deadlines:
            due = deadline()
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        return earliest
