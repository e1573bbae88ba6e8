"""RulesRunner with the real script, in a namespace; and the neighbour table."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.core.events import Profile
from nfq_failover.shell.firewall.changes import RuleChanges
from nfq_failover.shell.firewall.script import PeerHost, RulesError, RulesOptions, RulesRunner, lookup_mac, resolve_mac
from tests.support.namespaces import CLIENT, SERVICE
from tests.support.rules_world import RulesHost, RulesWorld, world

pytestmark = pytest.mark.netns


@pytest.fixture
def net(tmp_path: Path) -> Iterator[RulesWorld]:
    with world("nft", tmp_path) as built:
        yield built


def rules_of(host: RulesHost, *peers: str) -> RulesRunner:
    hosts = tuple(PeerHost(address) for address in peers)
    ports = ((80, 80), (7000, 7099))
    return RulesRunner(RulesOptions(SERVICE, ports, "eth0", peers=hosts, state_dir=host.directory))


def test_a_neighbours_mac_is_looked_up_and_asked_for(net: RulesWorld) -> None:
    with net.a.namespace.entered():
        assert lookup_mac(net.b.address) is None
        assert resolve_mac(net.b.address) == net.b.mac
        assert lookup_mac(net.b.address) == net.b.mac
        assert resolve_mac("10.77.0.99", 0.2) is None


def test_the_kernel_says_when_rules_have_changed(net: RulesWorld) -> None:
    with net.b.namespace.entered():
        changes = RuleChanges()
        assert changes.fileno() is not None and not changes.came()
        for change in ("-A", "-D"):
            subprocess.run(["iptables-nft", "-t", "mangle", change, "OUTPUT", "-j", "ACCEPT"], check=True)
            assert changes.came() and not changes.came()
    with net.a.namespace.entered():
        subprocess.run(["iptables-nft", "-t", "mangle", "-A", "OUTPUT", "-j", "ACCEPT"], check=True)
    assert not changes.came()  # another host's
    changes.close()
    changes.close()
    assert changes.fileno() is None and not changes.came()


def test_a_hosts_life(net: RulesWorld) -> None:
    """Backup, takeover with an inherited connection, protected again, off."""
    host, flow = net.b, (socket.inet_aton(CLIENT), 40001, socket.inet_aton(SERVICE), 80)
    rules = rules_of(host, net.a.address)
    with host.namespace.entered():
        assert rules.check() == "no rules are installed for instance default"
        assert rules.apply(Profile.BACKUP) == ""
        assert rules.check() is None
        host.serve()
        net.point_to(host.mac)
        with pytest.raises(RulesError, match="still configured"):
            rules.remove()
        with pytest.raises(RulesError, match="not known"):
            rules.start_apply(Profile.PRIMARY)
        rules.start_apply(Profile.ALONE, (flow,)).finish()
        assert rules.start_check().finish_check() is None
    with host.listener():
        assert net.connects(80)
        assert not net.connects(80, source_port=40001)
    with host.namespace.entered():
        rules.apply(Profile.PRIMARY, (flow,))
        assert f"TEE --gateway {net.a.address}" in "".join(host.saved())
        assert net.a.mac in "".join(host.saved())
        host.iptables("-t", "mangle", "-F", "NFQF-default-IN")
        problem = rules.check()
        assert problem is not None
        assert "missing: NFQF-default-IN" in problem
        rules.apply(Profile.PRIMARY, (flow,))
        assert rules.check() is None
        host.ip("address", "del", f"{SERVICE}/32", "dev", "eth0")
        assert rules.remove() == ""
        assert "NFQF" not in "".join(host.saved())
