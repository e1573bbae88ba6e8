"""Probes through a backup's rules, as other programs make them: what they drop is seen, and nothing leaves the host."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from nfq_failover.constants import DEFAULT_QUEUE_IN
from nfq_failover.core.events import Queue
from nfq_failover.shell.firewall.path import Outcome, PathProbe, ProbeSender, Target, Way
from nfq_failover.shell.packets.nfqueue import PacketQueue, open_counters
from tests.support.namespaces import CLIENT, SERVICE
from tests.support.rules_world import VARIANTS, RulesWorld, Sniffer, world

pytestmark = pytest.mark.netns

WAIT_S = 0.12
NOTHING: set[Way] = set()
OUT, IN, LO = {Way.OUTWARD}, {Way.INWARD}, {Way.INJECTED}
HOST = ("--service", SERVICE, "--ports", "80,7000:7099", "--interface", "eth0")
IPTABLES = [
    ("filter", "-A OUTPUT -o eth0 -p tcp --sport 80 -j DROP", OUT),
    ("filter", "-A OUTPUT -p tcp --sport 80 -j REJECT", OUT),
    ("filter", "-P OUTPUT DROP; -A OUTPUT -p udp -j ACCEPT", OUT | LO),
    ("filter", "-P OUTPUT DROP; -A OUTPUT -p udp -j ACCEPT; -A OUTPUT -p tcp --sport 80 -j ACCEPT", LO),
    ("filter", f"-N own; -A OUTPUT -j own; -A own ! -s {SERVICE} -j RETURN; -A own -d {CLIENT} -j DROP", OUT),
    ("mangle", "-A POSTROUTING -o eth0 -p tcp --sport 80 -j DROP", OUT),
    ("raw", "-I OUTPUT -p tcp --sport 80 -j DROP", OUT),
    ("filter", "-A INPUT -i eth0 -p tcp --dport 80 -j DROP", IN),
    ("filter", "-A INPUT -p tcp --dport 80 -j REJECT --reject-with tcp-reset", IN | LO),
    ("filter", "-P INPUT DROP; -A INPUT -p tcp --dport 22 -j ACCEPT; -A INPUT -i lo -j ACCEPT", IN),
    ("filter", "-A INPUT -i lo ! -s 127.0.0.0/8 -j DROP", LO),
    ("filter", f"-A INPUT -i lo -d {SERVICE} -j DROP", LO),
    ("raw", "-I PREROUTING -i eth0 -p tcp --dport 80 -j DROP", IN),
    ("mangle", "-A INPUT -p tcp --dport 80 -j DROP", IN | LO),
    # Nobody listens there; with a program it is the program that decides.
    ("filter", "-A INPUT -p tcp --dport 80 -j NFQUEUE --queue-num 99", IN | LO),
    ("mangle", "-A POSTROUTING -p tcp --sport 80 -j NFQUEUE --queue-num 99", OUT),
    ("filter", "-A INPUT -p tcp --dport 80 -m state --state UNTRACKED -j SYNPROXY --mss 1460", IN | LO),
    # Untracked is neither: what is accepted by state alone ends at the policy.
    ("filter", "-P INPUT DROP; -A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT; -A INPUT -i lo -j ACCEPT", IN),
    ("filter", "-A INPUT -m state --state INVALID -j DROP", NOTHING),
    ("filter", "-A OUTPUT -m state --state INVALID -j DROP", NOTHING),
    ("filter", "-A INPUT -p tcp --dport 81 -j DROP", NOTHING),
    ("filter", f"-A OUTPUT ! -s {SERVICE} -p tcp --sport 80 -j DROP", NOTHING),
    ("mangle", "-I PREROUTING -j MARK --set-mark 1; -I OUTPUT -j MARK --set-mark 1", NOTHING),
]
NFT = [
    ("in { type filter hook input priority 0; policy drop; }", ["iif lo accept", "tcp dport 22 accept"], IN),
    (
        "in { type filter hook input priority 0; policy drop; }",
        ["ct state { established, related } accept", "ct state invalid drop", "iif lo accept"],
        IN,
    ),
    ("in { type filter hook input priority 0; policy drop; }", ["iif lo accept", "tcp dport { 80 } accept"], NOTHING),
    ("out { type filter hook output priority 10; }", ["ct state invalid drop", "tcp sport 80 drop"], OUT),
    ("post { type filter hook postrouting priority 300; }", ["tcp sport vmap { 80 : drop }"], OUT),
    ("pre { type filter hook prerouting priority -310; }", ["fib saddr . iif oif missing drop"], NOTHING),
    ("pre { type filter hook prerouting priority -50; }", ["iif lo ip saddr != 127.0.0.0/8 reject"], LO),
]


@dataclass
class Prober:
    """The backup's probes, and its input queue in place of the daemon's."""

    net: RulesWorld
    probe: PathProbe
    queue: PacketQueue

    def blocked(self) -> set[Way]:
        """The ways that a connection of the client can't go."""
        client = Target(socket.inet_aton(CLIENT), 40000, 80, True)
        with self.net.b.namespace.entered():
            self.probe.begin([(way, client) for way in Way])
        until = time.monotonic() + WAIT_S
        while self.probe.under_way and time.monotonic() < until:
            assert self.probe.sift(list(self.queue.read(8))) == []
            self.queue.flush()
            self.probe.collect()
            time.sleep(0.005)
        self.probe.end()
        assert not any(each.outcome is Outcome.UNKNOWN for each in self.probe.probes)
        return {each.way for each in self.probe.probes if each.outcome is Outcome.DROPPED}

    def told(self) -> set[str]:
        """The ways for which the script names rules that may be why."""
        lines = self.net.b.rules("host", *HOST).stderr.splitlines()
        return {line.split("\t")[0].removeprefix("path-") for line in lines if "\thint\t" in line}


