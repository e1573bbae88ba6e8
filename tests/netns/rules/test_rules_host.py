"""The conntrack choice against the host's own rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import SERVICE
from tests.support.rules_world import VARIANTS, RulesWorld, world

pytestmark = pytest.mark.netns

LIBERAL = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"
BASE = ("install", "--role", "backup", "--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0")


@pytest.fixture(params=VARIANTS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RulesWorld]:
    with world(request.param, tmp_path) as built:
        yield built


CONTRADICTIONS = [
    ("filter", "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    ("filter", "-A OUTPUT -m state --state NEW,ESTABLISHED -j ACCEPT"),
    ("filter", "-A INPUT -m conntrack ! --ctstate ESTABLISHED -j DROP"),
    ("filter", "-N ours; -A INPUT -j ours; -A ours -m conntrack --ctstate NEW -j ACCEPT"),
    ("nat", f"-A PREROUTING -d 192.0.2.9 -p tcp --dport 80 -j DNAT --to-destination {SERVICE}:80"),
    ("nat", "-N docker; -A OUTPUT -j docker; -A docker -p tcp --dport 7000:7001 -j DNAT --to-destination 192.0.2.1:80"),
]
HARMLESS = [
    ("filter", "-A INPUT -m conntrack --ctstate INVALID -j DROP"),
    ("filter", "-A INPUT -m conntrack --ctstate ESTABLISHED,UNTRACKED -j ACCEPT"),
    ("filter", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"),
    ("filter", "-N elsewhere; -A FORWARD -j elsewhere; -A elsewhere -m state --state NEW -j DROP"),
    ("filter", "-A INPUT -p tcp --dport 22 -j DROP"),
    ("nat", "-A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 80"),
    ("nat", "-A PREROUTING -d 192.0.2.7 -p tcp --dport 80 -j DNAT --to-destination 192.0.2.1"),
    ("nat", "-A PREROUTING -p udp --dport 80 -j REDIRECT --to-ports 8080"),
    ("nat", "-A PREROUTING -i docker0 -p tcp --dport 80 -j REDIRECT --to-ports 8080"),
    ("nat", f"-A PREROUTING ! -d {SERVICE} -p tcp --dport 80 -j REDIRECT --to-ports 8080"),
    ("nat", "-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE"),
]


def apply(net: RulesWorld, table: str, rules: str) -> None:
    for rule in rules.split("; "):
        net.b.iptables("-t", table, *rule.split())


@pytest.mark.parametrize(("table", "rules"), CONTRADICTIONS)
def test_notrack_against_rules_that_need_tracking(net: RulesWorld, table: str, rules: str) -> None:
    apply(net, table, rules)
    strict = net.b.rules(*BASE, "--strict")
    assert strict.returncode == 2
    assert "Use --conntrack liberal" in strict.stderr
    assert "NFQF" not in "".join(net.b.saved())
    done = net.b.rules(*BASE)
    assert done.returncode == 0
    assert done.stderr.startswith("nfq-failover-rules: warning: --conntrack notrack")
    assert rules.split()[-1] in done.stderr, "the rule is quoted"
    liberal = net.b.rules(*BASE, "--conntrack", "liberal", "--strict")
    assert (liberal.returncode, liberal.stderr) == (0, "")


def test_notrack_and_harmless_rules(net: RulesWorld) -> None:
    for table, rules in HARMLESS:
        apply(net, table, rules)
    done = net.b.rules(*BASE, "--strict")
    assert (done.returncode, done.stderr) == (0, "")


def test_rules_of_the_other_kinds_are_seen(net: RulesWorld) -> None:
    other = "legacy" if net.b.variant == "nft" else "nft"
    rule = ("INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    net.b.namespace.run(f"iptables-{other}", "-A", *rule)
    assert net.b.rules(*BASE, "--strict").returncode == 2
    net.b.namespace.run(f"iptables-{other}", "-D", *rule)
    assert net.b.rules(*BASE, "--strict").returncode == 0
    net.b.namespace.run("nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; }")
    net.b.namespace.run("nft", "add rule inet fw in ct state established accept")
    assert "nft: ct state established accept" in net.b.rules(*BASE, "--strict").stderr


def test_looking_does_not_start_connection_tracking(net: RulesWorld) -> None:
    """Reading table nat with the legacy kind would create it, and with it tracking of all the host's traffic."""
    assert net.b.rules(*BASE, "--dry-run").returncode == 0
    assert net.b.rules("show").returncode == 0
    names = net.b.namespace.run("cat", "/proc/net/ip_tables_names")
    assert "nat" not in names
    net.b.install("backup")
    assert "nat" not in net.b.namespace.run("cat", "/proc/net/ip_tables_names")


def test_the_liberal_switch_goes_back_to_what_it_was(net: RulesWorld) -> None:
    switch = net.b.namespace
    for before in ("0\n", "1\n"):
        switch.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_be_liberal={before.strip()}")
        net.b.install("backup", "--conntrack", "liberal")
        assert "notrack" not in "".join(net.b.saved())
        net.b.install("alone", "--conntrack", "liberal")
        assert switch.run("cat", LIBERAL) == "1\n"
        net.b.install("alone", "--conntrack", "notrack")
        assert switch.run("cat", LIBERAL) == before
        net.b.install("backup", "--conntrack", "liberal")
        switch.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=0")
        assert "nf_conntrack_tcp_be_liberal is no longer 1" in net.b.rules("check").stderr
        net.b.install("backup", "--conntrack", "liberal")
        assert net.b.rules("check").returncode == 0
        assert net.b.rules("remove").returncode == 0
        assert switch.run("cat", LIBERAL) == before


def test_clones_need_an_open_output(net: RulesWorld) -> None:
    net.a.iptables("-P", "OUTPUT", "DROP")
    assert "clones for the backup leave through OUTPUT" in net.a.install("primary", peer=net.b)
    net.a.iptables("-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT")
    assert "ACCEPT rules of its own" in net.a.install("primary", "--strict", peer=net.b)
