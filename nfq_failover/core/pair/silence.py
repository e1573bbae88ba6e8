"""What a host does about a peer that it does not hear: which silence says something, and when this host may act alone.

It may be a peer that nobody has heard since this host has begun to wait, a primary that this host shadows, or the
backup. The membership says which, and changes state as it is told here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from nfq_failover.core.pair.pact import Pact
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.reach import Reach
from nfq_failover.core.pair.roles import Do, Input, State
from nfq_failover.core.settings import Settings

ALONE_RETRY_FACTOR = 10  # the next attempt of a host that nobody answers comes after this many boot waits
TIME_IS_OVER = "the backup is silent, and its time to take over has passed"
TARGET_RETRY_S = 1.0  # between two checks of our own link before a release
CUT_OFF_RETRY_S = 0.1  # between two checks of our own link that was down, before a takeover
BOTH_ASK_S = 0.2  # how long a backup still asks after the primary has come back: a few questions and answers


class Silence:
    """Weighs the peer's silence. Times are seconds of our monotonic clock.

    `go(input, reason)` changes the membership's state, `act(action)` has something done, `explain(reason)` says why the
    state lasts. `valid_until`, where a method takes it: until when this host may continue the primary's connections.
    """

    def __init__(
        self,
        settings: Settings,
        peer: PeerView,
        pact: Pact,
        reach: Reach,
        go: Callable[[Input, str], None],
        act: Callable[[Do], None],
        explain: Callable[[str], None],
        now: float,
    ) -> None:
        self._settings = settings
        self._peer = peer
        self._pact = pact
        self._reach = reach
        self._go = go
        self._act = act
        self._explain = explain
        self._boot = now
        self._detection_s = settings.detection_ms / 1000
        self._next_alone = now + (settings.boot_wait_ms + settings.fence_delay_ms) / 1000
        self._resumed = now
        self._act_at: float | None = None  # the end of the fence delay
        self._both_until: float | None = None  # until then we still ask the witness, as does the primary that is back
        self._wait_until: float | None = None  # for the witness's word on what a yielding primary has let go
        self._next_check = 0.0
        self._checking = False  # before a release

    def state_changed(self) -> None:
        """Forget what was waited for in the state before."""
        self._act_at = self._wait_until = self._both_until = None
        self._checking = False

    def wait_anew(self, now: float) -> None:
        """This host begins to wait once more."""
        self._next_alone = now + self._settings.boot_wait_ms / 1000

    def resumed(self, now: float) -> None:
        """Note that this host does not know what was done in the meantime: what was heard before says nothing."""
        self._resumed = now

    @property
    def resumed_at(self) -> float:
        """When this host has begun to doubt, or has started."""
        return self._resumed

    @property
    def waits_for_word(self) -> bool:
        """Whether the witness's word is waited for on what a yielding primary has let go."""
        return self._wait_until is not None

    def wait_for_word(self, now: float) -> bool:
        """Wait for the witness's word on what a yielding primary has let go. Returns whether there is still time."""
        if self._wait_until is None:
            self._wait_until = now + self._settings.lease_ms / 1000
        return now < self._wait_until

    def primary_serves(self) -> None:
        """The primary has not yielded after all."""
        self._wait_until = None

    def wait_alone(self, now: float) -> None:
        """Nobody serves, and nobody answers."""
        if now < self._next_alone or not self._peer.lost(now):
            return
        if self._settings.boot_alone == "fence" and self._settings.has_fence:
            self._next_alone = now + TARGET_RETRY_S
            self._checking = True
            self._act(Do.CHECK_LINK)
        else:
            self._next_alone = now + ALONE_RETRY_FACTOR * self._settings.boot_wait_ms / 1000
            self._explain("the peer does not answer; this host will not serve alone unless told so (claim)")

    def _fence_alone(self, ok: bool, detail: str, now: float) -> None:
        """Fence a peer that nobody has heard since this host began to wait, unless it is we who can't be heard."""
        self._checking = False
        if not ok or now < self._reach.watched_from:
            self._explain(f"the peer does not answer, and this host is cut off: {detail or self._reach.detail}")
        elif self._peer.lost(now):
            self._next_alone = now + ALONE_RETRY_FACTOR * self._settings.boot_wait_ms / 1000
            self._go(Input.ALONE, "nobody answers: fencing the peer")

    def silent_primary(self, again: bool, valid_until: float, now: float) -> None:
        """The primary is silent. That says something of it only if we could have heard it, and it us."""
        reach = self._reach
        if reach.detail:
            # What the last attempt has found is no answer to this one.
            if (not reach.waiting or reach.watched_from == inf) if again else now > valid_until:
                self._go(Input.LINK_DOWN, f"this host is cut off: {reach.detail}")
                return
            self._explain(f"nothing is done to the primary while this host is cut off: {reach.detail}")
        if reach.passed:
            if self._act_at is not None and now >= max(self._act_at, reach.counts_from):
                self._act_alone()
        elif reach.watched_from < inf and not reach.waiting and now >= self._next_check:
            reach.again()
            self._act(Do.CHECK_LINK)

    def asking(self, now: float) -> None:
        """The witness is asked for the right to act alone, or for what a yielding primary has let go."""
        pact = self._pact
        if self._wait_until is not None:
            if now >= self._wait_until:
                self._go(Input.PEER_YIELDED, "the primary has yielded, and the witness does not answer")
            elif pact.ask(now):
                self._act(Do.ASK)
            return
        heard = now - self._peer.heard_at <= self._detection_s  # a new session alone says nothing yet
        if not pact.granted and heard and not self._peer.lost(now) and not self._both_ask(now):
            self._go(Input.PEER_BACK, "the primary is back, and the witness may have been asked")
        elif not self._reach.detail and pact.ask(now):
            self._act(Do.ASK)
        elif not self._settings.has_fence and pact.outlasted(now):
            self._go(Input.OUTLASTED, "granted by the witness; the primary's lease has ended")

    def _both_ask(self, now: float) -> bool:
        """The primary is back, but in doubt: it can't go on without the witness either, which may have decided for us.
        If we gave up at once nobody could go on. That we are heard does not matter: in this state we don't vote."""
        if self._peer.state is not State.DOUBT:
            return False
        if self._both_until is None:
            self._both_until = now + max(self._detection_s, BOTH_ASK_S)
        return now < self._both_until

    def lost_backup(self, generation: int, in_doubt: bool, now: float) -> None:
        """The backup is silent: nothing that it lacks is released while it may still take over."""
        pact, peer = self._pact, self._peer
        votes = not pact.held or peer.votes(generation)
        if not in_doubt and votes and peer.answers(now):
            self._go(Input.PEER_BACK, "")
            return
        if pact.ask(now):
            self._act(Do.ASK)
        progress = peer.monitor.last_progress
        since = self._boot if progress is None else progress
        if in_doubt:
            since = max(since, self._resumed)
        over = now - since >= peer.release_after_s()
        if pact.held:
            # A backup that has not said the pact back may be one that does not ask.
            if pact.granted and (pact.confirmed or over):
                self._go(Input.GRANTED, "granted by the witness: the backup can't take over")
        elif over and self._settings.checks_target:
            if now >= self._next_check:
                self._next_check = now + TARGET_RETRY_S
                self._checking = True
                self._act(Do.CHECK_LINK)
        elif over:
            self._go(Input.BACKUP_HARMLESS, TIME_IS_OVER)

    def link_checked(self, state: State, ok: bool, detail: str, valid_until: float, now: float) -> None:
        """Take the answer to `Do.CHECK_LINK`: we could talk to a peer that lives, or we could not."""
        if state in (State.BACKUP_LOST, State.DOUBT):
            if self._checking and ok:
                self._go(Input.BACKUP_HARMLESS, TIME_IS_OVER)
            elif self._checking:
                self._explain(f"nothing is released: {detail}")
            return
        if state is State.WAITING and self._checking:
            self._fence_alone(ok, detail, now)
        if state not in (State.CHECKING, State.RETRYING):
            return
        self._reach.asked(ok, detail, now)
        self._next_check = now + CUT_OFF_RETRY_S
        if ok:
            self._act_at = now + self._settings.fence_delay_ms / 1000
            if self._pact.held and not self._settings.has_fence:
                self._act_at = max(self._act_at, self._pact.ask_from(self._peer.heard_at))
            wait_s = max(self._act_at, self._reach.counts_from) - now
            if 0 < wait_s < inf:
                self._explain(f"nothing is done to the primary for another {wait_s:.2f} s")
        self.silent_primary(state is State.RETRYING, valid_until, now)

    def _act_alone(self) -> None:
        if self._pact.held:
            self._go(Input.ASK, "asking the witness")
        elif self._settings.has_fence:
            self._go(Input.LINK_UP, "fencing the primary")
        elif self._settings.split_brain_accepted:
            self._go(Input.ACCEPTED, "no fence; a split brain is accepted")
        else:
            self._go(Input.NO_FENCE, "there is no fence, and split_brain is not accepted")
