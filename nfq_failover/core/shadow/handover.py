"""Connections that the primary has handed over, one by one (core/gate/handover.py): this host is heard on them while it
shadows the others.

A connection that was taken is out of the primary's hands: it keeps being ours whatever becomes of the pair (another
generation, the end of the protection, a takeover of everything else, a restart of our daemon). It has a number of our
own, beyond those of the primary. It ends by itself; or loudly, with RST: when this host leaves, or when the primary is
there and has stopped asking for it, so that the client's segments can't be expected to reach us.
"""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.checkpoint import CheckpointWriter
from nfq_failover.core.shadow.connection import HEARD, Forget, GiveUp, Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.resets import Resets
from nfq_failover.wire.records import Handed, HandedOver, HandOver
from nfq_failover.wire.segment import FlowKey

FIRST_NUMBER = 1 << 32
COMPARE_PATIENCE_S = 1.0
ORPHAN_S = 30.0  # six questions
LOOK_S = 1.0
MAX_OVER = 4096


class ShadowHandovers:
    """The connections that were handed over to this host; `ShadowConnection.handed` is the primary's number."""

    def __init__(
        self,
        out: Outbox,
        flows: dict[FlowKey, ShadowConnection],
        numbers: dict[int, ShadowConnection],
        divergence: Divergence,
        checkpoint: CheckpointWriter | None,
        *,
        resets: Resets,
        be_heard: Callable[[ShadowConnection, float], None],
        give_up: GiveUp,
        forget: Forget,
        release_number: Forget,
    ) -> None:
        """`flows` and `numbers` are the table's; the functions let one connection be heard, end it, forget it, and give
        its number up."""
        self.out = out
        self._flows = flows
        self._numbers = numbers
        self._divergence = divergence
        self._checkpoint = checkpoint
        self._resets = resets
        self._be_heard = be_heard
        self._give_up = give_up
        self._forget = forget
        self._release_number = release_number
        self._next_number = FIRST_NUMBER
        self._ours: dict[int, ShadowConnection] = {}  # by our own number, while the primary has to ask for them
        self.over: dict[int, None] = {}  # the primary's numbers of those that have ended, oldest first
        self._heard_since: float | None = None
        self._next_look = 0.0

    # ------------------------------------------------------------------------------------ the primary's question

    def on_hand_over(self, record: HandOver, now: float) -> None:
        """The primary is silent about the connection, and will be."""
        connection = self._flows.get(record.flow)
        if connection is not None and (connection.open.irs, connection.open.iss) != (record.irs, record.iss):
            connection = None
        ours = connection is not None and not connection.handed and connection.conn == record.conn
        if connection is not None and ours and not self._take(connection, record, now):
            return
        if connection is None or connection.handed != record.conn:
            over = record.conn in self.over
            self._answer(record.conn, Handed.OVER if over else Handed.REFUSED, "" if over else "unknown to the backup")
            return
        self._ours[connection.conn] = connection
        connection.asked_for(now)
        if connection.state is Shadow.ACTIVE:
            self._answer(record.conn, Handed.ACTIVE)
        else:
            self._answer(record.conn, Handed.OVER if connection.heard else Handed.REFUSED, connection.reason)

    def _answer(self, conn: int, state: Handed, reason: str = "") -> None:
        self.out.record(HandedOver(conn, state, reason))

    def _take(self, connection: ShadowConnection, record: HandOver, now: float) -> bool:
        """Go on with it, if we can. False: it is too early, and the question will be repeated."""
        if connection.map is None:
            return False
        reset_by_client = connection.inward.reset_by_client
        if connection.state is Shadow.SHADOW and not reset_by_client:
            waits_s = connection.compares_for(now)
            at = connection.map.seen.offset(record.at)
            if not self._divergence.compared_to(connection, at) and waits_s < COMPARE_PATIENCE_S:
                return False
        if connection.state is Shadow.FED:
            self._give_up(connection, connection.reason)
        self._release_number(connection)
        self.keep(connection, now)
        connection.hand_over(record.conn)
        if connection.state is not Shadow.SHADOW:
            return True
        reason = "reset by the client" if reset_by_client else self._divergence.at_takeover(connection, now)
        if reason:
            self._give_up(connection, reason)
            return True
        connection.gap.no_lag()
        self._be_heard(connection, now)
        if self._checkpoint is not None:
            self._checkpoint.add(connection)
        self.out.counters["handed-over-to-us"] += 1
        self.out.log("warning", "connection handed over to this host", conn=record.conn, port=connection.flow[1])
        return True

    def keep(self, connection: ShadowConnection, now: float) -> None:
        """Give a connection a number of our own."""
        connection.renumber(self._next_number, now)
        self._next_number += 1
        self._numbers[connection.conn] = self._ours[connection.conn] = connection

    def forgotten(self, connection: ShadowConnection) -> None:
        """A connection has left the tables: if it was handed over, the primary wants to know."""
        self._ours.pop(connection.conn, None)
        if connection.handed:
            if connection.heard:
                self.over[connection.handed] = None
            if len(self.over) > MAX_OVER:
                del self.over[next(iter(self.over))]
            self._answer(connection.handed, Handed.OVER if connection.heard else Handed.REFUSED, connection.reason)

    # ------------------------------------------------------------------------------------ the pair

    def peer_restarted(self) -> None:
        """The peer's daemon has restarted, and counts from the beginning."""
        self.over.clear()

    def adopt(self) -> None:
        """This host serves: from now on they are like those that were taken over with everything else."""
        self._ours.clear()
        found = [c for c in self._flows.values() if c.handed]
        for connection in found:
            connection.adopt()
        if found and self._checkpoint is not None:
            self._checkpoint.begin([c for c in self._flows.values() if c.state in HEARD])

    def cut(self, reason: str, now: float) -> None:
        """End all of them: none can go on."""
        for connection in [c for c in self._flows.values() if c.handed and c.heard]:
            self._end(connection, reason, now)
            self._forget(connection)

    def _end(self, connection: ShadowConnection, reason: str, now: float) -> None:
        self.out.log("error", "a connection that was handed over to this host is lost", reason=reason)
        self._give_up(connection, reason)
        connection.cut()
        self._resets.tell(connection, now)

    def on_timer(self, heard: bool, now: float) -> None:
        """Find those that the primary has lost. `heard`: it serves, and hears us, now."""
        if not heard:
            self._heard_since = None
        elif self._heard_since is None:
            self._heard_since = now
        if self._heard_since is None or now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for connection in list(self._ours.values()):
            if connection.state is Shadow.ACTIVE and connection.unasked_for(self._heard_since, now) >= ORPHAN_S:
                self._end(connection, "the primary does not ask for it any more: its daemon has restarted", now)
