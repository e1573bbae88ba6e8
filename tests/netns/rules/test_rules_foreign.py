"""Rules of other programs: the service led elsewhere, and packet marks that are set without a mask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import SERVICE
from tests.support.rules_world import VARIANTS, RulesWorld, world

pytestmark = pytest.mark.netns

HOST = ("--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0")
BASE = ("install", "--role", "backup", *HOST)


@pytest.fixture(params=VARIANTS)
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RulesWorld]:
    with world(request.param, tmp_path) as built:
        yield built


def apply(net: RulesWorld, table: str, rules: str) -> None:
    for rule in rules.split("; "):
        net.b.iptables("-t", table, *rule.split())


def found(net: RulesWorld, *options: str) -> list[tuple[str, str]]:
    """Code and weight of what `host` finds."""
    done = net.b.rules("host", *HOST, *options)
    lines = [line.split("\t") for line in done.stderr.splitlines()]
    assert done.returncode == (3 if lines else 0)
    assert all(len(line) == 4 for line in lines), done.stderr
    return [(line[0], line[1]) for line in lines]


# ------------------------------------------------------------------------------------------------ led elsewhere

FORWARDED = [
    "-A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080",
    f"-A PREROUTING -d {SERVICE} -p tcp -m multiport --dports 22,7050 -j DNAT --to-destination 192.0.2.1",
    # As a published port of Docker looks, and one that is bound to the service address.
    "-N DOCKER; -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER; "
    "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 7000 -j DNAT --to-destination 172.17.0.2:7000",
    f"-N DOCKER; -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER; "
    f"-A DOCKER -d {SERVICE}/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080",
]


@pytest.mark.parametrize("rules", FORWARDED)
@pytest.mark.parametrize("conntrack", ["notrack", "liberal"])
def test_a_service_that_is_led_elsewhere_is_refused(net: RulesWorld, rules: str, conntrack: str) -> None:
    net.b.namespace.run("iptables-nft", "-t", "nat", "-nL")  # loads connection tracking
    apply(net, "nat", rules)
    done = net.b.rules(*BASE, "--conntrack", conntrack)
    assert done.returncode == 2
    assert rules.split("; ")[-1].split(" -j ")[1] in done.stderr, "the rule is quoted"
    assert "docker run --network host" in done.stderr
    assert "Use --conntrack liberal" not in done.stderr
    assert "NFQF" not in "".join(net.b.saved())
    report = net.b.rules("host", *BASE[3:])
    assert report.returncode == 3
    assert report.stderr.startswith("service-forwarded\tunprotected\t")
    assert len(report.stderr.splitlines()) == 1, "and no advice besides that does not help"


@pytest.mark.parametrize(
    "rule", ["tcp dport 80 dnat to 172.17.0.2:80", f"ip daddr {SERVICE} tcp dport 7001 redirect to :1"]
)
def test_nft_rules_that_lead_it_elsewhere_are_seen(net: RulesWorld, rule: str) -> None:
    net.b.namespace.run("nft", "add table ip pub; add chain ip pub pre { type nat hook prerouting priority -100; }")
    for harmless in ("udp dport 80 dnat to 172.17.0.2:80", "tcp dport 81 dnat to 172.17.0.2", 'iifname "x" redirect'):
        net.b.namespace.run("nft", f"add rule ip pub pre {harmless}")
    assert net.b.rules(*BASE, "--dry-run").returncode == 0
    net.b.namespace.run("nft", f"add rule ip pub pre {rule}")
    done = net.b.rules(*BASE)
    assert (done.returncode, f"nft: {rule}" in done.stderr) == (2, True)


KUBERNETES = (
    "-N KUBE-SERVICES; -N KUBE-SVC; -N KUBE-SEP; -A PREROUTING -j KUBE-SERVICES; -A OUTPUT -j KUBE-SERVICES; "
    "-A KUBE-SERVICES -d 10.96.0.7/32 -p tcp --dport 80 -j KUBE-SVC; -A KUBE-SVC -j KUBE-SEP; "
    "-A KUBE-SEP -p tcp -j DNAT --to-destination 10.244.0.7:8080"
)


def test_a_chain_counts_only_if_the_service_gets_there(net: RulesWorld) -> None:
    apply(net, "nat", KUBERNETES)
    assert found(net) == []
    assert net.b.rules(*BASE, "--strict").returncode == 0
    apply(net, "nat", "-A KUBE-SERVICES -p tcp --dport 7005 -j KUBE-SVC")
    assert found(net) == [("service-forwarded", "unprotected")]


def test_an_nft_chain_counts_only_if_the_service_gets_there(net: RulesWorld) -> None:
    rules = [
        "add table inet pub",
        "add chain inet pub pre { type nat hook prerouting priority -100; }",
        "add chain inet pub out { type nat hook output priority -100; }",
        *(f"add chain inet pub {name}" for name in ("ports", "there")),
        "add rule inet pub pre fib daddr type local jump ports",
        "add rule inet pub pre meta l4proto { tcp, udp } th dport 53 redirect to :5353",
        "add rule inet pub out tcp dport 80 redirect to :8080",
        "add rule inet pub ports tcp dport 8080 jump there",
        "add rule inet pub there meta l4proto tcp dnat ip to 172.17.0.2:80",
    ]
    net.b.namespace.run("nft", "; ".join(rules))
    assert found(net) == []
    net.b.namespace.run("nft", "add rule inet pub ports tcp dport vmap { 7001 : jump there }")
    assert found(net) == [("service-forwarded", "unprotected")]


# ------------------------------------------------------------------------------------------------ past our rules

TAKES, TAKES_SOME = [("mangle-accept", "unprotected")], [("mangle-accept", "degraded")]
ACCEPTS: list[tuple[str, list[tuple[str, str]]]] = [
    ("PREROUTING -j ACCEPT", TAKES),
    ("PREROUTING -p tcp --dport 7000 -j ACCEPT", TAKES),
    ("PREROUTING -i eth0 -p tcp -j ACCEPT", TAKES),
    (f"OUTPUT -s {SERVICE} -j ACCEPT", TAKES),
    ("OUTPUT -p tcp --sport 7000 -j ACCEPT", TAKES),
    ("PREROUTING -s 192.0.2.0/24 -j ACCEPT", TAKES_SOME),
    ("OUTPUT -d 192.0.2.0/24 -p tcp -j ACCEPT", TAKES_SOME),
    ("PREROUTING -m length --length 40 -j ACCEPT", TAKES_SOME),
    ("PREROUTING -p udp -j ACCEPT", []),
    ("PREROUTING -i lo -j ACCEPT", []),
    ("PREROUTING -p tcp --dport 22 -j ACCEPT", []),
    ("OUTPUT -p tcp --sport 22 -j ACCEPT", []),
    ("OUTPUT -o lo -j ACCEPT", []),
]


def test_rules_that_let_the_service_pass_by_ours_are_told(net: RulesWorld) -> None:
    for rule, codes in ACCEPTS:
        net.b.iptables("-t", "mangle", "-A", *rule.split())
        assert found(net) == codes, rule
        net.b.iptables("-t", "mangle", "-D", *rule.split())


# ------------------------------------------------------------------------------------------------ packet marks

ERASED, LATE, SET = ("mark-erased", "warning"), ("mark-erased-late", "unprotected"), ("mark-set", "degraded")
MARKS: list[tuple[str, list[tuple[str, str]]]] = [
    ("OUTPUT -p tcp --sport 7000 -j MARK --set-mark 1", [ERASED]),
    (f"OUTPUT -s {SERVICE}/16 -j MARK --set-mark 1", [ERASED]),
    ("OUTPUT -p tcp -m multiport --sports 22,7090:7200 -j MARK --and-mark 0xff", [ERASED]),
    ("OUTPUT -o eth+ -j MARK --or-mark 0x10000000", [SET]),
    ("OUTPUT -j MARK --xor-mark 0x10000000", [SET]),
    ("POSTROUTING -j MARK --set-mark 7", [LATE]),
    ("OUTPUT -j MARK --set-mark 0x1/0xff", []),
    ("OUTPUT -p udp -j MARK --set-mark 1", []),
    ("OUTPUT -p tcp --sport 22 -j MARK --set-mark 1", []),
    ("OUTPUT -s 192.0.2.0/24 -j MARK --set-mark 1", []),
    (f"OUTPUT ! -s {SERVICE} -j MARK --set-mark 1", []),
    ("POSTROUTING -o lo -j MARK --set-mark 1", []),
    ("PREROUTING -j MARK --set-mark 0x10000000", []),  # what comes in is queued whatever its mark
    ("OUTPUT -j CONNMARK --restore-mark", []),  # the service is untracked
]


def test_rules_that_set_marks_without_a_mask_are_told(net: RulesWorld) -> None:
    for rule, codes in MARKS:
        net.b.iptables("-t", "mangle", "-A", *rule.split())
        assert found(net) == codes, rule
        net.b.iptables("-t", "mangle", "-D", *rule.split())
    net.b.iptables("-t", "filter", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "1")
    assert found(net) == [LATE]
    assert found(net, "--own", "mark", "--conntrack", "liberal") == [LATE]


def test_marks_in_a_chain_count_if_the_service_gets_there(net: RulesWorld) -> None:
    apply(net, "mangle", "-N elsewhere; -A OUTPUT -p udp -j elsewhere; -A elsewhere -j MARK --set-mark 1")
    assert found(net) == []
    apply(net, "mangle", "-N between; -A OUTPUT -p tcp -j between; -A between -g elsewhere")
    assert found(net) == [ERASED]


def test_without_the_owner_match_a_mark_of_others_weighs_more(net: RulesWorld) -> None:
    net.b.iptables("-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0xffffffff")
    assert found(net, "--own", "mark") == [("mark-set", "unprotected")]
    net.b.iptables("-t", "mangle", "-R", "OUTPUT", "1", "-j", "CONNMARK", "--restore-mark")
    assert found(net, "--conntrack", "liberal") == [ERASED]


NFT_MARKS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("output priority -200", "meta mark set 1", [ERASED]),
    ("output priority -200", "tcp sport 7000-7001 meta mark set 1", [ERASED]),
    ("output priority mangle", "meta mark set 1", [("mark-erased-late", "degraded")]),
    ("output priority filter - 1", "meta mark set 1", [LATE]),
    ("postrouting priority 0", "meta mark set numgen inc mod 2", [LATE]),
    ("output priority -200", "meta mark set meta mark or 0x10000000", [SET]),
    ("output priority -200", "meta mark set meta mark and 0xffffff00 or 1", []),
    ("output priority -200", "meta mark set ct mark", []),
    ("output priority -200", "udp sport 9 meta mark set 1", []),
    ("output priority -200", "ip saddr 192.0.2.1 meta mark set 1", []),
    ("output priority -200", "oifname lo meta mark set 1", []),
    ("output priority -200", "ct mark set 1", []),
    ("prerouting priority 0", "meta mark set 1", []),
]


def test_nft_rules_that_set_marks_are_told(net: RulesWorld) -> None:
    for hook, rule, codes in NFT_MARKS:
        chain = f"add chain inet theirs c {{ type filter hook {hook}; }}"
        net.b.namespace.run("nft", f"add table inet theirs; {chain}; add rule inet theirs c {rule}")
        assert found(net) == codes, rule
        net.b.namespace.run("nft", "delete table inet theirs")


def test_an_nft_chain_of_marks_has_the_place_of_the_chain_that_leads_there(net: RulesWorld) -> None:
    rules = [
        "add table inet theirs",
        "add chain inet theirs pre { type filter hook prerouting priority 0; }",
        "add chain inet theirs out { type route hook output priority -200; }",
        "add chain inet theirs marks",
        "add rule inet theirs marks meta mark set 1",
        "add rule inet theirs pre goto marks",
        "add rule inet theirs out udp dport 53 goto marks",
    ]
    net.b.namespace.run("nft", "; ".join(rules))
    assert found(net) == []
    net.b.namespace.run("nft", "add rule inet theirs out tcp sport 7000 goto marks")
    assert found(net) == [ERASED]


def test_routing_rules_that_compare_our_bit_are_told(net: RulesWorld) -> None:
    for rule in ("fwmark 1/0xff", "not from all fwmark 7"):
        net.b.ip("rule", "add", *rule.split(), "lookup", "100")
    assert found(net) == []
    net.b.ip("rule", "add", "fwmark", "1", "lookup", "100")
    assert found(net) == [("mark-routed", "warning")]


def test_an_installation_warns_and_a_record_is_enough_for_the_look(net: RulesWorld) -> None:
    net.b.iptables("-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "1")
    done = net.b.rules(*BASE)
    assert done.returncode == 0
    assert "-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff" in done.stderr
    assert "--set-xmark VALUE/0xefffffff" in done.stderr
    assert net.b.rules("host").stderr.startswith("mark-erased\twarning\t")
    assert net.b.rules(*BASE, "--strict").returncode == 0, "it can work like that"
