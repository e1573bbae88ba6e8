"""Would what this host says to clients after a takeover reach them? Its routes, as far as a host can see them itself.

An answer that leaves by another interface than the service's may arrive or not: the routers behind it decide, and some
drop what comes from an address that does not belong there (RFC 2827). Nothing here could tell, since a replica is
silent. So it counts as no way, unless the operator says that it is one (`answer_interfaces`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Final

from nfq_failover.config import Config
from nfq_failover.core.concerns import MAX_CLIENTS, Concern, Part, Weight
from nfq_failover.shell.host import rtnetlink
from nfq_failover.shell.host.ways_out import WaysOut
from nfq_failover.shell.selfcheck.checks import CHEAP_S
from nfq_failover.wire.segment import FlowKey

NO_WAY: Final = "no-way-to-clients"
NOT_LOCAL: Final = "service-not-local"
RULED: Final = "service-ruled"
_SHOWN: Final = 4
_GROUPS: Final = (
    rtnetlink.GROUP_LINK | rtnetlink.GROUP_IPV4_ADDR | rtnetlink.GROUP_IPV4_ROUTE | rtnetlink.GROUP_IPV4_RULE
)


class RoutesCheck:
    """Looks at the way to each client of the connections `flows`, once a second where something may have changed.

    Where there are none, the way to the segment's other machines has to do.
    """

    name = "routes"

    def __init__(self, config: Config, flows: Callable[[], Iterable[FlowKey]] = lambda: ()) -> None:
        """Raises OSError."""
        self._service, self._interface, self._mark = config.service, config.interface, config.mark
        self._flows = flows
        self._questions = rtnetlink.Questions()
        self._changes = rtnetlink.Changes(_GROUPS)
        packed = ip_address(config.service).packed
        self._ways = WaysOut(packed, config.mark, _interfaces(config), self._questions)

    @property
    def every_s(self) -> float:
        """See `Check`."""
        return 0.0 if self._ways.pending else CHEAP_S

    def follow(self, config: Config) -> None:
        """Answers may leave by other interfaces than before."""
        self._ways.serve_by(_interfaces(config))

    def run(self, now: float) -> tuple[Concern, ...]:
        """See `Check`. Raises OSError if the kernel can't be asked."""
        if self._changes.read():
            self._ways.changed()
        if not self._ways.local():
            return tuple(self._not_local())
        self._ways.follow(self._flows(), now)
        self._ways.look(now)
        wrong = self._ways.wrong()
        if not self._ways.known:
            return self._segment(self._ways)
        if not wrong:
            return ()
        found = self._unreached(wrong)
        if len(wrong) == len(self._ways.known) or len(wrong) > MAX_CLIENTS:
            return (found,)
        return (Concern(NO_WAY, Weight.DEGRADED, found.what, found.cure, Part.BACKUP, tuple(sorted(wrong))),)

    def before_start(self, now: float) -> tuple[Concern, ...]:
        """The same on a host without a daemon, which may lack the service address: from it no route can be asked for
        then, and a rule that leads what comes from it elsewhere is all that can be seen. Raises OSError."""
        packed = ip_address(self._service).packed
        if any(each.local == packed for each in rtnetlink.addresses()):
            return self.run(now)
        found = [self._led_elsewhere(table) for table in rtnetlink.rules_from(packed)]
        ways = WaysOut(b"", self._mark, self._ways.interfaces, self._questions)
        return (*found[:1], *self._segment(ways))

    def _led_elsewhere(self, table: int) -> Concern:
        what = f"what comes from {self._service} is routed by table {table} (ip rule): whether its routes lead to the "
        what += "clients can be told only while the daemon runs"
        cure = f"look at 'ip route show table {table}', and at 'nfq-failover status' once the daemon runs"
        return Concern(RULED, Weight.WARNING, what, cure, Part.BACKUP)

    def _segment(self, ways: WaysOut) -> tuple[Concern, ...]:
        wrong = {address: reason for address in self._others() if (reason := ways.probe(address))}
        return (self._unreached(wrong, "other machines of its network, like "),) if wrong else ()

    def _not_local(self) -> Iterator[Concern]:
        packed = ip_address(self._service).packed
        if any(each.local == packed for each in rtnetlink.addresses()):  # else it is missing, as another check says
            what = f"{self._service} is an address of this host, but what is sent to it does not end here"
            cure = f"ip route add local {self._service} dev lo table local; see 'ip rule' and 'ip route show table all'"
            yield Concern(NOT_LOCAL, Weight.UNPROTECTED, what, cure)

    def _unreached(self, wrong: dict[bytes, str], who: str = "") -> Concern:
        (first, reason), *others = sorted(wrong.items())
        client = ip_address(first)
        what = f"after a takeover this host's answers would not reach {who}{client}: {reason}"
        if others:
            names = ", ".join(str(ip_address(address)) for address, _ in others[:_SHOWN])
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            what += f"; nor {names}{more}"
        cure = f"correct the routes (ip route get {client} from {self._service}; ip rule; ip route show table all)"
        if "would leave by" in reason:
            cure += "; or name the interface in 'answer_interfaces', if the networks behind it bring answers to clients"
        return Concern(NO_WAY, Weight.UNPROTECTED, what, cure, Part.BACKUP)

    def _others(self) -> Iterator[bytes]:
        """An address of another machine in each network that the interface is in."""
        interface = next((each.index for each in rtnetlink.links().values() if each.name == self._interface), None)
        own = [each for each in rtnetlink.addresses() if each.index == interface and each.prefix_bits <= 30]
        ours = {each.local for each in own} | {ip_address(self._service).packed}
        for each in own:
            network = IPv4Network((each.local, each.prefix_bits), strict=False)
            for number in range(1, 4):
                if (other := IPv4Address(int(network.network_address) + number).packed) not in ours:
                    yield other
                    break

    def close(self) -> None:
        """Look no more. Can be repeated."""
        self._questions.close()
        self._changes.close()


def _interfaces(config: Config) -> tuple[str, ...]:
    return (config.interface, *config.answer_interfaces)
