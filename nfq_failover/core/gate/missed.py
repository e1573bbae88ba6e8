"""What the clients have sent that the replica's application will never get, as the host that serves sees it.

A connection without a replica (never opened there, or lost) has its client's bytes on this host alone. If they change
what the application answers to others, the replica's answers are wrong from then on, so all is degraded, and nothing
new is protected, until the replica's application is whole again (core/shadow/wholeness.py). Connections from before the
backup joined, or from before the replica was declared whole, are an operator's matter: what they go on to send is only
warned of.
"""

from __future__ import annotations

from collections.abc import Mapping

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.gate.connection import BEFORE_BACKUP, SYN_UNSEEN, Gate, GatedConnection
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import InputMissed, Whole, WholeSaid
from nfq_failover.wire.segment import FlowKey

TELL_FIRST_S = 0.01
TELL_MAX_S = 1.0
SAID_S = 10.0
HALF_OPEN_S = 60.0  # for so long a TCP repeats its SYN-ACK
CODE = "input-before"
SOURCE = "missed"
CURE = "end them, bring the replica's application to the same state, then: nfq-failover replica-is-whole"


class MissedInput:
    """The count of the present life of the replica's application. `flows` is the gate's table.

    `instance` is the number of that life, 0 before the backup has told it.
    """

    def __init__(self, out: Outbox, flows: Mapping[FlowKey, GatedConnection], shared: bool) -> None:
        """`shared`: the application's connections have state in common."""
        self.out = out
        self.instance = 0
        self._flows = flows
        self._shared = shared
        self._count = self._known = self._theirs = self._before = 0
        self._on, self._since = False, 0.0  # there is a backup, since when
        self._wait_s = TELL_FIRST_S
        self._said_until: float | None = None
        self._timer: TimerQueue[int] = TimerQueue()

    @property
    def reason(self) -> str:
        """Why nothing new can be protected; empty if it can."""
        missed = max(self._count, self._theirs)
        return f"the replica has missed input of {missed} connections" if missed and self._shared else ""

    # ------------------------------------------------------------------------------------ what clients send

    def begins(self, connection: GatedConnection, now: float, counts: bool = True) -> None:
        """There is no replica of the connection, or none any more that could be given input: what the backup has not
        confirmed is missing. `counts`: it is not from before the backup's time."""
        if not self._on:
            return
        if connection.reason in (SYN_UNSEEN, BEFORE_BACKUP) and now - self._since < HALF_OPEN_S:
            counts = False  # it is from before: it was half open when the backup joined
        connection.miss_from(max(connection.acks.confirmed, 0), counts)
        self.look(connection, now)

    def ports_join(self, now: float) -> None:
        """Ports were added: a connection that is half open there is from before that."""
        self._since = now

    def look(self, connection: GatedConnection, now: float) -> None:
        """Our TCP has taken something of a connection without a replica."""
        if not connection.has_missed():
            return
        if not connection.counts:
            self._before += 1
            if self._shared:
                what = f"{self._before} connections from before the replica was there have gone on to send"
                self.out.concerns.raised(SOURCE, Concern(CODE, Weight.WARNING, what, CURE), now)
            return
        self.untracked(connection.reason, connection.flow, now)

    def untracked(self, reason: str, flow: FlowKey | None, now: float) -> None:
        """A client has sent what the replica will not get."""
        if not self._on:
            return
        self._count += 1
        self.out.counters["input-missed"] += 1
        self.out.mishaps.note("input missed by the replica", reason, flow, now)
        self._wait_s = TELL_FIRST_S
        self._tell(now)

    # ------------------------------------------------------------------------------------ the backup

    def _tell(self, now: float) -> None:
        said = self._said_until is not None and now < self._said_until
        if said and self.instance:
            self.out.record(WholeSaid(self.instance))
        elif self._count > self._known and self.instance:
            self.out.record(InputMissed(self.instance, self._count))
        elif not said:
            return
        self._timer.set(0, now + self._wait_s)
        self._wait_s = min(2 * self._wait_s, TELL_MAX_S)

    def on_whole(self, record: Whole, now: float) -> None:
        """The backup tells which life of its application this is, and what it knows."""
        if record.instance != self.instance:
            if self.instance:
                self._anew(now)
            self.instance = record.instance
            self._known = 0
        self._known = max(self._known, record.told)
        self._theirs = record.missed
        self._soon(now)

    def _soon(self, now: float) -> None:
        if self._on and self._count > self._known:
            self._timer.set_earlier(0, now + TELL_FIRST_S)

    def said(self, now: float) -> None:
        """An operator says that the replica's application is whole: tell the backup."""
        self._said_until = now + SAID_S
        self._wait_s = TELL_FIRST_S
        self._tell(now)

    def _anew(self, now: float) -> None:
        """The replica's application is whole, or another: what has no replica now is from before."""
        self._count = self._known = self._theirs = self._before = 0
        self._said_until = None
        self._timer.clear()
        self.out.concerns.over(SOURCE, CODE, now)
        for connection in self._flows.values():
            if connection.missing_from is not None:
                connection.miss_from(connection.own.rcv_nxt, counts=False)

    # ------------------------------------------------------------------------------------ protection as a whole

    def start(self, now: float) -> None:
        """A backup is there: what is open now was there before."""
        self._on, self._since = True, now
        self._before = 0
        self._soon(now)
        self.out.concerns.over(SOURCE, CODE, now)
        for connection in self._flows.values():
            if connection.state is Gate.UNPROTECTED:
                connection.miss_from(connection.own.rcv_nxt, counts=False)

    def stop(self) -> None:
        """There is no backup: nothing is missing anywhere. What its application has missed is remembered."""
        self._on = False
        self._timer.clear()
        for connection in self._flows.values():
            connection.miss_from(None)

    def on_timer(self, now: float) -> None:
        """Tell again."""
        for _ in self._timer.pop_due(now):
            self._tell(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self._timer.next()
