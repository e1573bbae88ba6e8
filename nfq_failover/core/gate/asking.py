"""The backup is asked how far it is, until it has what a client waits for, or until a replica that was late is back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.digests import GateDigests
from nfq_failover.core.gate.opening import POLL_MAX_S, Opening
from nfq_failover.core.gate.pace import Pacing
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Progress

POLL_FIRST_S: Final = 0.003
FED_POLL_MAX_S: Final = 0.2
LATE_POLL_MAX_S: Final = 1.0


class Asking:
    """Asks about single connections, each at its own times. `protecting()`: whether there is a backup."""

    def __init__(
        self,
        out: Outbox,
        timers: TimerQueue[int],
        opening: Opening,
        digests: GateDigests,
        pace: Pacing,
        protecting: Callable[[], bool],
    ) -> None:
        self.out = out
        self._timers = timers
        self._opening = opening
        self._digests = digests
        self._pace = pace
        self._protecting = protecting

    def protect_late(self, connection: GatedConnection, now: float) -> None:
        """A replica that was late may have caught up."""
        if not self._protecting() or (self._pace.stands_still and connection.distance.turn):
            return
        before = connection.state
        if connection.protect_late(now, lambda seq: self._digests.agrees(connection, seq)):
            self._pace.back(connection, now)
            if connection.distance.turn:
                self.out.log("info", "connection protected again", conn=connection.conn)
            else:
                self.out.log("debug", "connection protected", conn=connection.conn)
            if not connection.distance.watched:
                self._pace.watch(connection, now)  # its server may have sent more than the replica
            self.poll(connection)  # the backup, too, is to know
        elif connection.gated:
            if connection.state is not before:
                self._pace.ask(connection, now)
                self._digests.remind(connection, now)
            self._timers.set_earlier(connection.conn, now + POLL_MAX_S)

    def ask_again(self, connection: GatedConnection, now: float) -> None:
        """The backup has not answered in time."""
        conn, acks = connection.conn, connection.acks
        if connection.state is Gate.SYN_HELD:
            self._opening.repeat(connection, now)
        elif self._protecting() and connection.state is Gate.PROTECTED:
            acks.release(self.out, now)
            if acks.waiting or not connection.backup_established:
                wait_s = connection.back_off(POLL_FIRST_S, POLL_MAX_S)
                self.poll(connection)
                self._timers.set(conn, now + wait_s)
            elif acks.owed_since is not None:
                self._timers.set(conn, now + POLL_FIRST_S)
        elif self._protecting() and connection.fed:
            connection.feed_on(self.out, now)
            acks.release(self.out, now)
            if acks.waiting or connection.lacks or acks.owed_since is not None:
                self.poll(connection)
                self._timers.set(conn, now + connection.back_off(POLL_FIRST_S, FED_POLL_MAX_S))
        elif self._protecting() and connection.awaited:
            if connection.give_up_catching_up(self.out, now):
                self._digests.let_go(conn, awaited=True)
            elif connection.gated:
                acks.release(self.out, now)
            first_s = POLL_MAX_S if connection.distance.let_go else POLL_FIRST_S
            wait_s = connection.back_off(first_s, POLL_MAX_S if connection.gated else LATE_POLL_MAX_S)
            self.poll(connection)
            self._pace.ask(connection, now)
            self._timers.set(conn, now + wait_s)
            if not connection.distance.turn or connection.distance.near:
                self._digests.remind(connection, now)

    def poll(self, connection: GatedConnection) -> None:
        """Tell the backup where the connection is, so that it says how far it is."""
        own = connection.own
        self.out.record(Progress(connection.conn, own.client.seq(own.rcv_nxt), own.established))
