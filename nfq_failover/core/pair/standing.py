"""Where this host stands in the pair, and what follows from each change of its state."""

from __future__ import annotations

from collections import deque
from math import inf

from nfq_failover.core.pair.actions import Change, Do
from nfq_failover.core.pair.health import Health
from nfq_failover.core.pair.monitor import PeerMonitor
from nfq_failover.core.pair.pact import Pact
from nfq_failover.core.pair.retry import Retries
from nfq_failover.core.pair.roles import UNHEALTHY, Candidate, Input, Role, State, next_state
from nfq_failover.core.settings import Settings
from nfq_failover.wire.heartbeat import HeartbeatBody

FOLLOWING = (State.SHADOWING, State.CHECKING)  # may still find that the primary is alive


class Standing:
    """State, epoch and generation of this host; `actions` and `changes` are drained by the node.

    `generation` numbers the times that a primary began to protect: the backup drops what it has from an earlier one and
    says the number back before anything is protected.
    """

    def __init__(self, settings: Settings, epoch: int, served: bool, now: float) -> None:
        self.settings = settings
        self.state = State.WAITING
        self.reason = "waiting for the peer"
        self.epoch = epoch
        self.stored_epoch = epoch
        self.served = served
        self.generation = 0
        self.peer: HeartbeatBody | None = None
        self.peer_epoch = 0
        self.actions: deque[Do] = deque()
        self.changes: deque[Change] = deque()
        self.rules_ready = False
        self.invalid = True
        self.health = Health(settings)
        self.pact = Pact(settings)
        self._boot = now
        self._next_alone = now + (settings.boot_wait_ms + settings.fence_delay_ms) / 1000
        self._last = now
        self._resumed = now
        self._valid_until = 0.0
        self._act_at: float | None = None  # the end of the fence delay
        self._both_until: float | None = None  # we ask the witness on, though the primary is back: it asks, too
        self._wait_until: float | None = None  # for the witness's word on what a primary that yields has let go
        self._retries = Retries(settings)
        self._next_check = 0.0
        self._checking = False  # before a release
        self._hushed = False
        self._heard_at = now

    # ------------------------------------------------------------------------------------ views

    @property
    def lease_until(self) -> float:
        """When we have to fall silent."""
        return self.pact.lease_until

    @property
    def role(self) -> Role:
        """The role that goes with the state."""
        return self.state.role

    @property
    def candidate(self) -> Candidate:
        """What we bring into an election."""
        settings = self.settings
        shadowing = self.state.role is Role.BACKUP and not self.invalid
        return Candidate(shadowing, self.stored_epoch, self.served, settings.prefer_primary, settings.name)

    @property
    def flags(self) -> int:
        """The heartbeat's flags."""
        return self.candidate.flags() | (0 if self.health.well else UNHEALTHY)

    @property
    def _peer_well(self) -> bool:
        return self.peer is not None and not self.peer.flags & UNHEALTHY

    def answers(self, monitor: PeerMonitor, now: float) -> bool:
        """The peer hears us and we hear it."""
        return self._lately(monitor, monitor.heard_by_peer_at, now)

    def serves_alone(self, monitor: PeerMonitor, now: float) -> bool:
        """This host serves, unprotected, and nobody is there to hand the service over to. A peer whose session has just
        begun is there: it may have heard that we serve, and would fence us for our silence."""
        latest = monitor.began if monitor.heard_by_peer_at is None else monitor.heard_by_peer_at
        return self.state is State.UNPROTECTED and not self._lately(monitor, latest, now)

    def _lately(self, monitor: PeerMonitor, heard: float | None, now: float) -> bool:
        limit = (self.settings.detection_ms + 2 * self.settings.heartbeat_interval_ms) / 1000
        return not monitor.lost(now) and heard is not None and now - heard <= limit

    def _follows(self, monitor: PeerMonitor, now: float) -> bool:
        """The backup has heard us lately, and is not about to take over."""
        shadowing = self.peer is not None and State(self.peer.state) is State.SHADOWING
        return shadowing and self.answers(monitor, now)

    def _votes(self) -> bool:
        """The peer's latest heartbeat is that of a backup that follows us in this generation."""
        peer = self.peer
        return peer is not None and State(peer.state) in FOLLOWING and peer.generation == self.generation

    def _release_after_s(self) -> float:
        """The greater of both hosts' settings: their fences may differ."""
        theirs = self.peer.release_after_ms if self.peer is not None else 0
        return max(self.settings.release_after_ms, theirs) / 1000

    def may_continue(self, now: float) -> bool:
        """Whether the primary can't have acknowledged anything that we lack."""
        sure = self.settings.split_brain_accepted or self.pact.granted
        return not self.invalid and (sure or now <= self._valid_until)

    # ------------------------------------------------------------------------------------ transitions

    def _go(self, given: Input, reason: str) -> None:
        before, after = self.state, next_state(self.state, given)
        self.state = after
        self.reason = reason
        self.changes.append(Change(before, after, given, reason))
        self._act_at = self._wait_until = self._both_until = None
        self._checking = False
        if after is State.REFUSED:
            # Not where the witness may have let the primary act alone.
            undecided = not self.pact.held or self.pact.granted
            useful = undecided and given is not Input.NO_FENCE
            self._retries.refused(self._last, useful, given is not Input.PEER_BACK)
        self._enter(before, after)
        if after in (State.UNPROTECTED, State.PROTECTED) and self._hushed:
            self.actions.append(Do.SPEAK)
        if after is not State.DOUBT:
            self._hushed = False
        if self.state not in (State.PROTECTED, State.BACKUP_LOST):
            self.pact.lease_until = inf

    def _enter(self, before: State, after: State) -> None:
        act = self.actions.append
        if after in (State.CHECKING, State.RETRYING):
            act(Do.CHECK_LINK)
        elif after is State.ASKING:
            self.pact.outlast(self._heard_at)
        elif after in (State.FENCING, State.BOOT_FENCING):
            act(Do.FENCE)
        elif after in (State.STORING, State.CLAIMING):
            self.epoch += 1
            act(Do.STORE)
        elif after is State.UNPROTECTED:
            if before is State.STORING:
                act(Do.TAKE_OVER)
            elif before is State.CLAIMING:
                act(Do.SERVE)
            elif before is State.WAITING:
                act(Do.RESUME)
            else:
                act(Do.RELEASE)
            self.pact.end()
        elif after is State.ARMING:
            act(Do.ARM)
        elif after is State.PROTECTED:
            if before is State.ARMING:
                self.pact.propose(self.epoch, self._last)
                act(Do.PROTECT)
            else:
                self.pact.reunited()
            self.pact.renew()
        elif after is State.SHADOWING and before is not State.CHECKING:
            self.generation, self.invalid, self._valid_until = 0, True, 0.0
            self._retries.begin_anew()
            self.pact.void()
        elif after is State.YIELDED or (after is State.WAITING and before.role is Role.PRIMARY):
            act(Do.SILENCE)
            self.generation, self.invalid = 0, True
            self.pact.void()
        elif after is State.LEAVING and before.role is Role.PRIMARY:
            act(Do.SILENCE)
        elif after is State.REFUSED:
            self.generation = 0  # a primary that hears of it acknowledges what we lack
            self.pact.end()
            if not self.invalid:
                self.invalid = True
                act(Do.INVALIDATE)
