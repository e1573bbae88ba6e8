"""This host's place in the pair: turns heartbeats, silence and answers into state changes and actions.

Pure bookkeeping over the table in roles.py. The node carries the actions out.
"""

from __future__ import annotations

from math import inf

from nfq_failover.core.pair.actions import Change, Do
from nfq_failover.core.pair.monitor import PeerMonitor
from nfq_failover.core.pair.roles import Candidate, Input, Role, State
from nfq_failover.core.pair.standing import Standing
from nfq_failover.wire.heartbeat import HeartbeatBody

__all__ = ["Change", "Do", "Membership"]

ALONE_RETRY_FACTOR = 10
TIME_IS_OVER = "the backup is silent, and its time to take over has passed"
BACKUP_UNHEALTHY = "the backup's application has failed"
TARGET_RETRY_S = 1.0
_SILENT = (Role.JOINING, Role.LEAVING)
BOTH_ASK_S = 0.2  # so long the backup goes on asking though the primary is back: some questions and answers
_PROTECTING = (State.PROTECTED, State.BACKUP_LOST, State.DOUBT)
_CLAIMABLE = (State.WAITING, State.REFUSED, State.RETRYING, State.ASKING, State.YIELDED)


class Membership(Standing):
    """What the peer says and does not say, how time passes, and what is answered: each may change the state."""

    # ------------------------------------------------------------------------------------ inputs

    def heartbeat(self, body: HeartbeatBody, epoch: int, monitor: PeerMonitor, now: float) -> None:
        """A heartbeat of the peer, already counted by the monitor."""
        self.peer, self.peer_epoch = body, epoch
        self._heard_at = now
        role = Role(body.role)
        if role not in _SILENT:
            self._wait_until = None
        if role is Role.PRIMARY:
            self._peer_serves(body, epoch, monitor)
        elif self.role is Role.PRIMARY:
            if self._votes() and body.echo_ms:
                self.pact.vote(body.echo_ms / 1000, now)
            self._peer_follows(body, role, self.answers(monitor, now))
            if self.state in (State.PROTECTED, State.BACKUP_LOST):
                self.pact.said_back(body.pact)
                self.pact.renew()
        elif self.state in (State.SHADOWING, State.CHECKING, State.ASKING):
            if role in _SILENT:
                self._peer_yields(now)
        elif self.state in (State.WAITING, State.REFUSED) and self.answers(monitor, now):
            self._elect(body)
        if self.state is State.DOUBT:
            heard = monitor.heard_by_peer_at
            if heard is not None and heard >= self._resumed and self._follows(monitor, now):
                self._go(Input.REASSURED, "the peer has answered after our pause")

    def _peer_yields(self, now: float) -> None:
        """The primary does not serve any more, so it lets nothing go from now on. Whether it has before, because it had
        not heard us for long, the witness knows: with a grant we go on however late it is (see core/pair/pact.py)."""
        if self.may_continue(now):
            self._valid_until = inf
        elif self.pact.held and not self.invalid:
            if self.state is not State.ASKING:
                self._go(Input.UNSURE, "the primary has restarted or leaves: asking the witness what it has let go")
            if self._wait_until is None:
                self._wait_until = now + self.settings.lease_ms / 1000
            if now < self._wait_until:
                return
        self._go(Input.PEER_YIELDED, "the primary has restarted or leaves")

    def _peer_serves(self, body: HeartbeatBody, epoch: int, monitor: PeerMonitor) -> None:
        if self.role is Role.PRIMARY:
            if epoch > self.epoch or (epoch == self.epoch and self._peer_name() < self.settings.name):
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
        if State(body.state) is State.ARMING and body.generation != self.generation and self.health.well:
            # Only while it arms: one that protects already has connections that we lack, and must hear so.
            self.generation = body.generation
            self.invalid = False
            self.pact.void()
            self.actions.append(Do.SHADOW)
        if State(body.state) is State.UNPROTECTED and not self.invalid:
            self.invalid = True
            self.pact.void()
            self.actions.append(Do.INVALIDATE)
        if body.generation != self.generation or self.invalid:
            return
        if State(body.state) in _PROTECTING:
            self.pact.adopt(body.pact, body.lease_ms)
        self._note_validity(monitor)

    def _peer_follows(self, body: HeartbeatBody, role: Role, answers: bool) -> None:
        """We serve, the peer doesn't."""
        if body.stored_epoch > self.epoch:
            self.epoch = body.stored_epoch + 1
            self.actions.append(Do.STORE)
        peer_state = State(body.state)
        if self.state is State.UNPROTECTED:
            if peer_state is State.SHADOWING and answers and self._peer_well:
                self.generation += 1
                self.rules_ready = False
                self._go(Input.BACKUP_JOINED, "arming the protection")
        elif self.state is State.ARMING:
            if role is not Role.BACKUP:
                self._go(Input.BACKUP_HARMLESS, "the backup has restarted")
            elif not self._peer_well:
                self._go(Input.BACKUP_HARMLESS, BACKUP_UNHEALTHY)
            elif self.rules_ready and body.generation == self.generation:
                self._go(Input.ARMED, "")
        elif role is not Role.BACKUP:
            self._go(Input.BACKUP_HARMLESS, "the backup has restarted")
        elif peer_state is State.REFUSED:
            self._go(Input.BACKUP_HARMLESS, "the backup has refused to take over")
        elif body.generation != self.generation:
            self._go(Input.BACKUP_HARMLESS, "the backup has lost its state" if self._peer_well else BACKUP_UNHEALTHY)

    def _elect(self, body: HeartbeatBody) -> None:
        """Neither serves: both compare the same two candidates."""
        if State(body.state) not in (State.WAITING, State.REFUSED, State.LEAVING):
            return
        theirs = Candidate.from_heartbeat(body.flags, body.stored_epoch, self._peer_name())
        if State(body.state) is State.LEAVING or self.candidate.goes_before(theirs):
            self.epoch = max(self.epoch, body.stored_epoch)
            self._go(Input.ELECTED, "elected")

    def _peer_name(self) -> str:
        return self.settings.peers[0].name

    def session_started(self) -> None:
        """A new session: the peer's daemon has restarted, and has nothing of ours. A pact is kept: what the witness has
        decided of it tells what the old daemon may have let go."""
        if self.role is Role.BACKUP:
            self.generation = 0  # the peer counts from the beginning again
        if self.state is State.ARMING or self.state in _PROTECTING:
            self._go(Input.BACKUP_HARMLESS, "the backup has restarted")

    def tick(self, monitor: PeerMonitor, now: float) -> None:
        """Time has passed. Everything that was received before has been handled."""
        pause, self._last = now - self._last, now
        interval = self.settings.heartbeat_interval_ms / 1000
        if pause > interval:
            monitor.excuse(pause - interval, now)  # not all of it: a loop that is always late must detect too
        detection = self.settings.detection_ms / 1000
        paused = pause > detection and not self._follows(monitor, now)
        if paused and self.state in (State.PROTECTED, State.BACKUP_LOST, State.DOUBT):
            self._resumed = now
            self._go(Input.PAUSED, f"this host was paused for {pause:.2f} s")
            return
        self._watch_health(monitor, now)
        state = self.state
        if state is State.WAITING:
            self._wait_alone(monitor, now)
        elif state is State.SHADOWING:
            if monitor.lost(now):
                self._go(Input.PEER_SILENT, "no heartbeat from the primary")
        elif state in (State.CHECKING, State.RETRYING):
            if not monitor.lost(now):
                self._go(Input.PEER_BACK, "")
            elif self._act_at is not None and now >= self._act_at:
                self._act_alone()
        elif state is State.ASKING:
            self._asking(monitor, now)
        elif state is State.REFUSED:
            if self._retries.due(now) and monitor.lost(now):
                self._go(Input.RETRY, "the primary is still silent")
        elif state is State.ARMING:
            if not self.answers(monitor, now):
                self._go(Input.PEER_SILENT, "the backup is silent")
        elif state is State.PROTECTED and not self.answers(monitor, now):
            self._go(Input.PEER_SILENT, "no heartbeat from the backup")
        if self.state in (State.BACKUP_LOST, State.DOUBT):
            self._lost_backup(monitor, now)

    def _watch_health(self, monitor: PeerMonitor, now: float) -> None:
        """What our application's health means in this state."""
        if self.state is State.YIELDED:
            if self.health.recovered(now):
                self._next_alone = now + self.settings.boot_wait_ms / 1000
                self._go(Input.APP_WELL, "")
        elif self.health.well:
            return
        elif self.state is State.PROTECTED:
            if self.settings.on_app_failure != "off":
                self.application_failed(self.health.reason, monitor, now)
        elif self.state is State.SHADOWING and not self.invalid:
            self.invalid, self.generation = True, 0  # the primary sees it, and knows that nothing is kept here
            self.pact.void()
            self.actions.append(Do.INVALIDATE)

    def backup_can_go_on(self, monitor: PeerMonitor, now: float) -> bool:
        """Whether the backup follows us lately, holds this generation of connections, and is well."""
        return self.state is State.PROTECTED and self._peer_well and self._follows(monitor, now)

    def application_failed(self, reason: str, monitor: PeerMonitor, now: float) -> bool:
        """Our application has failed: yield, if the backup can go on: it takes over as soon as it hears us. Returns
        whether this host is silent now."""
        if not self.backup_can_go_on(monitor, now):
            return False
        self.health.yielded(now)
        self._go(Input.APP_FAILED, reason)
        return True

    def _wait_alone(self, monitor: PeerMonitor, now: float) -> None:
        if now < self._next_alone or not monitor.lost(now):
            return
        self._next_alone = now + ALONE_RETRY_FACTOR * self.settings.boot_wait_ms / 1000
        if self.settings.boot_alone == "fence" and self.settings.has_fence:
            self._go(Input.ALONE, "nobody answers: fencing the peer")
        else:
            self.reason = "the peer does not answer; this host will not serve alone unless told so (claim)"

    def _asking(self, monitor: PeerMonitor, now: float) -> None:
        pact = self.pact
        if self._wait_until is not None:
            if now >= self._wait_until:
                self._go(Input.PEER_YIELDED, "the primary has yielded, and the witness does not answer")
            elif pact.ask(now):
                self.actions.append(Do.ASK)
            return
        heard = now - self._heard_at <= self.settings.detection_ms / 1000  # a new session alone says nothing yet
        if not pact.granted and heard and not monitor.lost(now) and not self._both_ask(now):
            self._go(Input.PEER_BACK, "the primary is back, and the witness may have been asked")
        elif pact.ask(now):
            self.actions.append(Do.ASK)
        elif not self.settings.has_fence and pact.outlasted(now):
            self._go(Input.OUTLASTED, "granted by the witness; the primary's lease has ended")

    def _both_ask(self, now: float) -> bool:
        """The primary is back, but in doubt: it can't go on without the witness either, which may have decided for us.
        If we gave up at once nobody could go on. That we are heard does not matter: in this state we don't vote."""
        if self.peer is None or State(self.peer.state) is not State.DOUBT:
            return False
        if self._both_until is None:
            self._both_until = now + max(self.settings.detection_ms / 1000, BOTH_ASK_S)
        return now < self._both_until

    def expire(self, now: float) -> None:
        """Our lease has ended: nothing may leave before the witness, or the backup, has answered."""
        self._resumed = now
        self._go(Input.EXPIRED, "the backup's votes are too old, and the witness has not answered")
        self._hushed = True
        self.actions.append(Do.HUSH)

    def _lost_backup(self, monitor: PeerMonitor, now: float) -> None:
        pact = self.pact
        if self.state is State.BACKUP_LOST and self.answers(monitor, now) and (not pact.held or self._votes()):
            self._go(Input.PEER_BACK, "")
            return
        if pact.ask(now):
            self.actions.append(Do.ASK)
        since = monitor.last_progress if monitor.last_progress is not None else self._boot
        if self.state is State.DOUBT:
            since = max(since, self._resumed)
        over = now - since >= self._release_after_s()
        if pact.held:
            # A backup that has not said the pact back may be one that does not ask.
            if pact.granted and (pact.confirmed or over):
                self._go(Input.GRANTED, "granted by the witness: the backup can't take over")
        elif over and self.settings.checks_target:
            if now >= self._next_check:
                self._next_check = now + TARGET_RETRY_S
                self._checking = True
                self.actions.append(Do.CHECK_LINK)
        elif over:
            self._go(Input.BACKUP_HARMLESS, TIME_IS_OVER)

    def _note_validity(self, monitor: PeerMonitor) -> None:
        """Note until when the shadows may be continued: the primary, which protects, releases after that. What it says
        of us later proves nothing: it may have let everything go in between."""
        heard = monitor.heard_by_peer_at
        if heard is not None and self.peer is not None:
            self._valid_until = heard + self._release_after_s() - self.settings.detection_ms / 2000

    # ------------------------------------------------------------------------------------ answers

    def link_checked(self, ok: bool, detail: str) -> None:
        """Our own link is up, or not."""
        if self.state in (State.BACKUP_LOST, State.DOUBT):
            if self._checking and ok:
                self._go(Input.BACKUP_HARMLESS, TIME_IS_OVER)
            elif self._checking:
                self.reason = f"nothing is released: {detail}"
            return
        if self.state not in (State.CHECKING, State.RETRYING):
            return
        if not ok:
            self._go(Input.LINK_DOWN, f"our own link is down: {detail}")
            return
        self._act_at = self._last + self.settings.fence_delay_ms / 1000
        if self.pact.held and not self.settings.has_fence:
            self._act_at = max(self._act_at, self.pact.ask_from(self._heard_at))
        if self._act_at <= self._last:
            self._act_alone()
        else:
            self.reason = f"nothing is done to the primary for another {self._act_at - self._last:.2f} s"

    def _act_alone(self) -> None:
        if self.pact.held:
            self._go(Input.ASK, "asking the witness")
        elif self.settings.has_fence:
            self._go(Input.LINK_UP, "fencing the primary")
        elif self.settings.split_brain_accepted:
            self._go(Input.ACCEPTED, "no fence; a split brain is accepted")
        else:
            self._go(Input.NO_FENCE, "there is no fence, and split_brain is not accepted")

    def fenced(self, ok: bool, detail: str) -> None:
        """The fence has come to an end."""
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
        """The witness has answered for the pact that we asked for."""
        pact = self.pact
        if not pact.asked or number != pact.high:
            return
        if self.state in (State.BACKUP_LOST, State.DOUBT):
            pact.granted = granted
            if not granted:
                self._go(Input.DENIED, f"the witness has let the peer act alone: {detail}")
        elif self.state is State.ASKING:
            pact.granted = granted
            if not granted:
                self._go(Input.DENIED, f"the witness has let the primary act alone: {detail}")
            elif self._wait_until is not None:
                self._go(Input.PEER_YIELDED, "the primary has yielded; granted by the witness")
            elif self.settings.has_fence:
                self._go(Input.GRANTED, "granted by the witness: fencing the primary")

    def epoch_stored(self, epoch: int, ok: bool, detail: str) -> None:
        """The record is on disk, or not."""
        if ok:
            self.stored_epoch = max(self.stored_epoch, epoch)
        if self.state not in (State.STORING, State.CLAIMING) or epoch != self.epoch:
            return
        self.served = ok
        self._go(Input.STORED if ok else Input.STORE_FAILED, detail)

    def rules_applied(self) -> None:
        """The rules for a protected primary are in force."""
        if self.state is State.ARMING:
            self.rules_ready = True

    def claim(self) -> str:
        """The operator says that the peer is off. Returns what came of it."""
        if self.state not in _CLAIMABLE:
            return f"nothing to claim: this host is {self.role.name.lower()} ({self.state.label})"
        self.invalid = True
        self._go(Input.CLAIMED, "claimed by the operator")
        return "claimed"

    def resume(self, epoch: int) -> None:
        """Our daemon has restarted on a host that served, unprotected, in `epoch`; roles.py has why it may."""
        self.epoch = max(self.epoch, epoch)
        if self.epoch != self.stored_epoch:
            self.actions.append(Do.STORE)  # it was announced, and the daemon died before it was on disk
        self._go(Input.RESUMED, "the daemon has restarted: no backup yet")

    def stop(self) -> None:
        """Clean stop."""
        self._go(Input.STOP, "stopped")
