"""Has another machine the service address as well? What ARP has said of it lately."""

from __future__ import annotations

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.host.neighbourhood import Neighbourhood
from nfq_failover.shell.selfcheck.checks import CHEAP_S


class ConflictCheck:
    """Other machines that have the service address: strangers, or a peer that is heard although this host serves."""

    name = "conflict"
    every_s = CHEAP_S

    def __init__(self, neighbourhood: Neighbourhood, service: str) -> None:
        self._neighbourhood = neighbourhood
        self._service = service

    def run(self, now: float) -> tuple[Concern, ...]:
        """Returns one concern for all of them."""
        present = self._neighbourhood.conflicts(now)
        if not present:
            return ()
        macs = ", ".join(mac for mac, _ in present)
        if any(stranger for _, stranger in present):
            what = f"another machine has the service address {self._service}: {macs}"
            cure = "find it (by its MAC address, in the switch's table) and give it another address, or turn it off"
        else:
            what = f"the peer, or another machine, is heard for {self._service} although this host serves: {macs}"
            cure = "on the peer: look at 'nfq-failover status', 'ip addr' and net.ipv4.conf.*.arp_ignore"
        return (Concern("address-conflict", Weight.UNPROTECTED, what, cure),)
