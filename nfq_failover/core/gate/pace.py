"""Watches how far the replicas are behind, slows clients whose replica is late, and lets those go that wait too long.

A client waits for its replica: what it sends is acknowledged when the backup has it, and its window is the replica's,
too. If the replica is late all the same, the client is slowed (core/gate/slowing.py). That must end when the replica
stands still or can't keep up. Beyond `replica_patience_ms` a connection is let go, unprotected; the backup goes on with
the replica, and when that has caught up the connection is protected again (core/gate/connection.py). If no replica has
done anything for as long, it is the backup's application that stands still, and new connections are let go from the
start.

Nothing is done for single packets: connections that wait for something are looked at every `EVERY_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import QueryFlows
from nfq_failover.core.gate.brake import Brake
from nfq_failover.core.gate.connection import BEHIND, STANDS_STILL, Gate, GatedConnection
from nfq_failover.core.gate.slowing import Slowing
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.wire.records import PaceAsked, PaceTold
from nfq_failover.wire.segment import FlowKey

EVERY_S: Final = 0.05
PER_CONNECTION_S: Final = 20e-6  # with many connections the looks are rarer, so that they cost no more than that
ASK_S: Final = 0.1  # how late a replica must be before the backup is asked, and between two questions
RELIEF_S: Final = 0.5  # between two times that replicas are given up
SHARE: Final = 8  # at one look no more than one in so many connections is let go, those first that are furthest behind

SOURCE: Final = "pace"
_CURE: Final = "see whether the backup's application hangs, or has less CPU time, a slower disk or a slower network"
_STANDS: Final = Concern(
    "replicas-stand-still",
    Weight.UNPROTECTED,
    "the backup's application has done nothing for as long as clients may wait (replica_patience_ms): no connection "
    "waits for it, and after a takeover none would go on",
    "look at the application on the backup: it stands still, or waits for something that it does not get",
)

LetGo = Callable[[GatedConnection, str, float], None]


class Pacing:
    """The pace of all connections. `let_go(connection, reason, now)` stops waiting for one replica.

    `stands_still`: no replica goes on. `heard`: the backup has said something since the last look; whoever hears it
    says so by `note_heard`.
    """

    def __init__(self, settings: Settings, out: Outbox, let_go: LetGo) -> None:
        self.out = out
        self.stands_still = False
        self.worst_s = 0.0  # at the last look
        self.slowing = Slowing(settings, out)
        self.brake = Brake(out)
        self._let_go = let_go
        self._settings = settings
        self._watched: dict[int, GatedConnection] = {}
        self._gone: dict[int, GatedConnection] = {}  # let go, and not back yet
        self._heard = False
        self._drop_at = 0.0
        self._quiet = False  # nothing was heard between the last two looks
        self._clock = self._progress = 0.0
        self._looked_at = 0.0
        self._next: float | None = None

    @property
    def _patience_s(self) -> float:
        return self._settings.replica_patience_ms / 1000

    @property
    def _end_doubt_s(self) -> float:
        return self._settings.end_deadline_ms / 2000

    @property
    def _end_patience_s(self) -> float:
        """Is it our server's failure?"""
        return max(self._patience_s, 4 * self._end_doubt_s)

    # ------------------------------------------------------------------------------------ what is known

    def note_heard(self) -> None:
        """The backup has said something."""
        self._heard = True

    def progressed(self, now: float) -> None:
        """A replica's application has done something."""
        self._progress = self._clock
        if self.stands_still:
            self._goes_on(now)

    def _goes_on(self, now: float) -> None:
        self.stands_still = False
        self.out.concerns.over(SOURCE, _STANDS.code, now)

    def on_told(self, connection: GatedConnection, record: PaceTold, now: float) -> None:
        """The backup has told where a replica is."""
        has_sent = connection.distance.told(record)
        if has_sent or (connection.reason in (STANDS_STILL, BEHIND) and connection.distance.near):
            self.progressed(now)  # or this one is back

    def replicas_hang(self) -> bool:
        """Whether the backup's application, and not ours, may be what has failed: connections wait for their replicas,
        and none has done anything for as long."""
        if self.stands_still or self._clock - self._progress < self._end_doubt_s:
            return self.stands_still
        return bool(self._gone) or self.worst_s >= self._end_doubt_s

    @property
    def goes_on(self) -> bool:
        """Whether replicas do something at all: the backup is slow then, and does not stand still."""
        return self._clock - self._progress < self._patience_s

    @property
    def let_go_count(self) -> int:
        """How many connections were let go, and are not protected again."""
        return len(self._gone)

    # ------------------------------------------------------------------------------------ single connections

    def watch(self, connection: GatedConnection, now: float) -> None:
        """Something was sent on a protected connection that is not watched."""
        if not self._watched:
            self._looked_at = now
            self._next = now + EVERY_S
        connection.distance.watch(self._clock)
        self._watched[connection.conn] = connection

    def ask(self, connection: GatedConnection, now: float) -> None:
        """Ask the backup where a replica is."""
        connection.distance.note_asked(now)
        self.out.record(PaceAsked(connection.conn, connection.distance.turn))

    def gone(self, connection: GatedConnection, now: float) -> None:
        """A connection was let go."""
        self._gone[connection.conn] = connection
        self.out.counters["pace-let-go"] += 1
        self._say_gone(now)
        if self._clock - self._progress >= self._patience_s:
            self.stands_still = True
            self.out.concerns.raised(SOURCE, _STANDS, now)

    def back(self, connection: GatedConnection, now: float) -> None:
        """A connection is protected again, or for good unprotected, or over."""
        self._watched.pop(connection.conn, None)
        connection.distance.unwatch()
        if self._gone.pop(connection.conn, None) is None:
            return
        self._say_gone(now)
        if not self._gone and self.stands_still:
            self._goes_on(now)  # nobody is left who could tell when that is over

    def _say_gone(self, now: float) -> None:
        count = len(self._gone)
        if not count:
            self.out.concerns.over(SOURCE, "replicas-behind", now)
            return
        what = f"{count} {'connection is' if count == 1 else 'connections are'} unprotected until "
        what += f"{'its replica has' if count == 1 else 'their replicas have'} caught up"
        self.out.concerns.raised(SOURCE, Concern("replicas-behind", Weight.DEGRADED, what, _CURE), now)

    def clear(self, now: float) -> None:
        """Forget everything."""
        for connection in self._watched.values():
            connection.distance.unwatch()
        self._watched.clear()
        self._gone.clear()
        self._next = None
        self._say_gone(now)
        self._goes_on(now)
        self.slowing.clear(now)
        self.brake.clear(now)

    # ------------------------------------------------------------------------------------ time

    def poll_timeout(self) -> float | None:
        """Returns when to look next, None while nobody waits for anything."""
        return self._next

    def on_timer(self, now: float) -> None:
        """Look at all connections that wait for something."""
        if self._next is None or now < self._next:
            return
        wait_s = max(EVERY_S, PER_CONNECTION_S * len(self._watched))
        if self._heard:  # the time of a pause, of this host or of the other, is not the replica's fault
            self._clock += min(now - self._looked_at, 2 * wait_s)
            self._looked_at = now
        self._quiet, self._heard = not self._heard, False
        late = self._look(now)
        if late:
            self._let_go_worst(late, now)
        self.brake.look(now)
        goes_on = self._watched or self.slowing.calming or self.brake.calming
        self._next = now + wait_s if goes_on else None

    def _look(self, now: float) -> list[tuple[int, str, GatedConnection]]:
        """Look at each connection. Returns those whose clients have waited for too long: by how many bytes, and why."""
        late: list[tuple[int, str, GatedConnection]] = []
        suspects: list[FlowKey] = []
        self.worst_s = 0.0
        self.slowing.begin()
        for connection in list(self._watched.values()):
            distance = connection.distance
            waits = connection.holds_end or distance.slow or not distance.caught_up
            if connection.state is not Gate.PROTECTED or not waits:
                del self._watched[connection.conn]
                distance.unwatch()
            elif reason := self._judge(connection, suspects, now):
                late.append((distance.bytes_behind, reason, connection))
        self.slowing.end(self.worst_s, now)
        if suspects:
            self.out.effects.append(QueryFlows(suspects))  # the client may have ended it by a RST, which we don't see
        return late

    def _judge(self, connection: GatedConnection, suspects: list[FlowKey], now: float) -> str:
        """Judge one connection. Returns why its client has waited for too long; empty if it has not. One whose replica
        may stand still is added to the suspects."""
        clock, patience_s, distance, end = self._clock, self._patience_s, connection.distance, connection.end
        if connection.gone_at is not None and not connection.holds_end:
            return (
                ""  # our TCP has forgotten it, since its client has reset it: the replica's has, too, and says no more
            )
        # A replica that comes nearer to the end of the server's stream has longer: see end_gate.py.
        lag_in_s, lag_out_s, starved_s = distance.lags(clock, now)
        lag_s = lag_in_s if connection.holds_end else max(lag_in_s, lag_out_s)
        self.worst_s = max(self.worst_s, lag_in_s, lag_out_s, starved_s)
        self.slowing.judge(connection, lag_s, clock)
        if patience_s and starved_s >= patience_s:
            return STANDS_STILL
        if patience_s and (lag_s >= patience_s or (end is not None and end.stands_still(self._end_patience_s))):
            return BEHIND
        hurried = patience_s and self._settings.slow_backup != "wait"
        if hurried and distance.slow and clock - distance.slow_at >= patience_s:
            return BEHIND
        longest_s = max(lag_s, starved_s)
        if self._quiet or (longest_s >= ASK_S and now - distance.asked_at >= ASK_S):
            self._quiet = False  # its answer lets the clock go on, and one is enough for that
            self.ask(connection, now)
        if patience_s and 2 * longest_s >= patience_s and distance.suspect():
            suspects.append(connection.flow)
        return ""

    def _let_go_worst(self, late: list[tuple[int, str, GatedConnection]], now: float) -> None:
        if self._settings.slow_backup == "drop" and self.goes_on:
            if self._clock < self._drop_at:
                return  # what was given up last has yet to relieve the backup
            self._drop_at = self._clock + RELIEF_S
        late.sort(key=lambda each: -each[0])
        for _, reason, connection in late[: -(-len(self._watched) // SHARE)]:
            self._let_go(connection, reason, now)
