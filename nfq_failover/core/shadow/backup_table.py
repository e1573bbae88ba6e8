"""The backup's connections, by flow and by number: how one ends to be continued, and how it is forgotten."""

from __future__ import annotations

from nfq_failover.constants import ACK, RST
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow import takeover
from nfq_failover.core.shadow.backoff import BackoffRevert
from nfq_failover.core.shadow.checkpoint import Memory
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.ends import ReplicaEnds
from nfq_failover.core.shadow.handover import HandedConnections
from nfq_failover.core.shadow.recovery import Recovery
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Unprotected, UnprotectedSeen
from nfq_failover.wire.segment import FlowKey

MAX_FORGOTTEN = 4096
TELL_FIRST_S = 0.01
TELL_MAX_S = 10.0


class BackupTable:
    """The tables that belong to all connections; `BackupSide` adds what comes in for them."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.settings = settings
        self.out = out
        self.flows: dict[FlowKey, BackupConnection] = {}
        self.numbers: dict[int, BackupConnection] = {}
        self.timers: TimerQueue[int] = TimerQueue()
        self.repair = Repair(out, self.timers)
        self.memory: Memory | None = None
        self.divergence = Divergence(settings, out, self.numbers, self._die)
        self.ends = ReplicaEnds(out, self.numbers, settings.health_checked)
        self.handed = HandedConnections(self, out)
        self.backoff = BackoffRevert(self.numbers, out)
        self.recovery = Recovery(self.numbers, out)
        self._dirty: dict[int, BackupConnection] = {}
        self.forgotten: dict[int, None] = {}  # the latest, oldest first

    def be_heard(self, connection: BackupConnection, now: float) -> None:
        """The client of a shadow connection hears us from now on."""
        takeover.take_over(connection, self.out, now)
        self.repair.watch_lag(connection, now)
        self.recovery.begin(connection, now)

    def _die(self, connection: BackupConnection, reason: str, now: float) -> None:
        """The connection can't be continued: the primary is told until it answers."""
        self.out.log("error", "connection lost its replica", conn=connection.conn, reason=reason)
        self.bury(connection, reason)
        if not connection.heard:
            connection.tell_s = TELL_FIRST_S
            self._tell(connection, now)

    def bury(self, connection: BackupConnection, reason: str) -> None:
        """Nobody is at the other end of our TCP any more: it is reset, now and when it sends anything yet."""
        connection.state, connection.reason = Shadow.DEAD, reason
        connection.forget_bytes()
        if connection.closed_at is None:
            self.timers.cancel(connection.conn)
        if connection.map is not None:
            connection.inject(self.out, connection.k_ack, flags=RST | ACK)

    def _tell(self, connection: BackupConnection, now: float) -> None:
        """Tell the primary, or ask it: if it knows of no such connection, its answer is `Close`."""
        if connection.heard:
            connection.tell_s = 0.0
            return
        self.out.record(Unprotected(connection.conn, connection.reason))
        if 0 < connection.tell_s <= TELL_MAX_S:
            self.timers.set(connection.conn, now + connection.tell_s)
            connection.tell_s *= 2
        else:
            connection.tell_s = 0.0

    def on_told(self, record: UnprotectedSeen) -> None:
        """The primary knows that we can't continue the connection."""
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.tell_s:
            connection.tell_s = 0.0
            if connection.closed_at is None:
                self.timers.cancel(record.conn)

    def on_unprotected(self, record: Unprotected) -> None:
        """The primary has released bytes that we may lack."""
        self.out.record(UnprotectedSeen(record.conn))
        connection = self.numbers.get(record.conn)
        if connection is not None and connection.state is not Shadow.DEAD:
            self.bury(connection, record.reason)

    def invalidate(self, reason: str) -> None:
        """The primary may have acknowledged what we lack: none of the connections can be continued."""
        for connection in self.flows.values():
            if connection.state is Shadow.SHADOW:
                self.bury(connection, reason)

    def forget(self, connection: BackupConnection) -> None:
        """Drop all state of a connection."""
        if self.flows.get(connection.flow) is connection:
            del self.flows[connection.flow]
            if self.memory is not None:
                self.memory.forget(connection.flow)
        self.release_number(connection)
        self.handed.forgotten(connection)

    def release_number(self, connection: BackupConnection) -> None:
        """Nothing is due any more for a connection's number."""
        self.numbers.pop(connection.conn, None)
        self.forgotten[connection.conn] = None
        if len(self.forgotten) > MAX_FORGOTTEN:
            del self.forgotten[next(iter(self.forgotten))]
        self.timers.cancel(connection.conn)
        self.recovery.forget(connection.conn)
        self._dirty.pop(connection.conn, None)
        self.divergence.forget(connection.conn)

    def clear(self, reason: str, keep_handed: bool = False) -> None:
        """Forget everything (but for what was handed over to us); our TCP is told to do the same."""
        for connection in list(self.flows.values()):
            if keep_handed and connection.handed and connection.heard:
                continue
            if connection.map is not None and connection.state is Shadow.SHADOW:
                connection.inject(self.out, connection.k_ack, flags=RST | ACK)
            self.forget(connection)
        self.ends.clear()
        self.divergence.clear()
        self.forgotten.clear()  # a primary that has restarted counts from the beginning
        self.out.log("info", "shadow connections dropped", reason=reason)
