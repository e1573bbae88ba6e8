"""Which firewall rules this host needs: by its state, and by the connections that need more than the state says."""

from __future__ import annotations

from nfq_failover.core.events import ApplyRules, Profile
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.roles import Role
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.shadow.connection import HEARD
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.segment import FlowKey


class Rules:
    """The profile that was asked for last, and what in it is there for the sake of single connections.

    A connection that was taken over needs its diversion until it ends, and one that was handed over needs the tap: the
    backup must still hear its client. `restarts`: a later life of the daemon goes on with such connections.
    """

    def __init__(self, out: Outbox, gate: GateTable, shadow: ShadowTable, sharing: Sharing, restarts: bool) -> None:
        self._out = out
        self._sharing = sharing
        self._gate = gate
        self._shadow = shadow
        self._restarts = restarts
        self._profile = Profile.BACKUP
        self._diverted = False  # for connections that were taken over
        self._tapped = False  # for connections that were handed over

    def apply(self, profile: Profile, role: Role) -> None:
        """Ask for the rules of a profile, in a role of this host."""
        flows = self._taken_over() if role is Role.PRIMARY else ()
        self._profile = profile
        self._diverted = bool(flows)
        self._tapped = profile is Profile.ALONE and bool(self._gate.handovers.flows)
        if self._tapped:
            profile = Profile.PRIMARY
        elif profile is Profile.ALONE and self._restarts and not self._gate.opening.adopts_unknown:
            profile = Profile.BACKUP  # what a leftover connection says must not find a bypass if the daemon dies now
        self._out.effects.append(ApplyRules(profile, flows, self._sharing.for_rules(profile is Profile.BACKUP)))

    def again(self, role: Role) -> None:
        """Ask for them once more: what they depend on has changed."""
        self.apply(self._profile, role)

    def on_timer(self, role: Role) -> None:
        """Ask for less once the last connection that was taken over, or handed over, has ended."""
        if self._tapped and not self._gate.handovers.flows:
            self.again(role)
        if self._diverted and not self._shadow.flows and role is Role.PRIMARY:
            self.again(role)

    def _taken_over(self) -> tuple[FlowKey, ...]:
        return tuple(f for f, c in self._shadow.flows.items() if c.state in HEARD)
