"""The connections that this host serves, and another protects: one table, by flow and by number.

It routes copies, the backup's records and time to the parts: how connections open (opening.py), what is copied of them
(copies.py), what their server has sent (digests.py), how far their replicas are (pace.py, asking.py), how they end
(ends.py) or move (handover.py); packets take their way through segments.py. It ends the protection of single
connections, and tells the backup (news.py). The backup's records name a connection by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nfq_failover.core.application import ANEW_REASONS, Begun
from nfq_failover.core.events import FrameCopied, QueryFlows
from nfq_failover.core.gate.asking import POLL_FIRST_S, Asking
from nfq_failover.core.gate.connection import AWAITED, BEFORE_BACKUP, BEHIND, GIVEN_UP, Gate, GatedConnection
from nfq_failover.core.gate.copies import Copies
from nfq_failover.core.gate.digests import GateDigests
from nfq_failover.core.gate.ends import GateEnds
from nfq_failover.core.gate.handover import Handovers
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.gate.news import News
from nfq_failover.core.gate.opening import POLL_MAX_S, Opening
from nfq_failover.core.gate.pace import Pacing
from nfq_failover.core.gate.segments import Segments
from nfq_failover.core.gate.served import ServedAlone
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.ports import Ports
from nfq_failover.core.settings import Settings
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import (
    AckAsked,
    Anew,
    Believed,
    BytesAsked,
    Close,
    Closed,
    Confirm,
    DigestSeen,
    End,
    EndKind,
    Fed,
    FedSeen,
    HandedOver,
    Lives,
    Missing,
    Opened,
    PaceTold,
    Record,
    SentAsked,
    SentUpTo,
    Unprotected,
    UnprotectedSeen,
    Whole,
)
from nfq_failover.wire.segment import FlowKey
from nfq_failover.wire.seqnum import MASK

QUERY_EVERY_S: Final = 5.0
QUERY_FEW_S: Final = 1.0
FEW: Final = 256  # connections, about which the kernel is asked in some milliseconds
QUERY_CLOSING_S: Final = 0.2
QUERY_FULL_S: Final = 0.5
LAST_WORDS_S: Final = 0.1
COOKIE_S: Final = 1.0

Handler = Callable[[Any, float], None]


class GateTable:
    """Holds all connections of a host that serves.

    `protecting`: a backup is there, and new connections are opened towards it; `reason`: why that is not so.
    `findings`: what a record has shown of our application. Whoever owns the table takes them out after each record.
    """

    def __init__(self, settings: Settings, out: Outbox, adopts_unknown: bool = True) -> None:
        """`adopts_unknown`: see `Opening`."""
        self.settings = settings
        self.out = out
        self.protecting = False
        self.reason = "no backup"
        self.flows: dict[FlowKey, GatedConnection] = {}
        self.numbers: dict[int, GatedConnection] = {}
        self.timers: TimerQueue[int] = TimerQueue()
        self._next_query = 0.0
        flows, numbers = self.flows, self.numbers
        self.news = News(out, self.timers, lambda: self.protecting)
        self.pace = Pacing(settings, out, self._wait_no_more)
        self.opening = Opening(
            *(settings, out, flows, numbers, self.timers, self._unprotect_quietly, adopts_unknown),
            let_go=self._wait_no_more,
            pace=self.pace,
        )
        self.missed = MissedInput(out, flows, settings.service_state == "shared")
        self.served = ServedAlone(out, flows, lambda: self.protecting)
        self.copies = Copies(out, flows, numbers, self.missed, self._unprotect, self._look_soon)
        self.digests = GateDigests(settings, out, self._part)
        self.ends = GateEnds(
            *(settings, out, numbers, self._part, self._close),
            replicas_hang=self.pace.replicas_hang,
            replica_whole=lambda: not self.missed.reason,
        )
        self.handovers = Handovers(settings, out, flows, numbers, self.digests, self._unprotect, self._give_back)
        self.asking = Asking(out, self.timers, self.opening, self.digests, self.pace, lambda: self.protecting)
        self.segments = Segments(
            *(out, flows, self.timers, self.opening, self.handovers, self.digests, self.ends),
            *(self.pace, self.missed, self.served),
            protecting=lambda: self.protecting,
            why_not=self._why_not,
            close=self._close,
            look_soon=self._look_soon,
            make_room=self._make_room,
        )
        self.findings = self.ends.findings
        self.takes: dict[type[Record], Handler] = {
            Opened: self.opening.on_opened,
            Confirm: self._on_confirm,
            Missing: self.copies.on_missing,
            AckAsked: self._on_ack_asked,
            SentAsked: self._on_sent_asked,
            DigestSeen: self._on_seen,
            PaceTold: self._on_pace,
            BytesAsked: self.digests.on_asked,
            End: self._on_end,
            HandedOver: self.handovers.on_handed,
            Unprotected: self._on_unprotected,
            UnprotectedSeen: self.news.on_told,
            Fed: self._on_fed,
            FedSeen: self.news.on_told,
            Closed: self.news.on_told,
            Believed: self.missed.on_believed,
            Lives: self.missed.on_lives,
            Whole: self.missed.on_whole,
        }

    def ports_join(self, more: Ports, now: float) -> None:
        """This host begins to see what is sent from these ports."""
        self.opening.ports_join(more)
        self.missed.ports_join(now)

    def knows(self, flow: FlowKey) -> bool:
        """Whether the connection was opened before our eyes."""
        return flow in self.flows or self.opening.knows(flow) or flow in self.handovers.flows

    # ------------------------------------------------------------------------------------ what is seen

    def _why_not(self) -> str:
        """Why a new connection can't be protected; empty if it can."""
        return self.missed.reason if self.protecting else self.reason

    def copied(self, event: FrameCopied, now: float) -> None:
        """Look at the copy of an inbound segment that our TCP may take."""
        self.copies.copied(event, self.protecting, now)

    def flows_gone(self, flows: list[FlowKey], now: float) -> None:
        """Our TCP no longer has these connections."""
        for flow in flows:
            connection = self.flows.get(flow)
            if connection is None or connection.state is Gate.SYN_HELD:
                continue
            if not connection.own.established and now - connection.opened_at <= COOKIE_S:
                self._look_soon(now)  # a TCP that answers SYNs with cookies has nothing of it before its client answers
                continue
            last_words = connection.gone_for(now) < LAST_WORDS_S  # they may still wait in the queue
            lacks = connection.lacks_still(now) and self.opening.has_room
            if last_words or lacks or self.ends.holds(connection) or connection.lingers(now):
                self._look_soon(now)
            else:
                self._close(connection, "closed", now)

    def flows_ended(self, flows: list[FlowKey]) -> None:
        """Our TCP keeps these connections only for the client's sake."""
        for flow in flows:
            if (connection := self.flows.get(flow)) is not None and connection.own.fin_sent:
                connection.note_ended()

    def _look_soon(self, now: float) -> None:
        """Our TCP may soon have forgotten a connection."""
        self._next_query = min(self._next_query, now + QUERY_CLOSING_S)

    def _make_room(self, now: float) -> None:
        """The table is full: perhaps our TCP has forgotten a connection."""
        self._next_query = min(self._next_query, now + QUERY_FULL_S)

    # ------------------------------------------------------------------------------------ the backup's records

    def take(self, record: Record, now: float) -> None:
        """Take a record of the backup. One that is not for this end is let go: it is an old one, and what matters is
        repeated."""
        handler = self.takes.get(type(record))
        if handler is not None:
            self.pace.note_heard()
            handler(record, now)

    def _on_confirm(self, record: Confirm, now: float) -> None:
        connection = self.numbers.get(record.conn)
        if connection is None:
            return
        before, since = connection.acks.confirmed, connection.acks.held_since
        connection.confirm(record, self.out, now)
        if since is not None and connection.acks.confirmed > before:
            self.pace.brake.confirmed(connection.acks.confirmed - before, now - since)
        if connection.awaited:
            self.asking.protect_late(connection, now)

    def _on_pace(self, record: PaceTold, now: float) -> None:
        """The backup has told where a replica is."""
        connection = self.numbers.get(record.conn)
        if connection is None:
            return
        self.pace.on_told(connection, record, now)
        connection.release_data(self.out)
        if connection.awaited:
            self.asking.protect_late(connection, now)

    def _on_seen(self, record: DigestSeen, now: float) -> None:
        """The replica has sent what was compared."""
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.distance.sent(record.compared):
            self.pace.progressed(now)
            connection.release_data(self.out)
        self.digests.on_seen(record, now)
        if connection is not None and connection.awaited:
            self.asking.protect_late(connection, now)

    def _on_end(self, record: End, now: float) -> None:
        """The backup has told where its replica's stream is."""
        connection = self.numbers.get(record.conn)
        if connection is not None:
            fin = record.kind is EndKind.FIN
            if connection.distance.sent((record.seq + fin) & MASK):
                self.pace.progressed(now)
                connection.release_data(self.out)
        self.ends.on_end(record, now)

    def _on_ack_asked(self, record: AckAsked, _: float) -> None:
        """The backup's tap may have lost the client's last word."""
        connection = self.numbers.get(record.conn)
        if connection is None or not connection.own.established:
            return
        if connection.state is Gate.PROTECTED or connection.awaited:
            connection.acks.probe(self.out, record.seq)

    def _on_sent_asked(self, record: SentAsked, _: float) -> None:
        """The client acknowledges more than the backup knows of."""
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.own.established:
            self.out.record(SentUpTo(connection.conn, connection.own.snd_nxt_seq))

    def _on_unprotected(self, record: Unprotected, now: float) -> None:
        """The backup can't continue a connection."""
        connection = self.numbers.get(record.conn)
        if connection is not None:
            self._unprotect_quietly(connection, record.reason, now)
        else:
            self.out.record(Close(record.conn, "over"))  # the backup has missed that
        self.out.record(UnprotectedSeen(record.conn))

    def _on_fed(self, record: Fed, now: float) -> None:
        """The backup can't continue a connection, but its replica goes on getting the client's input."""
        connection = self.numbers.get(record.conn)
        if connection is None:
            self.out.record(Close(record.conn, "over"))  # the backup has missed that
        elif connection.state is Gate.SYN_HELD:
            return  # `Opened` was lost: both are repeated
        elif not self._feed_quietly(connection, record.reason, now) and not connection.fed:
            self.out.record(Unprotected(record.conn, connection.reason))  # we have not kept what it lacks
        self.out.record(FedSeen(record.conn))

    # ------------------------------------------------------------------------------------ protection ends

    def _close(self, connection: GatedConnection, reason: str, now: float) -> None:
        """Forget a connection, and make the backup forget it."""
        known = connection.state in (Gate.PROTECTED, Gate.FED, Gate.SYN_HELD) or connection.awaited
        known = known or connection.shadowed or connection.told_served
        if self.protecting and (connection.awaited or connection.lacks):
            self.missed.begins(connection, now)
        self.missed.closed(connection)
        connection.enter(Gate.CLOSED, reason)
        if self.flows.get(connection.flow) is connection:
            del self.flows[connection.flow]
        self.numbers.pop(connection.conn, None)
        self.digests.forget(connection.conn)
        self.pace.back(connection, now)
        if self.protecting and known:
            self.news.tell(Close(connection.conn, reason), now)

    def _unprotect(self, connection: GatedConnection, reason: str, now: float) -> None:
        """Let a connection go on without a backup, and say so to the backup."""
        if self._unprotect_quietly(connection, reason, now):
            self.news.tell(Unprotected(connection.conn, reason), now)

    def _part(self, connection: GatedConnection, reason: str, now: float) -> None:
        """The replica can't go on with a connection, and is fed on: say so to the backup."""
        if self._feed_quietly(connection, reason, now):
            self.news.tell(Fed(connection.conn, reason), now)
        elif not connection.fed:
            self._unprotect(connection, reason, now)

    def _feed_quietly(self, connection: GatedConnection, reason: str, now: float) -> bool:
        """Let a connection go on whose replica is only fed. False if it already was, or can't be."""
        if not connection.gated and (connection.state is not Gate.UNPROTECTED or not connection.awaited):
            return False
        if connection.awaited:
            self.pace.back(connection, now)
        connection.feed(reason, self.out)
        self._let_go(connection, reason, now)
        self.timers.set_earlier(connection.conn, now + POLL_FIRST_S)
        return True

    def _unprotect_quietly(self, connection: GatedConnection, reason: str, now: float) -> bool:
        """Let a connection go on without a backup, which knows. False if it already did."""
        if connection.state in (Gate.UNPROTECTED, Gate.CLOSED, Gate.HANDED):
            if not connection.awaited:
                return False
            connection.explain(reason)  # it will never be ready: stop asking
            self.digests.forget(connection.conn)
            connection.retained.forget()
            self.pace.back(connection, now)
            self.out.log("warning", "connection unprotected", conn=connection.conn, reason=reason)
            self.out.mishaps.note("connection unprotected", reason, connection.flow, now)
            self.missed.begins(connection, now)
            return True
        begins = connection.state is Gate.SYN_HELD
        connection.unprotect(reason, self.out)
        self._let_go(connection, reason, now)
        if begins:  # else the backup has an entry of it
            self.served.begins(connection, now)
        if not connection.awaited:
            self.missed.begins(connection, now)
        return True

    def _wait_no_more(self, connection: GatedConnection, reason: str, now: float) -> None:
        """Let a client go on without its replica, which goes on as well, and may come back. If that is too much for the
        backup, it is to give the replica up."""
        if reason == BEHIND and self.settings.slow_backup == "drop" and self.pace.goes_on:
            self.out.counters["pace-dropped"] += 1
            self._unprotect(connection, GIVEN_UP, now)
            return
        begins = connection.state is Gate.SYN_HELD
        connection.let_go(reason, self.out, now)
        self._let_go(connection, reason, now)
        if begins:
            self.served.begins(connection, now)
        self.pace.gone(connection, now)
        self.pace.ask(connection, now)
        self._look_soon(now)  # if the client has reset it meanwhile, it says nothing of the replica any more
        self.timers.set(connection.conn, now + POLL_MAX_S)

    def _give_back(self, connection: GatedConnection, reason: str, now: float) -> None:
        """The backup has refused a connection that was handed over: it goes on here, without a backup."""
        connection.give_back(reason, self.out)
        self._let_go(connection, reason, now)
        self.served.begins(connection, now)
        self.missed.begins(connection, now)
        self.news.tell(Unprotected(connection.conn, reason), now)

    def _let_go(self, connection: GatedConnection, reason: str, now: float) -> None:
        connection.note_shadowed()
        self.digests.let_go(connection.conn, connection.awaited)
        if reason not in AWAITED:
            self.pace.back(connection, now)
            if not connection.fed:
                connection.retained.forget()
        more = {"fed": True} if connection.fed else {}
        self.out.log("warning", "connection unprotected", conn=connection.conn, reason=reason, **more)
        self.out.mishaps.note("connection unprotected", reason, connection.flow, now)

    def hand_over(self, connection: GatedConnection, reason: str, now: float) -> None:
        """Give a connection whose server has failed to the backup, which goes on with it."""
        self.pace.back(connection, now)
        self.missed.closed(connection)
        self.handovers.start(connection, reason, now)
        self.ends.questions.stop(connection.conn)

    def application_begun(self, begun: Begun, now: float) -> None:
        """Our application has begun to listen. What was opened since it was last seen to be another one is answered
        from another state than the replica's."""
        if not self.missed.begun(begun, now):
            return
        for connection in list(self.flows.values()):
            if connection.opened_at >= begun.at and (connection.gated or connection.awaited):
                self._part(connection, ANEW_REASONS[Anew.SERVER], now)

    # ------------------------------------------------------------------------------------ protection as a whole

    def start_protecting(self, now: float) -> None:
        """A backup is there: connections opened from now on are protected, those that are open stay unprotected."""
        self.protecting = True
        self.reason = ""
        for connection in self.flows.values():
            if connection.state is Gate.UNPROTECTED:
                connection.forget_backup(BEFORE_BACKUP)
        self.missed.start(now)
        self.served.start(now)

    def stop_protecting(self, reason: str, now: float) -> None:
        """The backup is gone for good: let everything go."""
        self.protecting = False
        self.digests.let_all_go()
        self.missed.stop(now)
        self.served.stop()
        self.reason = reason
        self.news.waiting.clear()
        self.pace.clear(now)
        for connection in list(self.flows.values()):
            if connection.gated or connection.fed or connection.state is Gate.SYN_HELD:
                connection.unprotect(reason, self.out)
            elif connection.awaited:
                connection.explain(reason)  # what its replica has got by now is not kept
            connection.retained.forget()

    def fit_backup(self, without: frozenset[int], mss: int | None, now: float) -> None:
        """The backup's TCP can't go on with these options, or with longer segments. Clients that were told otherwise
        earlier keep to that: their connections are not protected any more, and their replicas are fed."""
        self.opening.fit_backup(without, mss)
        if mss is None:
            return
        for connection in list(self.flows.values()):
            told = connection.open.mss
            if told <= mss:
                continue
            why = f"its client was told an MSS of {told}, and the backup's interface takes {mss}"
            if connection.gated or connection.awaited:
                self._part(connection, why, now)
            elif connection.state is Gate.SYN_HELD:
                self._unprotect(connection, why, now)

    def explain(self, reason: str) -> None:
        """Say why new connections are not protected."""
        self.reason = reason

    # ------------------------------------------------------------------------------------ time

    def on_timer(self, now: float) -> None:
        """Repeat what was not answered."""
        for conn in self.timers.pop_due(now):
            if self.news.tell_again(conn, now):
                continue
            if (connection := self.numbers.get(conn)) is not None:
                self.asking.ask_again(connection, now)
        self.ends.questions.on_timer(now)
        self.digests.on_timer(now)
        self.pace.on_timer(now)
        self.handovers.on_timer(self.protecting, now)
        self.missed.on_timer(now)
        if self.protecting:
            self.served.on_timer(now)
        if self.flows and now >= self._next_query:
            # Unprotected, nothing is copied that would show that a client has ended.
            soon = not self.protecting and len(self.flows) <= FEW
            self._next_query = now + (QUERY_FEW_S if soon else QUERY_EVERY_S)
            self.copies.forget_settled(now)
            self.out.effects.append(QueryFlows(list(self.flows)))

    def poll_timeout(self) -> float | None:
        """Returns the earliest deadline."""
        parts = (self.ends.questions, self.digests, self.handovers, self.pace, self.missed, self.served)
        deadlines = [d for d in (self.timers.next(), *(part.poll_timeout() for part in parts)) if d is not None]
        if self.flows:
            deadlines.append(self._next_query)
        return min(deadlines, default=None)

    # ------------------------------------------------------------------------------------ bounds

    def tables(self) -> dict[str, int]:
        """Returns how many entries the smaller tables have."""
        return {
            **self.opening.tables(),
            "telling": len(self.news.waiting),
            "late_bytes": self.copies.late_bytes,
            "held_data": self.pace.slowing.held_total,
        }

    def clear(self, now: float) -> None:
        """Forget everything: this host does not serve any more."""
        self.protecting = False
        self.missed.stop(now)
        self.missed.later.forget(now)
        self.served.stop()
        self.reason = "no backup"
        self.flows.clear()
        self.numbers.clear()
        self.timers.clear()
        self.news.waiting.clear()
        self.ends.clear()
        self.handovers.clear()
        self.digests.clear()
        self.pace.clear(now)
        self.opening.clear()
