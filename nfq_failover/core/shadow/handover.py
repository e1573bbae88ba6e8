"""Connections that the primary has handed over, one by one (core/gate/handover.py): this host is heard on them while it
shadows the others.

A connection that was taken is out of the primary's hands: it keeps being ours whatever becomes of the pair (another
generation, the end of the protection, a takeover of everything else, a restart of our daemon). It has a number of our
own, beyond those of the primary. It ends by itself; or loudly, with RST: when this host leaves, or when the primary is
there and does not ask for it any more, so that the client's segments can't be expected to reach us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.wire.records import Handed, HandedOver, HandOver

if TYPE_CHECKING:
    from nfq_failover.core.shadow.backup_table import BackupTable

FIRST_NUMBER = 1 << 32
COMPARE_PATIENCE_S = 1.0
ORPHAN_S = 30.0  # six questions
LOOK_S = 1.0
MAX_OVER = 4096


class HandedConnections:
    """Those that this host has, in the tables of `side`; `BackupConnection.handed` is the primary's number."""

    def __init__(self, side: BackupTable, out: Outbox) -> None:
        self._side = side
        self.out = out
        self._next_number = FIRST_NUMBER
        self._waits: dict[int, float] = {}  # since when one waits for the comparison
        self._asked: dict[int, float] = {}  # by our own number: when the primary has last asked for it
        self.over: dict[int, None] = {}  # the primary's numbers of those that have ended, oldest first
        self._heard_since: float | None = None
        self._next_look = 0.0

    # ------------------------------------------------------------------------------------ the primary's question

    def on_hand_over(self, record: HandOver, now: float) -> None:
        """The primary is silent about the connection, and will be."""
        connection = self._side.flows.get(record.flow)
        if connection is not None and (connection.open.irs, connection.open.iss) != (record.irs, record.iss):
            connection = None
        ours = connection is not None and not connection.handed and connection.conn == record.conn
        if connection is not None and ours and not self._take(connection, record, now):
            return
        if connection is None or connection.handed != record.conn:
            over = record.conn in self.over
            self._answer(record.conn, Handed.OVER if over else Handed.REFUSED, "" if over else "unknown to the backup")
            return
        self._asked[connection.conn] = now
        if connection.state is Shadow.ACTIVE:
            self._answer(record.conn, Handed.ACTIVE)
        else:
            self._answer(record.conn, Handed.OVER if connection.heard else Handed.REFUSED, connection.reason)

    def _answer(self, conn: int, state: Handed, reason: str = "") -> None:
        self.out.record(HandedOver(conn, state, reason))

    def _take(self, connection: BackupConnection, record: HandOver, now: float) -> bool:
        """Go on with it, if we can. False: not yet, the question will be repeated."""
        side = self._side
        if connection.map is None:
            return False
        if connection.state is Shadow.SHADOW and not connection.reset_by_client:
            since = self._waits.setdefault(record.conn, now)
            at = connection.mapping.seen.offset(record.at)
            if not side.divergence.compared_to(connection, at) and now - since < COMPARE_PATIENCE_S:
                return False
        self._waits.pop(record.conn, None)
        side.release_number(connection)
        self.keep(connection, now)
        connection.handed = record.conn
        connection.tell_s = 0.0
        if connection.state is not Shadow.SHADOW:
            return True
        reason = "reset by the client" if connection.reset_by_client else side.divergence.at_takeover(connection, now)
        if reason:
            side.bury(connection, reason)
            return True
        connection.lag_since = None
        side.be_heard(connection, now)
        if side.memory is not None:
            side.memory.add(connection)
        self.out.counters["handed-over-to-us"] += 1
        self.out.log("warning", "connection handed over to this host", conn=record.conn, port=connection.flow[1])
        return True

    def keep(self, connection: BackupConnection, now: float) -> None:
        """Give a connection a number of our own."""
        connection.conn = self._next_number
        self._next_number += 1
        self._side.numbers[connection.conn] = connection
        self._asked[connection.conn] = now

    def forgotten(self, connection: BackupConnection) -> None:
        """A connection has left the tables: if it was handed over, the primary wants to know."""
        self._asked.pop(connection.conn, None)
        self._waits.pop(connection.conn, None)
        if connection.handed:
            if connection.heard:
                self.over[connection.handed] = None
            if len(self.over) > MAX_OVER:
                del self.over[next(iter(self.over))]
            self._answer(connection.handed, Handed.OVER if connection.heard else Handed.REFUSED, connection.reason)

    # ------------------------------------------------------------------------------------ the pair

    def adopt(self) -> None:
        """This host serves: they are as if taken over with everything else."""
        self._asked.clear()
        self._waits.clear()
        found = [c for c in self._side.flows.values() if c.handed]
        for connection in found:
            connection.handed = 0
        if found and self._side.memory is not None:
            heard = (Shadow.ACTIVE, Shadow.DEAD)
            self._side.memory.begin([c for c in self._side.flows.values() if c.state in heard])

    def cut(self, reason: str) -> None:
        """None of them can go on."""
        for connection in [c for c in self._side.flows.values() if c.handed and c.heard]:
            self._end(connection, reason)
            self._side.forget(connection)

    def _end(self, connection: BackupConnection, reason: str) -> None:
        self.out.log("error", "a connection that was handed over to this host is lost", reason=reason)
        self._side.bury(connection, reason)
        connection.heard = True
        connection.answer_rst(self.out, None)

    def on_timer(self, heard: bool, now: float) -> None:
        """Find those that the primary does not know of any more. `heard`: it serves, and hears us, now."""
        if not heard:
            self._heard_since = None
        elif self._heard_since is None:
            self._heard_since = now
        if self._heard_since is None or now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for conn, asked_at in list(self._asked.items()):
            connection = self._side.numbers.get(conn)
            if connection is None or connection.state is not Shadow.ACTIVE:
                continue
            if now - max(asked_at, self._heard_since) >= ORPHAN_S:
                self._end(connection, "the primary does not ask for it any more: its daemon has restarted")
