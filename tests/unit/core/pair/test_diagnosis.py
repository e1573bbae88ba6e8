"""Two hosts that do not find together, and what each of them says about it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from nfq_failover.core.concerns import Standing, Weight
from nfq_failover.core.events import (
    DatagramReceived,
    Log,
    SendDatagram,
    StrangerHeard,
    TimerFired,
    Undelivered,
)
from nfq_failover.core.node import Node
from nfq_failover.core.pair.diagnosis import REPEAT_S
from tests.support import configured

A, B = ("192.0.2.11", 7766), ("192.0.2.12", 7766)
Change = Callable[[str, bytes], bytes | None]


def unchanged(_: str, data: bytes) -> bytes | None:
    return data


class Hosts:
    """The nodes of `alpha` (A) and `beta` (B), and the way between them.

    `change` maps what a host sends, or drops it; `moved`: from where a host's datagrams come, if not from its address.
    """

    def __init__(self, alpha: dict[str, object] | None = None, beta: dict[str, object] | None = None) -> None:
        self.now = 100.0
        one = {"name": "alpha", "peers": (configured.peer("beta", *B),)} | (alpha or {})
        two = {"name": "beta", "peers": (configured.peer("alpha", *A),)} | (beta or {})
        self.nodes = {
            "alpha": Node(configured.settings(**one), Random(1).randbytes, 0, False, self.now),
            "beta": Node(configured.settings(**two), Random(2).randbytes, 0, False, self.now),
        }
        self.at = {"alpha": A, "beta": B}
        self.moved: dict[str, tuple[str, int]] = {}
        self.change: Change = unchanged
        self.lines: dict[str, list[Log]] = {"alpha": [], "beta": []}

    def run(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Hosts:
        """Let time pass."""
        stop = self.now + seconds
        while self.now < stop:
            self.now += 0.025
            meanwhile()
            for name, node in self.nodes.items():
                node.handle(TimerFired(), self.now)
                self._drain(name)
        return self

    def _drain(self, name: str) -> None:
        while (effect := self.nodes[name].poll_effect()) is not None:
            if isinstance(effect, Log):
                self.lines[name].append(effect)
            elif isinstance(effect, SendDatagram):
                self._carry(name, effect)

    def _carry(self, sender: str, effect: SendDatagram) -> None:
        receiver = next((name for name, end in self.at.items() if end == effect.destination), None)
        data = self.change(sender, effect.data)
        if receiver is None or data is None:
            return
        source = self.moved.get(sender, self.at[sender])
        known = source in {link.source for link in self.nodes[receiver].links.all}
        event = DatagramReceived(source, data) if known else StrangerHeard(source, data)
        self.nodes[receiver].handle(event, self.now)
        self._drain(receiver)

    def concern(self, name: str) -> Standing | None:
        """What a host says of its peer's silence."""
        found = [each for each in self.nodes[name].out.concerns.standing() if each.concern.code == "peer-unheard"]
        return found[0] if found else None

    def says(self, name: str) -> str:
        standing = self.concern(name)
        assert standing is not None
        assert standing.concern.weight is Weight.UNPROTECTED
        assert standing.concern.cure
        return standing.concern.what

    def told(self, name: str) -> list[Log]:
        """The lines about it in a host's log."""
        events = ("the peer is not heard", "concern: unprotected")
        return [line for line in self.lines[name] if line.event in events]


def test_hosts_that_find_together_say_nothing() -> None:
    hosts = Hosts().run(5)
    assert hosts.concern("alpha") is hosts.concern("beta") is None
    assert hosts.told("alpha") == hosts.told("beta") == []


def test_another_key() -> None:
    hosts = Hosts(beta={"key": b"x" * 32}).run(3)
    assert hosts.says("alpha") == "datagrams come from 192.0.2.12, but with another key"
    assert hosts.says("beta") == "datagrams come from 192.0.2.11, but with another key"


@pytest.mark.parametrize("name", ["aaa", "gamma"])  # before and after alpha in the order of names
def test_another_name(name: str) -> None:
    hosts = Hosts(beta={"name": name}).run(3)
    assert hosts.says("alpha") == (
        f"datagrams come from 192.0.2.12, but they call themselves '{name}', this host expects 'beta'"
    )
    assert hosts.says("beta") == f"datagrams come from 192.0.2.11, but they are meant for 'beta', this host is '{name}'"


def test_one_configuration_on_both_hosts() -> None:
    hosts = Hosts(beta={"name": "alpha", "peers": (configured.peer("beta", *A),)}).run(3)
    assert "they call themselves 'alpha', which is this host's own name" in hosts.says("alpha")
    assert "they call themselves 'alpha', which is this host's own name" in hosts.says("beta")


def test_another_version() -> None:
    hosts = Hosts()
    hosts.change = lambda name, data: b"\3" + data[1:] if name == "beta" else data
    hosts.run(3)
    assert (
        hosts.says("alpha")
        == "datagrams come from 192.0.2.12, but they speak version 3 of the sync channel, this host 2"
    )


@pytest.mark.parametrize("source", [("192.0.2.12", 4711), ("198.51.100.1", 7766)])
def test_an_unexpected_source(source: tuple[str, int]) -> None:
    hosts = Hosts()
    hosts.moved["beta"] = source
    hosts.run(3)
    assert hosts.says("alpha") == (
        f"datagrams of beta come from {source[0]}:{source[1]}, this host expects 192.0.2.12:7766"
    )


