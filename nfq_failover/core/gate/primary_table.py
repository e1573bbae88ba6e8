"""The primary's connections, by flow and by number: how the protection of one ends, how it is closed, and how that is
told to the backup."""

from __future__ import annotations

from collections import OrderedDict

from nfq_failover.core.gate.connection import Gate, PrimaryConnection
from nfq_failover.core.gate.digests import PrimaryDigests
from nfq_failover.core.gate.ends import PrimaryEnds
from nfq_failover.core.gate.handover import Handovers
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Close, Closed, Unprotected, UnprotectedSeen
from nfq_failover.wire.segment import FlowKey

MAX_TELLING = 8192
POLL_FIRST_S = 0.003
TELL_MAX_S = 10.0

NOT_READY = "replica not ready"


class PrimaryTable:
    """All connections of a primary. `protecting`: a backup is there and new connections are opened towards it.

    `strangers`: connections may be there that clients know by our TCP's own numbers, though nobody saw them open: from
    before the daemon's start. Not on a host that has been a backup or has stepped down: what its TCP has from then
    is a replica's, or of a service period that another host has taken over, and is kept from the clients.
    """

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.settings = settings
        self.out = out
        self.protecting = False
        self.reason = "no backup"
        self.strangers = True
        self.poked: frozenset[FlowKey] = frozenset()  # see core/leftovers.py
        self.wants_copies = False
        self.flows: dict[FlowKey, PrimaryConnection] = {}
        self.numbers: dict[int, PrimaryConnection] = {}
        self.timers: TimerQueue[int] = TimerQueue()
        self._telling: dict[int, tuple[Close | Unprotected, float]] = {}
        self._syns: OrderedDict[FlowKey, tuple[int, int, bytes, bool]] = OrderedDict()
        self._dialled: OrderedDict[FlowKey, None] = OrderedDict()  # left alone: opened by the server, or no room
        self._next_conn = 1
        self._late_bytes = 0  # retained for replicas that are not ready; what they have got by now counts, for a while
        self._next_query = self._next_full_log = 0.0
        self.digests = PrimaryDigests(settings, out, self._unprotect)
        self.ends = PrimaryEnds(settings, out, self.numbers, self._unprotect, self._close)
        self.handovers = Handovers(settings, out, self.numbers, self.flows, self.digests, self._unprotect)

    def knows(self, flow: FlowKey) -> bool:
        """Whether the connection was opened before our eyes."""
        return flow in self.flows or flow in self._dialled or flow in self.handovers.flows

    def _take_number(self) -> int:
        conn = self._next_conn
        self._next_conn = self._next_conn % 0xFFFFFFFF + 1
        return conn

    def _close(self, connection: PrimaryConnection, reason: str, now: float) -> None:
        """Forget a connection, and make the backup forget it."""
        known = connection.state in (Gate.PROTECTED, Gate.SYN_HELD) or connection.reason == NOT_READY
        known = known or connection.shadowed
        connection.state = Gate.CLOSED
        if self.flows.get(connection.flow) is connection:
            del self.flows[connection.flow]
        self.numbers.pop(connection.conn, None)
        self.digests.forget(connection.conn)
        if self.protecting and known:
            self._tell(Close(connection.conn, reason), POLL_FIRST_S, now)

    def on_told(self, record: Closed | UnprotectedSeen) -> None:
        """The backup has seen what it was told."""
        telling = self._telling.get(record.conn)
        wanted = Close if isinstance(record, Closed) else Unprotected
        if telling is not None and isinstance(telling[0], wanted):
            del self._telling[record.conn]
            self.timers.cancel(record.conn)

    def _tell(self, record: Close | Unprotected, wait: float, now: float) -> None:
        """Tell the backup, again and again until it answers or this has no point any more."""
        if wait > TELL_MAX_S or not self.protecting:
            self._telling.pop(record.conn, None)
            return
        if len(self._telling) >= MAX_TELLING and record.conn not in self._telling:
            self._tell_less()
        self._telling[record.conn] = (record, wait * 2)
        self.out.record(record)
        self.timers.set(record.conn, now + wait)

    def _tell_less(self) -> None:
        """The backup does not answer, and much has ended: the oldest `Close` is no longer repeated. The backup finds
        out from its own TCP, or asks. An `Unprotected` is never left out; they are no more than the connections."""
        for conn, (record, _) in self._telling.items():
            if isinstance(record, Close):
                del self._telling[conn]
                self.timers.cancel(conn)
                self.out.counters["tell-dropped"] += 1
                return

    def on_unprotected(self, record: Unprotected, now: float) -> None:
        connection = self.numbers.get(record.conn)
        if connection is not None:
            self._unprotect(connection, record.reason, now, tell=False)
        else:
            self.out.record(Close(record.conn, "over"))  # it has missed that

    def _unprotect(self, connection: PrimaryConnection, reason: str, now: float, tell: bool = True) -> None:
        if connection.state in (Gate.UNPROTECTED, Gate.CLOSED, Gate.HANDED):
            if connection.reason == NOT_READY:
                connection.reason = reason  # it will never be: stop asking
                connection.forget_bytes()
                if tell:
                    self._tell(Unprotected(connection.conn, reason), POLL_FIRST_S, now)
            return
        connection.unprotect(reason, self.out)
        connection.shadowed = True
        self.digests.let_go(connection.conn)
        if reason != NOT_READY:
            connection.forget_bytes()
        self.out.log("warning", "connection unprotected", conn=connection.conn, reason=reason)
        if tell:
            self._tell(Unprotected(connection.conn, reason), POLL_FIRST_S, now)

    def start_protecting(self) -> None:
        """A backup is there: connections opened from now on are protected, those that are open stay unprotected."""
        self.protecting = True
        self.reason = ""
        for connection in self.flows.values():
            if connection.state is Gate.UNPROTECTED:
                connection.reason = "opened before the backup joined"
                connection.shadowed = False

    def stop_protecting(self, reason: str) -> None:
        """The backup is gone for good: let everything go."""
        self.protecting = False
        self.digests.let_all_go()
        self.reason = reason
        self._telling.clear()
        for connection in list(self.flows.values()):
            if connection.gated or connection.state is Gate.SYN_HELD:
                connection.unprotect(reason, self.out)
            elif connection.reason == NOT_READY:
                connection.reason = reason  # what its replica has got by now is not kept
            connection.forget_bytes()

    def tables(self) -> dict[str, int]:
        """How many entries the smaller tables have."""
        return {
            "syns": len(self._syns),
            "dialled": len(self._dialled),
            "telling": len(self._telling),
            "late_bytes": self._late_bytes,
        }

    def clear(self) -> None:
        """Forget everything (this host is no longer the primary)."""
        self.protecting = False
        self.reason = "no backup"
        self.flows.clear()
        self.numbers.clear()
        self.timers = TimerQueue()
        self._telling.clear()
        self.ends.clear()
        self.handovers.clear()
        self.digests.clear()
        self._syns.clear()
        self._dialled.clear()
