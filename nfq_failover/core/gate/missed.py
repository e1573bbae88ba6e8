"""What the clients have sent that the replica's application will never get, as the host that serves sees it.

A connection without a replica (never opened there, or lost) has its client's bytes on this host alone. If they change
what the application answers to others, the replica's answers are wrong from then on, so all is degraded, and nothing
new is protected, until the replica's application is whole again (core/shadow/wholeness.py). Connections from before the
backup joined, or from before the replica was declared whole, are an operator's matter: what they go on to send is only
warned of.

Missing, too, is everything that one of the two applications has forgotten, if it was started anew alone. Both may have
been, one after the other: if no client has sent anything to either since, then they are equal again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from nfq_failover.core.application import ANEW_REASONS, Begun
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.gate.connection import BEFORE_BACKUP, SYN_UNSEEN, Gate, GatedConnection
from nfq_failover.core.gate.joined import JoinedLater
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import Anew, BegunAnew, Believed, InputMissed, Lives, Whole, WholeSaid
from nfq_failover.wire.segment import FlowKey

TELL_FIRST_S = 0.01
TELL_MAX_S = 1.0
SAID_S = 10.0
LOOK_WITHIN_S = 1.0  # what is said on the other host waits no longer than this for the look, which a kernel may refuse
CROSSED_S = 0.1  # what the backup has found out until then may have been on its way when it was said
HEARD_S = 5.0  # an application of the backup has begun no longer ago than this when we hear of it
HALF_OPEN_S = 60.0  # for so long a TCP repeats its SYN-ACK
PAST_LIVES: Final = 16  # a record that was overtaken is of one of the latest
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
        self.later = JoinedLater(out, flows, shared)
        self.instance = 0
        self._flows = flows
        self._past: deque[int] = deque(maxlen=PAST_LIVES)  # the lives before `instance`, of the same daemon
        self._shared = shared
        self._count = self._known = self._theirs = self._before = 0
        self._on, self._since = False, 0.0  # there is a backup, since when
        self._wait_s = TELL_FIRST_S
        self._said_until: float | None = None
        self._said_at: float | None = None  # by an operator, and our sockets have not been looked at since
        self._crosses_until = 0.0  # what the backup finds until then may have been before it was said
        self._equal = False  # it is we who have found out that the replica is whole, and what we count is after that
        self._lost = False  # our application was started anew, and the backup does not know so far
        self._anew = 0, Anew.NONE  # what the backup says so of itself, and in which life
        self._life: int | None = None  # of the backup's application
        self._left: int | None = None  # what it was when the last backup left
        self._met = False  # we have heard of it since the backup has joined
        self._began: float | None = None  # ours, not earlier than this; None: before anybody looked
        self._their_began: float | None = None
        self._fed_at = float("-inf")  # when the latest of the connections was opened that have sent something
        self._timer: TimerQueue[int] = TimerQueue()

    @property
    def reason(self) -> str:
        """Why nothing new can be protected; empty if it can."""
        if not self._shared:
            return ""
        instance, anew = self._anew
        if self._lost or (instance == self.instance and anew is not Anew.NONE):
            return ANEW_REASONS[Anew.SERVER if self._lost else anew]
        missed = max(self._count, self._theirs)
        return f"the replica has missed input of {missed} connections" if missed else ""

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
        self._fed_at = now
        self.out.counters["input-missed"] += 1
        self.out.mishaps.note("input missed by the replica", reason, flow, now)
        self._wait_s = TELL_FIRST_S
        self._tell(now)

    # ------------------------------------------------------------------------------------ the backup

    def _tell(self, now: float) -> None:
        said = self._said_until is not None and now < self._said_until
        if said and self.instance:
            self.out.record(WholeSaid(self.instance))
        elif not self._on:
            return
        elif self._lost and self.instance and self._said_at is None:
            self.out.record(BegunAnew(self.instance))
        elif self._count > self._known and self.instance:
            self.out.record(InputMissed(self.instance, self._count))
        elif not said:
            return
        self._timer.set(0, now + self._wait_s)
        self._wait_s = min(2 * self._wait_s, TELL_MAX_S)

    def on_whole(self, record: Whole, now: float) -> None:
        """The backup tells which life of its application this is, and what it knows."""
        if record.instance in self._past:
            return  # overtaken on the way: what was missed since then would be forgotten
        self.later.lives(record.instance, now)
        if record.instance != self.instance:
            first = not self.instance
            self._past.append(self.instance)
            if not first and not self._equal:
                self._begin_again(now)
            crossed = self._anew == (record.instance, Anew.REPLICA) and now < self._crosses_until
            self.instance = record.instance
            self._known = 0
            if (crossed or first) and not self._equal:
                self._tell(now)  # what was said was not about another life
            else:
                self._said_until, self._equal = None, False
        self._known = max(self._known, record.told)
        self._theirs = record.missed
        self._weigh(now)
        self._soon(now)

    def _soon(self, now: float) -> None:
        if self._on and (self._lost or self._count > self._known):
            self._timer.set_earlier(0, now + TELL_FIRST_S)

    def said(self, now: float) -> None:
        """An operator says that the replica's application is whole: tell the backup, also one whose application is not
        well so far. It is about a start of ours, too, that nobody has seen yet."""
        self._said_at, self._crosses_until = now, now + CROSSED_S
        self._say(now)

    def on_believed(self, record: Believed, now: float) -> None:
        """An operator has said so on the backup: a start of ours that the backup has not heard of was before that."""
        if self.instance and record.instance != self.instance:
            self._said_at = now

    @property
    def wants_look(self) -> bool:
        """Whether our application's sockets have not been looked at since an operator has said something."""
        return self._said_at is not None

    def looked(self, now: float) -> None:
        """They have been looked at, and what follows from that is done."""
        if self._said_at is not None:
            self._said_at = None
            if self._lost:
                self._say(now)

    def _say(self, now: float) -> None:
        self._said_until = now + SAID_S
        self._lost = False
        self._wait_s = TELL_FIRST_S
        self._tell(now)

    def _begin_again(self, now: float) -> None:
        """The replica's application is whole, or another: what has no replica now is from before."""
        self._count = self._known = self._theirs = self._before = 0
        self._timer.clear()
        self.out.concerns.over(SOURCE, CODE, now)
        for connection in self._flows.values():
            if connection.missing_from is not None:
                connection.miss_from(connection.own.rcv_nxt, counts=False)

    # ------------------------------------------------------------------------------------ applications that begin anew

    def closed(self, connection: GatedConnection) -> None:
        """A connection is over, or not ours any more."""
        self.later.closed(connection)
        if connection.own.rcv_nxt > 0:
            self._fed_at = max(self._fed_at, connection.opened_at)

    def begun(self, begun: Begun, now: float) -> bool:
        """Our application has begun to listen. Returns whether it has forgotten what the backup's may know."""
        self._began = begun.at
        if not begun.anew or not self._shared:
            return False
        self._lost = True
        if self._on:
            self._wait_s = TELL_FIRST_S
            self._compare(now)
            self._tell(now)
        return True

    def on_lives(self, record: Lives, now: float) -> None:
        """The backup tells which life of its application this is, and whether either has begun anew."""
        if record.instance in self._past:
            return
        if not self._met:
            self.later.meets(record.life, self._left, now)
        if record.life != self._life:
            # It was another one before, or there was none; but of what was there when it joined nothing is known.
            self._their_began = now - HEARD_S if self._met else None
            self._life = record.life
            self._lost = False  # it has begun anew, or joined, since ours has
        self._met = True
        anew = Anew(record.anew) if record.anew in frozenset(Anew) else Anew.REPLICA
        self._anew = record.instance, anew
        self._weigh(now)
        self._soon(now)

    def _weigh(self, now: float) -> None:
        """The backup may know that one of the two has begun anew."""
        instance, anew = self._anew
        if anew is not Anew.NONE and instance == self.instance:
            self._lost = False
            self._compare(now)

    def _compare(self, now: float) -> None:
        """Both applications may have begun anew, and have got nothing since."""
        if self._began is None or self._their_began is None:
            return
        since = min(self._began, self._their_began)
        if self._fed_at >= since or any(
            each.opened_at >= since and each.own.rcv_nxt > 0 for each in self._flows.values()
        ):
            return
        self._lost = False
        if self._said_until is not None and now < self._said_until:
            return
        self.out.log("warning", "both applications have begun anew, and nothing was sent since: they count as equal")
        self._count = self._known = 0
        self._equal = True
        self._say(now)

    # ------------------------------------------------------------------------------------ protection as a whole

    def start(self, now: float) -> None:
        """A backup is there: what is open now was there before."""
        self.later.start(now)
        self._on, self._since = True, now
        self._past.clear()  # a daemon that was restarted counts its lives once more
        self._before = self._known = 0  # and has forgotten what it was told
        self._met = False
        self._soon(now)
        self.out.concerns.over(SOURCE, CODE, now)
        for connection in self._flows.values():
            if connection.state is Gate.UNPROTECTED:
                connection.miss_from(connection.own.rcv_nxt, counts=False)

    def stop(self, now: float) -> None:
        """There is no backup: nothing is missing anywhere. What its application has missed is remembered."""
        self.later.stop(now)
        if self._on:
            self._left = self._life
        self._on = False
        self._past.clear()
        self._timer.clear()
        for connection in self._flows.values():
            connection.miss_from(None)

    def on_timer(self, now: float) -> None:
        """Tell again."""
        if self._said_at is not None and now - self._said_at >= LOOK_WITHIN_S:
            self.looked(now)
        for _ in self._timer.pop_due(now):
            self._tell(now)

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        due = self._timer.next()
        if self._said_at is None:
            return due
        return min(self._said_at + LOOK_WITHIN_S, float("inf") if due is None else due)
