"""Carries out what the membership has decided: each action is done to gate, shadow and rules, or asked of the shell."""

from __future__ import annotations

from nfq_failover.core.application import Application
from nfq_failover.core.concerns import Part
from nfq_failover.core.events import AskWitness, CheckLink, Fence, OwnAddress, Profile, StoreEpoch, TellClients
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.history import History
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.link import Links
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Do, Role, State
from nfq_failover.core.rules import Rules
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.checkpoint import CheckpointWriter
from nfq_failover.core.shadow.connection import HEARD
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.status import standing

_PARTS = {Role.PRIMARY: Part.PRIMARY, Role.BACKUP: Part.BACKUP}


class Actions:
    """Drains the membership's changes and actions. The node's parts are handed in."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        members: Membership,
        links: Links,
        history: History,
        gate: GateTable,
        shadow: ShadowTable,
        rules: Rules,
        application: Application,
        checkpoint: CheckpointWriter | None,
    ) -> None:
        self.out = out
        self._settings = settings
        self._members = members
        self._links = links
        self._history = history
        self._gate = gate
        self._shadow = shadow
        self._rules = rules
        self._application = application
        self._checkpoint = checkpoint

    def carry_out(self, now: float) -> None:
        """Do what the membership's changes of state call for, and tell of them."""
        members, out = self._members, self.out
        # Ends: each turn takes one out, and logging makes none.
        while members.changes:
            change = members.changes.popleft()
            out.log(
                change.level,
                "state",
                before=change.before.label,
                after=change.after.label,
                role=change.after.role.name.lower(),
                epoch=members.epoch,
                reason=change.reason or change.given.value,
            )
            self._history.changed(change, members.peer.monitor.last_heard, now)
            if change.after is State.SHADOWING and change.before.role is not Role.BACKUP:
                self._application.settle()  # whether both have the same state when a backup joins is for people to say
        # Ends: each turn takes one out; no action makes another one, nor a change.
        while members.actions:
            self._do(members.actions.popleft(), now)
        out.concerns.act_as(_PARTS.get(members.role, Part.ANY))
        self._shadow.wholeness.serve(members.role is Role.PRIMARY, now)
        self.observe(now)
        self._links.publish(self._members)

    def observe(self, now: float) -> None:
        """Keep what people are shown, if it has changed."""
        members = self._members
        state, reason = standing(members, self.out.concerns)
        self._history.observe(members.role, state, members.epoch, reason, now)

    def _do(self, action: Do, now: float) -> None:
        members, emit = self._members, self.out.effects.append
        if action is Do.CHECK_LINK:
            emit(CheckLink())
        elif action is Do.FENCE:
            emit(Fence(members.peer.name, self._settings.fence_deadline_ms))
        elif action is Do.ASK:
            emit(AskWitness(members.pact.low, members.pact.high))
        elif action in (Do.LEAVE_ADDRESS, Do.TAKE_ADDRESS):
            emit(OwnAddress(action is Do.TAKE_ADDRESS, self._settings.announce_count))
        elif action is Do.STORE:
            serves = members.role is Role.PRIMARY or members.state in (State.STORING, State.CLAIMING)
            emit(StoreEpoch(members.epoch, "primary" if serves else "backup"))
        elif action is Do.TAKE_OVER:
            self._take_over(now)
        elif action in (Do.SERVE, Do.RESUME):
            self._shadow.serve(now)
            emit(OwnAddress(True, self._settings.announce_count))
            self._rules.apply(Profile.ALONE, members.role)
        elif action is Do.ARM:
            self._rules.apply(Profile.PRIMARY, members.role)
        elif action is Do.PROTECT:
            self._gate.missed.later.inherited(*self._shadow.takeover.brought())
            self._gate.start_protecting(now)
        elif action is Do.RELEASE:
            self._gate.stop_protecting(members.reason, now)
            self._rules.apply(Profile.ALONE, members.role)
        elif action is Do.SHADOW:
            self._gate.opening.adopt_unknown(False)
            self._shadow.clear("a new generation of connections begins", keep_handed=True)
        elif action is Do.INVALIDATE:
            refused = members.state is State.REFUSED
            self._shadow.invalidate("this host refused to take over" if refused else "the primary went on unprotected")
        elif action is Do.SILENCE:
            emit(OwnAddress(False))
            self.out.injected.forget()
            self._rules.apply(Profile.BACKUP, members.role)
            self._gate.opening.adopt_unknown(False)
            self._gate.clear(now)
            self._shadow.clear("this host does not serve any more")

    def _take_over(self, now: float) -> None:
        """Be heard in the primary's place. Verdicts changed with the state; the rules follow when there is time."""
        members = self._members
        if not members.may_continue(now):
            self._shadow.invalidate("the primary's protection had ended before the takeover")
        self.out.effects.append(OwnAddress(True, self._settings.announce_count))
        going, reset = self._shadow.take_over(now)
        self._gate.explain("taken over: no backup")
        self.out.effects.append(TellClients(tuple({flow[0]: None for flow in self._shadow.flows})))
        self._history.took_over(members.epoch, going, reset, now)
        self.out.log("warning", "takeover", epoch=members.epoch, connections=going, reset=reset)
        if self._checkpoint is not None:
            self._checkpoint.begin([c for c in self._shadow.flows.values() if c.state in HEARD])
        self._rules.apply(Profile.ALONE, members.role)
