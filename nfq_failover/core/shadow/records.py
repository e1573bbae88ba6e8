"""What the primary says of its connections: each record that is for a shadow, taken.

A record may be late, or repeated, or of a connection that is gone: whatever matters is said again until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.closing import CLOSED_S
from nfq_failover.core.shadow.connection import LISTENS, Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.ends import ShadowEnds
from nfq_failover.core.shadow.feeding import Feeding
from nfq_failover.core.shadow.handover import ShadowHandovers
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.missing import MissingReplicas
from nfq_failover.core.shadow.opening import Openings
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.shadow.strays import Strays
from nfq_failover.core.shadow.vanished import LINGER_S, Vanished
from nfq_failover.core.shadow.wholeness import Wholeness
from nfq_failover.core.tcp.claims import TWO_VERSIONS
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import (
    BegunAnew,
    BytesSent,
    Close,
    Closed,
    Data,
    Digest,
    EndAsked,
    Fed,
    FedSeen,
    HandOver,
    HeardBefore,
    InputMissed,
    Open,
    PaceAsked,
    PaceTold,
    Progress,
    Record,
    SentUpTo,
    Served,
    Unprotected,
    UnprotectedSeen,
    WholeSaid,
)


class Records:
    """Takes the primary's records. It is given the tables and the parts of the shadow that they concern."""

    def __init__(
        self,
        out: Outbox,
        numbers: dict[int, ShadowConnection],
        timers: TimerQueue[int],
        openings: Openings,
        repair: Repair,
        holding: Holding,
        divergence: Divergence,
        ends: ShadowEnds,
        feeding: Feeding,
        handovers: ShadowHandovers,
        strays: Strays,
        vanished: Vanished,
        wholeness: Wholeness,
        missing: MissingReplicas,
        *,
        unconfirmed: dict[int, ShadowConnection],
        give_up: Callable[[ShadowConnection, str], None],
        die: Callable[[ShadowConnection, str, float], None],
    ) -> None:
        """`unconfirmed`: what the next flush confirms; `give_up` gives a connection up that the primary has let go,
        `die` one for a reason of our own, of which the primary is told."""
        self._out = out
        self._numbers = numbers
        self._timers = timers
        self._openings = openings
        self._repair = repair
        self._divergence = divergence
        self._ends = ends
        self._feeding = feeding
        self._strays = strays
        self._missing = missing
        self._vanished = vanished
        self._unconfirmed = unconfirmed
        self._give_up = give_up
        self._die = die
        self.takes: dict[type[Record], Callable[[Any, float], None]] = {
            Progress: self._on_progress,
            Open: openings.on_open,
            Data: self._on_data,
            HeardBefore: holding.on_heard,
            Close: self._on_close,
            Unprotected: self._on_unprotected,
            UnprotectedSeen: self._on_told,
            Fed: self._on_fed,
            FedSeen: self._on_fed_seen,
            EndAsked: self._on_end_asked,
            Digest: divergence.on_digest,
            BytesSent: divergence.on_bytes,
            HandOver: handovers.on_hand_over,
            SentUpTo: self._on_sent,
            PaceAsked: self._on_pace_asked,
            InputMissed: wholeness.on_missed,
            BegunAnew: wholeness.on_anew,
            WholeSaid: wholeness.on_said,
            Served: self._on_served,
        }

    def take(self, record: Record, now: float) -> None:
        """Take a record of the primary. One that is not for a shadow is let go: it is an old one, and what matters is
        repeated."""
        handler = self.takes.get(type(record))
        if handler is not None:
            handler(record, now)

    def _on_progress(self, record: Progress, now: float) -> None:
        """The primary tells how far its TCP is: answer, and see whether our tap has lost the tail."""
        connection = self._numbers.get(record.conn)
        if connection is None or connection.state is Shadow.DEAD:
            self._deny(record.conn, connection, now)
            return
        inward, gap = connection.inward, connection.gap
        gap.primary_is_at(inward.client.offset(record.rcv_nxt))
        if record.established and connection.output.snd_una < 0:
            connection.output.established()
            if connection.map is not None:
                connection.inject_ack(self._out)
        if connection.map is None:
            return
        if gap.primary_rcv_nxt <= inward.held:
            inward.caught_up()  # the primary learns it by our answer, and protects the connection
        self._unconfirmed[connection.conn] = connection
        self._repair.primary_is_at(connection, now)

    def _deny(self, conn: int, connection: ShadowConnection | None, now: float) -> None:
        """The primary speaks of a connection that we have not, or can't continue."""
        if connection is not None:
            self._out.record(Unprotected(conn, connection.reason))
        elif not self._openings.waits(conn, now):
            self._out.record(Unprotected(conn, "unknown to the backup"))

    def _on_pace_asked(self, record: PaceAsked, now: float) -> None:
        """The primary wants to know where our replica is, and tells whether its client waits for it."""
        connection = self._numbers.get(record.conn)
        if connection is None or connection.state is Shadow.DEAD:
            self._deny(record.conn, connection, now)
            return
        connection.note_turn(record.turn)
        if connection.map is not None:
            inward, taken = connection.inward, connection.inward.client.seq(connection.inward.rcv_nxt)
            if inward.reset_by_client:
                self._vanished.look_soon(now)  # the primary waits for a replica that says no more
            sent = connection.seen.seq(connection.output.snd_nxt)
            self._out.record(PaceTold(record.conn, connection.turn, taken, inward.client.seq(inward.rcv_edge), sent))

    def _on_end_asked(self, record: EndAsked, now: float) -> None:
        """The primary wants to know where our replica's stream ends."""
        connection = self._numbers.get(record.conn)
        if connection is not None and connection.inward.reset_by_client:
            self._vanished.look_soon(now)  # it says no more, whatever it has said at last
        self._ends.on_end_asked(record, now)

    def _on_data(self, record: Data, now: float) -> None:
        """Bytes have come that our tap had lost."""
        connection = self._numbers.get(record.conn)
        if connection is None or connection.state not in LISTENS:
            return
        inward = connection.inward
        if inward.inbound.differs(inward.client.offset(record.seq), record.data):
            self._die(connection, TWO_VERSIONS, now)
            return
        self._unconfirmed[connection.conn] = connection
        self._repair.fill(connection, record, now)

    def _on_close(self, record: Close, now: float) -> None:
        """The primary's TCP has forgotten the connection: ours may finish by itself, or is reset."""
        self._out.record(Closed(record.conn))
        self._strays.forget(record.conn)
        self._missing.over(record.conn)
        connection = self._numbers.get(record.conn)
        if connection is None:
            self._openings.over(record.conn)
        if connection is None or connection.closing.closed_at is not None:
            return
        connection.closing.close(now)
        ended = connection.ended
        if connection.state is Shadow.SHADOW and not ended:
            if not connection.inward.unread:
                connection.reset_own(self._out)
            else:  # the primary's server has read that
                self._feeding.begin(connection, record.reason, now, tell=False)
        if connection.state is Shadow.FED and not ended:
            self._feeding.drain(connection, now)
            return
        self._timers.set(connection.conn, now + (LINGER_S if ended else CLOSED_S))

    def _on_served(self, record: Served, now: float) -> None:
        """The primary serves a connection that has no replica here."""
        del now
        connection = self._numbers.get(record.conn)
        opening = connection is None or connection.state is Shadow.OPENING
        if opening and record.conn not in self._openings.forgotten:
            self._strays.on_served(record)

    def _on_told(self, record: UnprotectedSeen, now: float) -> None:
        """The primary knows that we can't continue the connection."""
        del now
        connection = self._numbers.get(record.conn)
        if connection is not None and connection.closing.tell_s:
            connection.closing.told()
            if connection.closing.closed_at is None:
                self._timers.cancel(record.conn)

    def _on_unprotected(self, record: Unprotected, now: float) -> None:
        """The primary has released bytes that we may lack."""
        del now
        self._out.record(UnprotectedSeen(record.conn))
        connection = self._numbers.get(record.conn)
        if connection is not None and connection.state is not Shadow.DEAD:
            self._give_up(connection, record.reason)

    def _on_fed(self, record: Fed, now: float) -> None:
        """The primary does not protect a connection any more, but keeps what the client sends until we have it."""
        self._out.record(FedSeen(record.conn))
        connection = self._numbers.get(record.conn)
        if connection is None or connection.closing.closed_at is not None:
            return
        if connection.state is Shadow.SHADOW:
            self._divergence.forget(connection.conn)
            self._feeding.begin(connection, record.reason, now, tell=False)
        elif connection.state is Shadow.OPENING:
            self._die(connection, record.reason, now)

    def _on_fed_seen(self, record: FedSeen, now: float) -> None:
        """The primary knows that a connection can't be continued."""
        del now
        self._feeding.told(record.conn)

    def _on_sent(self, record: SentUpTo, now: float) -> None:
        """The primary has told what its server has sent."""
        del now
        connection = self._numbers.get(record.conn)
        if connection is not None:
            connection.acceptance.primary_has_sent(connection.seen.offset(record.seq))