def test_one_direction_is_blocked() -> None:
    hosts = Hosts()
    hosts.change = lambda name, data: data if name == "beta" else None
    hosts.run(3)
    assert hosts.says("alpha") == "datagrams of beta arrive here, but those to 192.0.2.12:7766 do not arrive there"
    assert hosts.says("beta").startswith("nothing has arrived from 192.0.2.11:7766 for 3 s; ")
    assert hosts.says("beta").endswith(" datagrams were sent: is UDP 7766 open there and here?")


@pytest.mark.parametrize(
    ("reason", "local", "words"),
    [
        ("nobody-listens", False, "nobody listens at 192.0.2.12:7766: the daemon is not running there"),
        ("no-host", False, "there is no way to 192.0.2.12:7766"),
        ("prohibited", False, "a firewall refuses what this host sends to 192.0.2.12:7766"),
        ("Operation not permitted", True, "this host can't send to 192.0.2.12:7766: Operation not permitted"),
    ],
)
def test_what_the_network_says(reason: str, local: bool, words: str) -> None:
    hosts = Hosts()
    hosts.change = lambda _, data: None
    hosts.run(3, lambda: hosts.nodes["alpha"].handle(Undelivered(B, reason, local), hosts.now))
    assert hosts.says("alpha").startswith(words)
    assert "; nothing has arrived from 192.0.2.12:7766 for 3 s" in hosts.says("alpha")


def test_a_host_that_is_starting_refuses_only_for_a_moment() -> None:
    hosts = Hosts()
    hosts.change = lambda _, data: None
    hosts.nodes["alpha"].handle(Undelivered(B, "nobody-listens"), hosts.now)
    hosts.run(2)
    assert hosts.says("alpha").startswith("nothing has arrived from 192.0.2.12:7766")


def test_silence_is_told_at_once_and_then_once_a_minute() -> None:
    hosts = Hosts()
    hosts.change = lambda _, data: None
    hosts.run(0.1)
    assert [line.event for line in hosts.lines["alpha"]] == ["waiting for the peer"]
    hosts.run(2.0)
    assert len(hosts.told("alpha")) == 1
    hosts.run(3 * REPEAT_S)
    assert len(hosts.told("alpha")) == 4
    assert {line.level for line in hosts.told("alpha")} == {"error"}


def test_what_is_found_out_later_is_told_at_once() -> None:
    hosts = Hosts(beta={"key": b"x" * 32})
    hosts.change = lambda _, data: None
    hosts.run(5)
    hosts.change = unchanged
    hosts.run(1)
    assert [str(line.fields.get("why", ""))[-11:] for line in hosts.told("alpha")] == ["", "another key"]


def test_all_is_well_again_as_soon_as_the_peer_is_heard() -> None:
    hosts = Hosts()
    hosts.change = lambda _, data: None
    hosts.run(5)
    hosts.change = unchanged
    hosts.run(2)
    assert hosts.concern("alpha") is hosts.concern("beta") is None
    assert [line.fields["code"] for line in hosts.lines["alpha"] if line.event == "concern is over"] == ["peer-unheard"]


class Attacker:
    """Sends `alpha` what needs no key: a peer's address is easily forged."""

    def __init__(self, hosts: Hosts) -> None:
        self.node = hosts.nodes["alpha"]
        self.hosts = hosts
        self.random = Random(3)
        self.recorded: list[bytes] = []

    def __call__(self) -> None:
        junk = self.random.randbytes(80)
        for head in (b"\2\1", b"\2\x81", b"\2\3", b"\1\1", bytes((self.random.randrange(256), 1)), b""):
            self.node.handle(DatagramReceived(B, head + junk), self.hosts.now)
            self.node.handle(
                StrangerHeard(("198.51.100.7", self.random.randrange(1, 65536)), head + junk), self.hosts.now
            )
        for data in self.recorded:
            self.node.handle(DatagramReceived(B, data), self.hosts.now)
        self.node.handle(
            Undelivered(B, self.random.choice(("nobody-listens", "no-host", "prohibited"))), self.hosts.now
        )


def test_junk_says_nothing_of_a_peer_that_is_heard() -> None:
    hosts = Hosts()
    attacker = Attacker(hosts)

    def record(name: str, data: bytes) -> bytes:
        if name == "beta" and data[1] & 0x7F == 1:
            attacker.recorded.append(data)
        return data

    hosts.change = record
    hosts.run(1)
    assert hosts.nodes["alpha"].protector.session.established
    hosts.run(20, attacker)
    assert hosts.concern("alpha") is None
    assert hosts.told("alpha") == []


def test_junk_can_fill_no_log_and_hides_neither_name_nor_source() -> None:
    hosts = Hosts(beta={"name": "gamma"})
    hosts.run(5 * REPEAT_S, Attacker(hosts))
    assert "but they call themselves 'gamma'" in hosts.says("alpha")
    assert len(hosts.told("alpha")) <= 5 * 9
    other = Hosts()
    other.moved["beta"] = ("192.0.2.12", 4711)
    other.run(5, Attacker(other))
    assert "datagrams of beta come from 192.0.2.12:4711" in other.says("alpha")


def test_junk_changes_no_state_of_hosts_that_wait() -> None:
    hosts, quiet = Hosts(), Hosts()
    for each in (hosts, quiet):
        each.change = lambda _, data: None
    hosts.run(30, Attacker(hosts))
    quiet.run(30)
    assert hosts.nodes["alpha"].members.state is quiet.nodes["alpha"].members.state
    hosts.change = unchanged
    hosts.run(3, Attacker(hosts))
    assert hosts.concern("alpha") is None
