"""Whether this host's application has got all that the clients have sent: if not, what it answers may be wrong, also on
connections whose own replica is in step.

It may have *missed input*. The primary knows most of it: it sees what clients send on connections that have no replica
(core/gate/missed.py), and says so. Here is added what was logged and could not be delivered. An application that has
missed input counts as whole again when it is restarted after that was said, since whoever restarts it then knows why:
none of the listening sockets is left that were seen next after it had missed something (so they are looked at at once
then).

Or it was *started anew* when there was no reason to, it or the server's, and one of them has forgotten what the other
one knows. What it loads when it starts nobody can see, so this is not over by another start, unless that is the other
one's and nothing was sent between: the primary judges that, and says so.

Or an operator says that it is whole. That is about everything that had happened until then, also about a start that
nobody has seen yet: so the sockets are looked at before the word is taken. Each life between has a number (`instance`),
by which the primary knows what its count is about.

A host that has taken over has nothing to become equal to: what its application lacks is lost, or the other host has it,
and that is said in other words, as a warning.
"""

from __future__ import annotations

from zlib import crc32

from nfq_failover.core.application import ANEW_REASONS
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.outbox import Outbox
from nfq_failover.wire.records import Anew, BegunAnew, Believed, InputMissed, Lives, Whole, WholeSaid
from nfq_failover.wire.segment import FlowKey

TELL_EVERY_S = 1.0
CODE = "input-missed"
SOURCE = "wholeness"
CURE = (
    "make the application here equal to the one that serves, or restart it, if it then takes over the other's state; "
    "after the former: nfq-failover replica-is-whole"
)
ANEW_CODE = "application-anew"
ANEW_CURE = (
    "if it has loaded the other one's state: nfq-failover replica-is-whole; else give it that state first, or restart "
    'the other one, too, while nobody sends anything; if clients change nothing that others see: state = "none"'
)
LOST_CURE = (
    "see whether what these clients have sent matters ('went wrong' in status), and whether the other host's "
    "application still has it; after that: nfq-failover replica-is-whole"
)
ANEW_LOST = {
    Anew.REPLICA: "the application was started anew before this host took over, and the one that served then was not",
    Anew.SERVER: "the application that served before this host took over had been started anew, and this one was not",
}
ANSWER_S = 2.0  # who restarts an application sooner than this after it has missed something does not know of it
LOOK_WITHIN_S = 1.0  # a word waits no longer than this for the look, which a kernel may refuse
_HERE, _THERE = "an operator says so", "the primary says so"
_STEP = 0x9E3779B1  # from one number to the next: any odd number reaches them all


