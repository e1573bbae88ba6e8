"""This host's place in the pair: turns heartbeats, silence and answers into changes of state and actions.

It is pure bookkeeping over the table in roles.py. The node carries the actions out.
"""

from __future__ import annotations

from collections import deque
from math import inf

from nfq_failover.core.pair.health import Health
from nfq_failover.core.pair.pact import Pact
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.reach import Reach
from nfq_failover.core.pair.retries import Retries
from nfq_failover.core.pair.roles import UNHEALTHY, Candidate, Change, Do, Input, Role, State, next_state
from nfq_failover.core.pair.silence import Silence
from nfq_failover.core.settings import Settings
from nfq_failover.wire.heartbeat import HeartbeatBody

BACKUP_UNHEALTHY = "the backup's application has failed"
_NOT_SERVING = (Role.JOINING, Role.LEAVING)
_PROTECTING = (State.PROTECTED, State.BACKUP_LOST, State.DOUBT)
_CLAIMABLE = (State.WAITING, State.REFUSED, State.RETRYING, State.ASKING, State.YIELDED)


class Membership:
    """The membership of one host in a pair: its state, epoch and generation. The node drains `actions` and `changes`.

    `generation` numbers the times that a primary began to protect: the backup drops what it has from an earlier one and
    says the number back before anything is protected. `invalid`: the shadows of this generation can't be continued.
    `peer` is the other host as its heartbeats show it, `reach` what we know of our own way to it.
    """

    def __init__(self, settings: Settings, peer: PeerView, epoch: int, served: bool, now: float) -> None:
        self.settings = settings
        self.peer = peer
        self.state = State.WAITING
        self.reason = "waiting for the peer"
        self.epoch = epoch
        self.stored_epoch = epoch
        self.served = served
        self.generation = 0
        self.actions: deque[Do] = deque()
        self.changes: deque[Change] = deque()
        self.rules_ready = False
        self.invalid = True
        self.health = Health(settings)
        self.pact = Pact(settings)
        self.reach = Reach(settings)
        self._detection_s = settings.detection_ms / 1000
        self._interval_s = settings.heartbeat_interval_ms / 1000
        self._last = now
        self._valid_until = 0.0
        self._retries = Retries(settings)
        self._held_back = ""  # why nothing may be protected
        self._address_left = False  # to whoever else answers for it, as our lease has ended
        self.silence = Silence(
            *(settings, peer, self.pact, self.reach, self._go, self.actions.append, self._explain), now
        )

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
        """The flags of our heartbeat."""
        return self.candidate.flags() | (0 if self.health.well else UNHEALTHY)

    def serves_alone(self, now: float) -> bool:
        """Whether this host serves, unprotected, and nobody is there to hand the service over to."""
        return self.state is State.UNPROTECTED and not self.peer.is_there(now)

    def backup_can_go_on(self, now: float) -> bool:
        """Whether the backup has followed us lately, holds this generation of connections, and is well."""
        return self.state is State.PROTECTED and self.peer.well and self.peer.follows(now)

    def may_continue(self, now: float) -> bool:
        """Whether the primary can't have acknowledged anything that we lack."""
        sure = self.settings.split_brain_accepted or self.pact.granted
        return not self.invalid and (sure or now <= self._valid_until)

    def hold_back(self, why: str) -> None:
        """Protect nothing, for this reason; with an empty one, as soon as a backup is there."""
        self._held_back = why

    def _explain(self, reason: str) -> None:
        """Say why the state lasts."""
        self.reason = reason

    # ------------------------------------------------------------------------------------ transitions

    def _go(self, given: Input, reason: str) -> None:
        before, after = self.state, next_state(self.state, given)
        self.state = after
        self.reason = reason
        self.changes.append(Change(before, after, given, reason))
        self.silence.state_changed()
        if given in (Input.PEER_BACK, Input.PEER_SERVES):
            self.reach.heard()
        if after is State.REFUSED:
            # Not where the witness may have let the primary act alone.
            undecided = not self.pact.held or self.pact.granted
            useful = undecided and given is not Input.NO_FENCE
            self._retries.refused(self._last, useful, given is not Input.PEER_BACK)
        self._enter(before, after)
        if after in (State.UNPROTECTED, State.PROTECTED) and self._address_left:
            self.actions.append(Do.TAKE_ADDRESS)
        if after is not State.DOUBT:
            self._address_left = False
        if self.state not in (State.PROTECTED, State.BACKUP_LOST):
            self.pact.lift_lease()

    def _enter(self, before: State, after: State) -> None:
        act = self.actions.append
        if after in (State.CHECKING, State.RETRYING):
            self.reach.again()
            act(Do.CHECK_LINK)
        elif after is State.ASKING:
            self.pact.outlast(self.peer.heard_at)
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

    # ------------------------------------------------------------------------------------ inputs

    def heard(self, now: float) -> None:
        """Take the heartbeat that the peer's view has just taken."""
        peer, said = self.peer, self.peer.said
        if said is None:
            return
        role = Role(said.role)
        if role not in _NOT_SERVING:
            self.silence.primary_serves()
        if role is Role.PRIMARY:
            self._peer_serves(said, peer.epoch)
        elif self.role is Role.PRIMARY:
            if said.echo_ms and peer.votes(self.generation):
                self.pact.vote(said.echo_ms / 1000, now)
            self._peer_follows(said, role, peer.answers(now))
            if self.state in (State.PROTECTED, State.BACKUP_LOST):
                self.pact.said_back(said.pact)
                self.pact.renew()
        elif self.state in (State.SHADOWING, State.CHECKING, State.ASKING):
            if role in _NOT_SERVING:
                self._peer_yields(now)
        elif self.state in (State.WAITING, State.REFUSED) and peer.answers(now):
            self._elect(said)
        if self.state is State.DOUBT:
            at = peer.monitor.heard_by_peer_at
            if at is not None and at >= self.silence.resumed_at and peer.follows(now):
                self._go(Input.REASSURED, "the peer has answered after our pause")

    def _peer_yields(self, now: float) -> None:
        """The primary does not serve any more, so it lets nothing go from now on. Whether it has before, because it had
        not heard us for long, the witness knows: with a grant we go on however late it is (see core/pair/pact.py)."""
        if self.may_continue(now):
            self._valid_until = inf
        elif self.pact.held and not self.invalid:
            if self.state is not State.ASKING:
                self._go(Input.UNSURE, "the primary has restarted or leaves: asking the witness what it has let go")
            if self.silence.wait_for_word(now):
                return
        self._go(Input.PEER_YIELDED, "the primary has restarted or leaves")

    def _peer_serves(self, said: HeartbeatBody, epoch: int) -> None:
        if self.role is Role.PRIMARY:
            if epoch > self.epoch or (epoch == self.epoch and self.peer.name < self.settings.name):
                self._go(Input.OUTDATED, f"the peer serves in epoch {epoch}, ours was {self.epoch}")
            return
        if epoch < self.epoch:
            return  # it will take a later epoch once it has heard what we have stored
        if self.state in (State.WAITING, State.BOOT_FENCING, State.CLAIMING, State.REFUSED, State.RETRYING):
            self._go(Input.PEER_SERVES, "")
        if self.state not in (State.SHADOWING, State.CHECKING):
            return
        if epoch != self.epoch or self.served:
            self.epoch, self.served = epoch, False
            self.actions.append(Do.STORE)
        if State(said.state) is State.ARMING and said.generation != self.generation and self.health.well:
            # Only while it arms: one that protects already has connections that we lack, and must hear so.
            self.generation = said.generation
            self.invalid = False
            self.pact.void()
            self.actions.append(Do.SHADOW)
        if State(said.state) is State.UNPROTECTED and not self.invalid:
            self.invalid = True
            self.pact.void()
            self.actions.append(Do.INVALIDATE)
        if said.generation != self.generation or self.invalid:
            return
        if State(said.state) in _PROTECTING:
            self.pact.adopt(said.pact, said.lease_ms)
        self._note_validity()

    def _peer_follows(self, said: HeartbeatBody, role: Role, answers: bool) -> None:
        """We serve, the peer doesn't."""
        if said.stored_epoch > self.epoch:
            self.epoch = said.stored_epoch + 1
            self.actions.append(Do.STORE)
        peer_state = State(said.state)
        if self.state is State.UNPROTECTED:
            if peer_state is not State.SHADOWING or not answers or not self.peer.well:
                return
            if self._held_back:
                self.reason = self._held_back
            else:
                self.generation += 1
                self.rules_ready = False
                self._go(Input.BACKUP_JOINED, "arming the protection")
        elif self.state is State.ARMING:
            if role is not Role.BACKUP:
                self._go(Input.BACKUP_HARMLESS, "the backup has restarted")
            elif not self.peer.well:
                self._go(Input.BACKUP_HARMLESS, BACKUP_UNHEALTHY)
            elif self._held_back:
                self._go(Input.BACKUP_HARMLESS, self._held_back)
            elif self.rules_ready and said.generation == self.generation:
                self._go(Input.ARMED, "")
        elif role is not Role.BACKUP:
            self._go(Input.BACKUP_HARMLESS, "the backup has restarted")
        elif peer_state is State.REFUSED:
            self._go(Input.BACKUP_HARMLESS, "the backup has refused to take over")
        elif said.generation != self.generation:
            self._go(Input.BACKUP_HARMLESS, "the backup has lost its state" if self.peer.well else BACKUP_UNHEALTHY)

    def _elect(self, said: HeartbeatBody) -> None:
        """Neither serves: both compare the same two candidates."""
        if State(said.state) not in (State.WAITING, State.REFUSED, State.LEAVING):
            return
        theirs = Candidate.from_heartbeat(said.flags, said.stored_epoch, self.peer.name)
        if State(said.state) is State.LEAVING or self.candidate.goes_before(theirs):
            self.epoch = max(self.epoch, said.stored_epoch)
            self._go(Input.ELECTED, "elected")

    def session_started(self) -> None:
        """Note that a session has begun: the peer's daemon has restarted, and has nothing of ours. A pact is kept: what
        the witness has decided about it tells what the old daemon may have let go."""
        if self.role is Role.BACKUP:
            self.generation = 0  # the peer counts from the beginning again
        if self.state is State.ARMING or self.state in _PROTECTING:
            self._go(Input.BACKUP_HARMLESS, "the backup has restarted")

    def tick(self, now: float) -> None:
        """Let time pass. Everything that was received before `now` has been handled."""
        pause, self._last = now - self._last, now
        if pause > self._interval_s:  # not all of it is excused: a loop that is always late must detect silence, too
            self.peer.monitor.excuse(pause - self._interval_s, now)
        paused = pause > self._detection_s and not self.peer.follows(now)
        if paused and self.state in (State.PROTECTED, State.BACKUP_LOST, State.DOUBT):
            self.silence.resumed(now)
            self._go(Input.PAUSED, f"this host was paused for {pause:.2f} s")
            return
        self._watch_health(now)
        state = self.state
        if state is State.WAITING:
            self.silence.wait_alone(now)
        elif state is State.SHADOWING:
            if self.peer.lost(now):
                self._go(Input.PEER_SILENT, "no heartbeat from the primary")
        elif state in (State.CHECKING, State.RETRYING):
            if not self.peer.lost(now):
                self._go(Input.PEER_BACK, "")
            else:
                self.silence.silent_primary(state is State.RETRYING, self._valid_until, now)
        elif state is State.ASKING:
            self.silence.asking(now)
        elif state is State.REFUSED:
            if self._retries.due(now) and self.peer.lost(now) and now >= self.reach.watched_from:
                self._go(Input.RETRY, "the primary is still silent")
        elif state is State.ARMING:
            if not self.peer.answers(now):
                self._go(Input.PEER_SILENT, "the backup is silent")
        elif state is State.PROTECTED and not self.peer.answers(now):
            self._go(Input.PEER_SILENT, "no heartbeat from the backup")
        if self.state in (State.BACKUP_LOST, State.DOUBT):
            self.silence.lost_backup(self.generation, self.state is State.DOUBT, now)

    def _watch_health(self, now: float) -> None:
        """Draw what follows, in this state, from our application's health."""
        if self.state is State.YIELDED:
            if self.health.recovered(now):
                self.silence.wait_anew(now)
                self._go(Input.APP_WELL, "")
        elif self.health.well:
            return
        elif self.state is State.PROTECTED:
            if self.settings.on_app_failure != "off":
                self.application_failed(self.health.reason, now)
        elif self.state is State.SHADOWING and not self.invalid:
            self.invalid, self.generation = True, 0  # the primary sees it, and knows that nothing is kept here
            self.pact.void()
            self.actions.append(Do.INVALIDATE)

    def application_failed(self, reason: str, now: float) -> bool:
        """Yield, since our application has failed, if the backup can go on: it takes over as soon as it hears of that.
        Returns whether this host is silent now."""
        if not self.backup_can_go_on(now):
            return False
        self.health.yielded(now)
        self._go(Input.APP_FAILED, reason)
        return True

    def expire(self, now: float) -> None:
        """Fall silent, since our lease has ended: nothing may leave before the witness or the backup has answered."""
        self.silence.resumed(now)
        self._go(Input.EXPIRED, "the backup's votes are too old, and the witness has not answered")
        self._address_left = True
        self.actions.append(Do.LEAVE_ADDRESS)

    def _note_validity(self) -> None:
        """Note until when the shadows may be continued: the primary, which protects, releases after that. What it says
        of us later proves nothing: it may have let everything go in between."""
        heard = self.peer.monitor.heard_by_peer_at
        if heard is not None:
            self._valid_until = heard + self.peer.release_after_s() - self.settings.detection_ms / 2000

    # ------------------------------------------------------------------------------------ answers

    def link_checked(self, ok: bool, detail: str) -> None:
        """Take the answer to `Do.CHECK_LINK`: we could talk to a peer that lives, or we could not."""
        self.silence.link_checked(self.state, ok, detail, self._valid_until, self._last)

    def reached(self, ok: bool, detail: str, now: float) -> None:
        """Note that we can talk to the peer, as far as we alone can know, or why not."""
        self.reach.told(ok, detail, now)

    def fenced(self, ok: bool, detail: str) -> None:
        """Take the answer to `Do.FENCE`."""
        if self.state is State.BOOT_FENCING:
            self._go(Input.FENCED if ok else Input.FENCE_FAILED, detail)
        elif self.state is State.FENCING:
            if ok:
                self._go(Input.FENCED, f"the primary is off: {detail}" if detail else "the primary is off")
            elif self.settings.split_brain_accepted:
                self._go(Input.ACCEPTED, f"the fence failed ({detail}); a split brain is accepted")
            else:
                self._go(Input.FENCE_FAILED, f"the fence failed: {detail}")

    def witnessed(self, number: int, granted: bool, detail: str) -> None:
        """Take the witness's answer; it counts only for the pact that we have asked for."""
        pact = self.pact
        if not pact.asked or number != pact.high:
            return
        if self.state in (State.BACKUP_LOST, State.DOUBT):
            pact.answered(granted)
            if not granted:
                self._go(Input.DENIED, f"the witness has let the peer act alone: {detail}")
        elif self.state is State.ASKING:
            pact.answered(granted)
            if not granted:
                self._go(Input.DENIED, f"the witness has let the primary act alone: {detail}")
            elif self.silence.waits_for_word:
                self._go(Input.PEER_YIELDED, "the primary has yielded; granted by the witness")
            elif self.settings.has_fence:
                self._go(Input.GRANTED, "granted by the witness: fencing the primary")

    def epoch_stored(self, epoch: int, ok: bool, detail: str) -> None:
        """Take the answer to `Do.STORE`: epoch and role are on disk, or they are not."""
        if ok:
            self.stored_epoch = max(self.stored_epoch, epoch)
        if self.state not in (State.STORING, State.CLAIMING) or epoch != self.epoch:
            return
        self.served = ok
        self._go(Input.STORED if ok else Input.STORE_FAILED, detail)

    def rules_applied(self) -> None:
        """Note that the rules for a protected primary are in force."""
        if self.state is State.ARMING:
            self.rules_ready = True

    @property
    def claimable(self) -> bool:
        """Whether an operator's claim would have this host serve."""
        return self.state in _CLAIMABLE

    def claim(self) -> str:
        """Serve because the operator says that the peer is off. Returns what came of it."""
        if not self.claimable:
            return f"nothing to claim: this host is {self.role.name.lower()} ({self.state.label})"
        self.invalid = True
        self._go(Input.CLAIMED, "claimed by the operator")
        return "claimed"

    def resume(self, epoch: int) -> None:
        """Serve again, as this host did, unprotected, in `epoch` before its daemon restarted (roles.py says why)."""
        self.epoch = max(self.epoch, epoch)
        if self.epoch != self.stored_epoch:
            self.actions.append(Do.STORE)  # the epoch was announced, and the daemon died before it was on disk
        self._go(Input.RESUMED, "the daemon has restarted: no backup yet")

    def stop(self) -> None:
        """Leave the pair, as a clean stop does."""
        self._go(Input.STOP, "stopped")
