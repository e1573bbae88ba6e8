"""Two nodes that are given other settings while they run: ports above all, which one of them has before the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfq_failover.core import ports
from nfq_failover.core.concerns import Weight
from nfq_failover.core.events import (
    ApplyRules,
    Log,
    PacketQueued,
    Profile,
    Queue,
    RulesApplied,
    SettingsChanged,
    Verdict,
)
from nfq_failover.core.pair.roles import State
from nfq_failover.core.ports import Ports
from nfq_failover.wire.build import build_segment
from tests.unit.core.pair.test_agreement import Pair

FIRST: Ports = ((80, 80),)
MORE: Ports = ((80, 80), (8081, 8082))
ACK, SYN = 0x10, 0x02
PROTECTED = [State.PROTECTED, State.SHADOWING]


class Reloading(Pair):
    """A pair whose rules are in force `late_s` after they were asked for, and fail where `fails` says so.

    At no time does a primary clone what its backup does not divert, nor is a protected port left out.
    """

    def __init__(self, late_s: float = 0.05, **more: Any) -> None:
        self.first = {name: more.get(name, {}).get("ports", FIRST) for name in ("alpha", "beta")}
        self.rules: dict[str, tuple[Profile, Ports]] = {
            name: (Profile.BACKUP, mine) for name, mine in self.first.items()
        }
        self.late_s = dict.fromkeys(self.first, late_s)
        self.fails: set[str] = set()
        self.waiting: list[tuple[float, str, ApplyRules]] = []
        super().__init__(**more)

    def apply(self, name: str, effect: ApplyRules) -> None:
        self.waiting.append((self.now + self.late_s[name], name, effect))

    def beat(self, name: str) -> None:
        self.carry_out()
        super().beat(name)

    def carry_out(self) -> None:
        due = [each for each in self.waiting if each[0] <= self.now]
        self.waiting = [each for each in self.waiting if each[0] > self.now]
        for _, name, effect in due:
            ok = name not in self.fails
            if ok:
                self.rules[name] = effect.profile, effect.ports or self.first[name]
                self.check()
            self.nodes[name].handle(RulesApplied(effect.profile, ok, "", effect.ports), self.now)
            self.drain(name)

    def check(self) -> None:
        for name, (profile, mine) in self.rules.items():
            _, theirs = self.rules["beta" if name == "alpha" else "alpha"]
            if profile is Profile.PRIMARY:
                assert ports.covers(theirs, mine), f"{name} clones {mine}, the other diverts {theirs}"
                assert ports.covers(mine, FIRST)

    def reload(self, name: str, **changes: Any) -> None:
        node = self.nodes[name]
        node.handle(SettingsChanged(replace(node.settings, **changes)), self.now)
        self.drain(name)

    def diverts(self) -> dict[str, Ports]:
        return {name: mine for name, (_, mine) in self.rules.items()}


@pytest.fixture
def pair() -> Reloading:
    made = Reloading().run(5)
    assert made.states() == PROTECTED
    return made


@pytest.mark.parametrize("order", [("alpha", "beta"), ("beta", "alpha")])
def test_ports_are_protected_when_both_hosts_have_them(pair: Reloading, order: tuple[str, str]) -> None:
    one, other = order
    generation = pair.nodes["alpha"].members.generation
    pair.reload(one, ports=MORE)
    pair.run(3)
    assert pair.rules["alpha"] == (Profile.PRIMARY, FIRST)
    assert pair.rules["beta"] == (Profile.BACKUP, MORE if one == "beta" else FIRST)
    for name in order:
        assert pair.found(name)["differs-added-ports"][0] is Weight.DEGRADED
        assert "80, 8081-8082 (in force so far: 80) on " + one in pair.found(name)["differs-added-ports"][1]
    pair.reload(other, ports=MORE)
    pair.run(3)
    assert pair.diverts() == {"alpha": MORE, "beta": MORE}
    assert not pair.found("alpha") and not pair.found("beta")
    assert pair.states() == PROTECTED and pair.nodes["alpha"].members.generation == generation
    assert not pair.nodes["alpha"].sharing.fresh and not pair.nodes["beta"].sharing.fresh


@pytest.mark.parametrize("more", [MORE, (*MORE, *((port, port) for port in range(20_000, 21_000, 2)))])
@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_host_that_was_started_with_more_ports_waits_for_the_rules_of_the_other(first: str, more: Ports) -> None:
    """Also if the list is too long to be told whole."""
    settings: dict[str, Any] = {first: {"ports": more}}
    pair = Reloading(**settings).run(3)
    assert pair.states() == [State.UNPROTECTED, State.SHADOWING]
    second = "beta" if first == "alpha" else "alpha"
    pair.late_s[second] = 1.0
    pair.reload(second, ports=more)
    pair.run(5)
    assert pair.states() == PROTECTED
    assert pair.diverts() == {"alpha": ports.union(more), "beta": ports.union(more)}
    assert not pair.found("alpha") and not pair.found("beta")


def test_rules_that_fail_on_the_backup_leave_the_port_alone(pair: Reloading) -> None:
    pair.fails.add("beta")
    pair.reload("alpha", ports=MORE)
    pair.reload("beta", ports=MORE)
    pair.run(3)
    assert pair.diverts() == {"alpha": FIRST, "beta": FIRST}
    assert pair.states() == PROTECTED


@pytest.mark.parametrize("order", [("alpha", "beta"), ("beta", "alpha")])
def test_the_concern_is_over_when_the_rules_are_there_and_not_before(order: tuple[str, str]) -> None:
    one, other = order
    pair = Reloading(0.5).run(8)
    pair.reload(one, ports=MORE)
    pair.run(2)
    pair.reload(other, ports=MORE)
    gone_at = None
    for _ in range(100):
        pair.run(0.02)
        if "differs-added-ports" not in pair.found("alpha") and gone_at is None:
            gone_at = pair.diverts()
    assert gone_at == {"alpha": MORE, "beta": MORE}


@pytest.mark.parametrize("late_s", [0.0, 0.3])
def test_both_at_once(late_s: float) -> None:
    pair = Reloading(late_s).run(5)
    pair.reload("alpha", ports=MORE)
    pair.reload("beta", ports=MORE)
    pair.run(3)
    assert pair.diverts() == {"alpha": MORE, "beta": MORE} and pair.states() == PROTECTED


def test_more_than_once(pair: Reloading) -> None:
    last: Ports = ((80, 81), (8081, 8082), (9000, 9000))
    for more in (MORE, last):
        pair.reload("beta", ports=more)
        pair.run(1)
        pair.reload("alpha", ports=more)
        pair.run(1)
    assert pair.diverts() == {"alpha": last, "beta": last} and pair.states() == PROTECTED


def test_a_long_list_of_ports_is_no_difference(pair: Reloading) -> None:
    """Longer than what a host tells in a record, so that only a digest of the rest is compared."""
    many = ports.union(FIRST, *(((port, port),) for port in range(1000, 1200, 3)))
    pair.reload("beta", ports=many)
    pair.run(2)
    pair.reload("alpha", ports=many)
    pair.run(2)
    assert not pair.found("alpha") and pair.states() == PROTECTED
    assert pair.diverts() == {"alpha": many, "beta": many}


def test_a_host_that_serves_alone_takes_them_when_the_other_is_back_with_them() -> None:
    cut: list[str] = []
    pair = Reloading(carry=lambda name, data: not cut).run(5)
    cut.append("the wire")
    pair.run(10)
    assert pair.states()[0] is State.UNPROTECTED
    pair.reload("alpha", ports=MORE)
    pair.run(1)
    assert pair.rules["alpha"] == (Profile.ALONE, FIRST)
    pair.reload("beta", ports=MORE)
    cut.clear()
    pair.run(10)
    assert pair.diverts()["alpha"] == MORE and not pair.found("alpha").keys() & {"differs-ports", "differs-added-ports"}


def test_protection_comes_back_without_the_port_that_one_host_lacks(pair: Reloading) -> None:
    pair.reload("alpha", ports=MORE)
    pair.carry = lambda name, data: False
    pair.run(10)
    assert pair.rules["alpha"] == (Profile.ALONE, FIRST)
    pair.carry = lambda name, data: True
    pair.run(20)
    assert pair.states() == PROTECTED and pair.rules["alpha"] == (Profile.PRIMARY, FIRST)


# ------------------------------------------------------------------------------------ connections


def server_segment(port: int, flags: int = ACK, payload: bytes = b"x") -> bytearray:
    service = bytes((10, 77, 0, 100))
    return build_segment((service, port), (bytes((10, 77, 0, 1)), 40000), 1000, 2000, flags, 500, payload=payload)


def test_a_connection_that_is_older_than_its_port_goes_on_on_the_primary(pair: Reloading) -> None:
    alpha = pair.nodes["alpha"]
    alpha.gate.opening.adopt_unknown(False)  # as right after a takeover
    for name in ("beta", "alpha"):
        pair.reload(name, ports=MORE)
        pair.run(1)
    pair.done.clear()
    for number, port in ((1, 8081), (2, 80)):
        alpha.handle(PacketQueued(Queue.OUT, number, server_segment(port)), pair.now)
        pair.drain("alpha")
    verdicts = {effect.packet_id: effect.accept for _, effect in pair.done if isinstance(effect, Verdict)}
    assert verdicts == {1: True, 2: False}  # the other one can only be a leftover
    (connection,) = alpha.gate.flows.values()
    assert connection.reason == "opened before its port was added"
    assert pair.states() == PROTECTED and not pair.found("alpha")


# ------------------------------------------------------------------------------------ other settings


def test_other_settings_count_at_once(pair: Reloading) -> None:
    alpha = pair.nodes["alpha"]
    pair.reload("alpha", on_app_failure="off", max_connections=30_000, hole_deadline_ms=200, health_checked=True)
    pair.run(1)
    assert alpha.gate.settings is alpha.settings and alpha.settings.hole_deadline_ms == 200
    assert {"differs-on-failure", "differs-max-connections", "differs-health"} <= pair.found("beta").keys()
    pair.reload("beta", on_app_failure="off", max_connections=30_000, health_checked=True)
    pair.run(1)
    assert not pair.found("beta") and pair.states() == PROTECTED
    assert pair.rules["alpha"] == (Profile.PRIMARY, FIRST)
    assert not [effect for _, effect in pair.done if isinstance(effect, Log) and effect.event == "ports were added"]