@pytest.fixture(params=VARIANTS, scope="module")
def prober(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prober]:
    with world(request.param, tmp_path_factory.mktemp("rules")) as net:
        net.b.ip("address", "add", f"{SERVICE}/32", "dev", "lo")
        net.b.ip("neighbor", "replace", CLIENT, "lladdr", "02:77:00:00:00:01", "dev", "eth0")
        net.b.namespace.run("iptables-nft", "-t", "nat", "-nL")  # loads connection tracking
        net.b.install("backup")
        with net.b.namespace.entered():
            sender = ProbeSender(SERVICE, "eth0")
            queue = PacketQueue(DEFAULT_QUEUE_IN, Queue.IN, max_len=64, rcvbuf=1 << 16, counters=open_counters())
        assert sender.owned
        refused: list[int] = []
        service = socket.inet_aton(SERVICE)
        probe = PathProbe(service, sender, lambda packet_id: queue.verdict(packet_id, True), refused.append)
        try:
            yield Prober(net, probe, queue)
            assert not refused
        finally:
            queue.close()
            sender.close()


@pytest.fixture
def undone(prober: Prober) -> Iterator[Callable[..., None]]:
    """Runs a command in the backup's namespace; `undo` is run there at the end."""
    todo: list[tuple[str, ...]] = []

    def run(*command: str, undo: tuple[str, ...]) -> None:
        prober.net.b.namespace.run(*command)
        todo.append(undo)

    yield run
    for command in reversed(todo):
        prober.net.b.namespace.run(*command)


def undo_of(rule: list[str]) -> list[str]:
    """What takes an iptables rule, a chain or a policy away again."""
    action, *rest = rule
    other = {"-A": "-D", "-I": "-D", "-N": "-X"}
    return [other[action], *rest] if action in other else [action, rest[0], "ACCEPT"]