class Wholeness:
    """What this host's application has missed. `shared`: its connections have state in common."""

    def __init__(self, out: Outbox, shared: bool) -> None:
        self.out = out
        self._shared = shared
        self.instance = 0  # 0: its sockets have not been looked at yet
        self._told = 0
        self._own: set[int] = set()  # connections, by number
        self._unsaid: list[tuple[FlowKey, str]] = []
        self._reason = ""
        self._serves = False
        self._at_miss: frozenset[int] | None = None  # not looked at since it has missed something
        self._missed_at = 0.0
        self._life = 0
        self._anew = Anew.NONE
        self._word = ""  # somebody has said that it is whole: to be taken when its sockets have been looked at
        self._word_at = 0.0
        self._believed = False  # this life has begun with what an operator has said on this host
        self._next = 0.0

    @property
    def missed(self) -> int:
        """Of how many connections it has missed input, at the least: both hosts may have seen the same one. Of one at
        least if one of the two was started anew."""
        return max(self._told, len(self._own), int(self._anew is not Anew.NONE))

    @property
    def wants_look(self) -> bool:
        """Whether its sockets have not been looked at since it has missed something, or since somebody has said that it
        is whole."""
        return bool(self._word) or self._unseen

    @property
    def _unseen(self) -> bool:
        return self._at_miss is None and max(self._told, len(self._own)) > 0

    # ------------------------------------------------------------------------------------ what is missing

    def lacks(self, conn: int, flow: FlowKey, reason: str) -> None:
        """What the client of a connection has sent could not be delivered. `review` sees to it."""
        if conn not in self._own:
            self._own.add(conn)
            self.out.counters["input-missed-here"] += 1
            self._unsaid.append((flow, reason))
            self._at_miss = None

    def review(self, now: float) -> None:
        """Say what is not said yet, and wait no longer for a look that does not come."""
        if self._word and now - self._word_at >= LOOK_WITHIN_S:
            self.looked(now)
        for flow, reason in self._unsaid:
            self.out.mishaps.note("input missed here", reason, flow, now)
            self._note(reason, now)
        self._unsaid.clear()

    def on_missed(self, record: InputMissed, now: float) -> None:
        """The primary tells what was sent on connections that have no replica here."""
        if record.instance == self.instance and record.count > self._told:
            self._told = record.count
            self._note("the primary has told so", now)
        self._tell()

    def _note(self, reason: str, now: float) -> None:
        self._at_miss, self._reason, self._missed_at = None, reason, now
        self._concern(now)
        self._next = now

    def serve(self, serves: bool, now: float) -> None:
        """From now on this host's application is the one that the other's has to be equal to, or it is not any more."""
        if serves is not self._serves:
            self._serves = serves
            self._concern(now)

    def _concern(self, now: float) -> None:
        """Say what is known to be missing."""
        if not self._shared:
            return
        weight = Weight.WARNING if self._serves else Weight.DEGRADED
        if missed := max(self._told, len(self._own)):
            what = f"the replica has missed input of {missed} connections ({self._reason})"
            if self._serves:
                what = f"the application lacks input of {missed} connections of before the takeover ({self._reason})"
            self.out.concerns.raised(SOURCE, Concern(CODE, weight, what, LOST_CURE if self._serves else CURE), now)
        if self._anew is not Anew.NONE:
            what = (ANEW_LOST if self._serves else ANEW_REASONS)[self._anew]
            cure = LOST_CURE if self._serves else ANEW_CURE
            self.out.concerns.raised(SOURCE, Concern(ANEW_CODE, weight, what, cure), now)

    # ------------------------------------------------------------------------------------ whole again

    def sockets(self, inodes: frozenset[int], now: float) -> None:
        """The application's listening sockets, as they are now; none: it is not there."""
        if not self.instance:
            self.instance = crc32(repr(sorted(inodes)).encode()) or 1
        if self._unseen:
            # What was seen before proves nothing: this life of the application may have begun before it missed that.
            self._at_miss = inodes

    def begun(self, life: int, inodes: frozenset[int], anew: bool, watched: bool, now: float) -> bool:
        """The application has begun to listen. `anew`: it has followed another one. `watched`: the clients of a
        primary have been talking to that one, for all we know. Returns whether it has come as a surprise."""
        self._life = life
        self._next = now
        at_miss = self._at_miss
        answered = at_miss is not None and not inodes & at_miss and now - self._missed_at >= ANSWER_S
        if not anew or not watched or not self._shared:
            if self._anew is Anew.NONE and self.missed and at_miss is not None and not inodes & at_miss:
                self._whole("it has been started" if not anew else "it has been restarted", now)
            return False
        if at_miss and answered and self._anew is Anew.NONE:
            self._whole("it has been restarted", now)
            return False
        self._forget(now)
        if not self._word:  # else that is what it is about
            self._differ(Anew.REPLICA, now)
        return True

    def on_anew(self, record: BegunAnew, now: float) -> None:
        """The primary's application was started anew, and ours was not."""
        if record.instance == self.instance and self._shared and self._anew is Anew.NONE:
            self._differ(Anew.SERVER, now)
        self._tell()

    def _differ(self, anew: Anew, now: float) -> None:
        self._anew = anew
        self.out.counters["application-anew"] += 1
        self.out.mishaps.note("state may be lost", ANEW_REASONS[anew], None, now)
        self._concern(now)
        self._next = now

    def said(self, now: float) -> None:
        """An operator says that the application is whole."""
        self._word, self._word_at = _HERE, now

    def on_said(self, record: WholeSaid, now: float) -> None:
        """The primary says so: an operator has said it there, or both applications have begun with nothing."""
        if record.instance == self.instance and not self._word:
            self._word, self._word_at = _THERE, now
        self._tell()

    def looked(self, now: float) -> None:
        """Its sockets have been looked at, and what follows from that is done."""
        word, self._word = self._word, ""
        if word:
            self._tell()  # a primary that has not heard of this life yet could not tell what the word is about
            self._whole(word, now)
            self._believed = word == _HERE

    def _whole(self, why: str, now: float) -> None:
        if self.missed:
            self.out.log("warning", "the application counts as whole", reason=why, missed=self.missed)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Whatever has been missed is no matter any more."""
        self._told = 0
        self._own.clear()
        self._unsaid.clear()
        self._at_miss = None  # another start is no answer to what it has missed
        self._anew = Anew.NONE
        self._believed = False
        self.instance = (self.instance + _STEP) & 0xFFFFFFFF or 1
        self.out.concerns.over(SOURCE, CODE, now)
        self.out.concerns.over(SOURCE, ANEW_CODE, now)
        self._next = now

    # ------------------------------------------------------------------------------------ the primary

    def _tell(self) -> None:
        if self.instance:
            if self._believed:
                self.out.record(Believed(self.instance))
            self.out.record(Lives(self.instance, self._life, self._anew))
            self.out.record(Whole(self.instance, self._told, self.missed))

    def on_timer(self, now: float) -> None:
        """Tell the primary, which serves and hears us."""
        if now >= self._next:
            self._next = now + TELL_EVERY_S
            self._tell()
