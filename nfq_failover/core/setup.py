"""How this host is set up and its peer is, and what follows for all parts of the node when either changes."""

from __future__ import annotations

from nfq_failover.core import ports
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.agreement import HEADERS, Agreement, datagram_bytes, facts_of, mtu_of
from nfq_failover.core.pair.clocks import Clocks
from nfq_failover.core.pair.link import Link
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Role
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.pair.told import Pairs, Telling
from nfq_failover.core.ports import Ports
from nfq_failover.core.rules import Rules
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.table import ShadowTable


class Setup:
    """Tells the peer of this host, and keeps the parts to what both hosts can do."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        sharing: Sharing,
        telling: Telling,
        agreement: Agreement,
        protector: Link,
        members: Membership,
        gate: GateTable,
        shadow: ShadowTable,
        rules: Rules,
    ) -> None:
        """The node's parts are handed in. `protector`: the link to the host that all of this is agreed on with."""
        self.out = out
        self._settings = settings
        self._sharing = sharing
        self._telling = telling
        self._agreement = agreement
        self._protector = protector
        self._members = members
        self._gate = gate
        self._shadow = shadow
        self._rules = rules
        self._host_facts: Pairs = ()
        self._clocks = Clocks(settings.name, protector.told, telling, out.concerns)

    def tell(self) -> None:
        """Take note of how this host is set up, and tell it."""
        facts = facts_of(self._settings, self._sharing) + self._host_facts
        self._telling.set_facts(facts)
        self._agreement.set_own(facts)
        mtu = mtu_of(self._agreement.own)
        self._shadow.openings.fit_host(None if mtu is None else mtu - HEADERS)

    def follow_settings(self, settings: Settings, now: float) -> None:
        """Go on with other settings. Rules for ports that came with them are asked for at once where this host follows,
        and else when the peer has them."""
        more = ports.minus(settings.ports, self._settings.ports)
        self._settings.adopt(settings)
        if more:
            self._sharing.added(more)
            if self._members.role is not Role.PRIMARY:
                self._rules.again(self._members.role)
        self.tell()
        self._share(now)
        self.review(now)

    def _share(self, now: float) -> None:
        """Protect what is sent from ports that both hosts have from now on."""
        shared = self._sharing.told(self._agreement.diverted)
        if not shared:
            return
        self.out.log("info", "ports were added", ports=ports.text(shared))
        if self._members.role is Role.PRIMARY:
            self._gate.ports_join(shared, now)
            self._rules.again(self._members.role)
        self.tell()

    def host_is(self, facts: Pairs) -> None:
        """Take what the shell has read of this host."""
        self._host_facts = facts
        self.tell()

    def rules_applied(self, applied: Ports | None) -> None:
        """Note that rules are in force, for these ports if they are for any."""
        if self._sharing.applied(applied):
            self.tell()

    def review(self, now: float) -> None:
        """Look at what both hosts have told, and do what follows if that has changed."""
        self._clocks.review(now)
        if self._agreement.review(now):
            self._share(now)
            self.follow_agreement(now)

    def follow_agreement(self, now: float) -> None:
        """Protect nothing that the peer could not go on with, and send it nothing that it could not receive."""
        agreement, common = self._agreement, self._agreement.common
        self._members.hold_back(agreement.obstacle)
        self._gate.fit_backup(common.without, common.mss, now)
        self._protector.session.fit(datagram_bytes(mtu_of(agreement.own), common.mtu))
        if agreement.heartbeat_ms:
            self._members.peer.monitor.expect(agreement.heartbeat_ms)