@pytest.mark.parametrize(("table", "rules", "ways"), IPTABLES)
def test_what_iptables_drops_is_seen(
    prober: Prober, undone: Callable[..., None], table: str, rules: str, ways: set[Way]
) -> None:
    tool = (f"iptables-{prober.net.b.variant}", "-t", table)
    with Sniffer(prober.net.client) as client:
        for rule in rules.split("; "):
            undone(*tool, *rule.split(), undo=(*tool, *undo_of(rule.split())))
        assert prober.blocked() == ways
        assert {way.value for way in ways} <= prober.told()
        assert client.from_service() == [], "no probe leaves the host"


@pytest.mark.parametrize(("chain", "rules", "ways"), NFT)
def test_what_nft_drops_is_seen(
    prober: Prober, undone: Callable[..., None], chain: str, rules: list[str], ways: set[Way]
) -> None:
    undone("nft", "add table inet f", undo=("nft", "delete table inet f"))
    name = chain.split()[0]
    undone("nft", f"add chain inet f {chain}", undo=("true",))
    for rule in rules:
        undone("nft", f"add rule inet f {name} {rule}", undo=("true",))
    assert prober.blocked() == ways
    assert {way.value for way in ways} <= prober.told()


@pytest.mark.parametrize("state", ["INVALID", "INVALID,UNTRACKED"])
def test_what_is_about_invalid_packets_only_is_not_named(
    prober: Prober, undone: Callable[..., None], state: str
) -> None:
    """The service's are not tracked, so that is not why; the cure of what is named first has to help."""
    tool = f"iptables-{prober.net.b.variant}", "-t", "filter"
    rule = "INPUT", "-p", "tcp", "--dport", "80", "-m", "conntrack", "--ctstate", state, "-j", "DROP"
    undone(*tool, "-A", *rule, undo=(*tool, "-D", *rule))
    assert prober.told() == (set() if state == "INVALID" else {"in", "lo"})
    undone("nft", "add table inet f", undo=("nft", "delete table inet f"))
    undone("nft", "add chain inet f in { type filter hook input priority 0; }", undo=("true",))
    undone("nft", "add rule inet f in ct state invalid drop", undo=("true",))
    assert prober.told() == (set() if state == "INVALID" else {"in", "lo"})


def test_what_the_reverse_path_filter_drops_is_seen(prober: Prober, undone: Callable[..., None]) -> None:
    setting = "net.ipv4.conf.all.rp_filter"
    undone("sysctl", "-qw", f"{setting}=1", undo=("sysctl", "-qw", f"{setting}=0"))
    assert prober.blocked() == NOTHING
    undone("ip", "route", "add", f"{CLIENT}/32", "dev", "lo", undo=("ip", "route", "del", f"{CLIENT}/32"))
    assert Way.INWARD in prober.blocked()


def test_no_tcp_takes_a_probe(prober: Prober) -> None:
    """Nothing answers, and no connection begins."""
    with prober.net.b.listener(80), Sniffer(prober.net.client) as client:
        made_up = Target(socket.inet_aton(CLIENT), 40001, 80, False)
        with prober.net.b.namespace.entered():
            prober.probe.begin([(way, made_up) for way in Way])
        prober.probe.sift(list(prober.queue.read(8)))
        prober.queue.flush()
        time.sleep(0.05)
        prober.probe.end()
        assert {each.outcome for each in prober.probe.probes} == {Outcome.PASSED}
        assert "40001" not in prober.net.b.namespace.run("ss", "-Hant", f"src {SERVICE}")
        assert client.from_service() == []


def test_what_turns_probes_round_goes_with_the_rules(prober: Prober) -> None:
    """Last: it takes the rules away."""
    shown = prober.net.b.namespace.run("tc", "filter", "show", "dev", "eth0", "egress")
    assert "mirred (Ingress Redirect to device eth0)" in shown
    assert "all is as it was installed" in prober.net.b.rules("show").stdout
    done = prober.net.b.rules("remove", "--force")
    assert done.returncode == 0, done.stderr
    assert "clsact" not in prober.net.b.namespace.run("tc", "qdisc", "show", "dev", "eth0")
