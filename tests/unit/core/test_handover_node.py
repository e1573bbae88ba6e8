"""A hand-over and the rest of the host: when it may begin, and which rules it needs."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import ApplyRules, Inject, OperatorCommand, Profile, TimerFired
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import UNHEALTHY, Do, State
from nfq_failover.wire.records import Handed, HandedOver, HandOver
from tests.support.transcript import FLOW, opening
from tests.unit.core.test_node import NodePair


def serving(pair: NodePair) -> tuple[Node, GatedConnection]:
    """Host a is a protected primary, with one connection."""
    node = pair.nodes["a"]
    node.members.state = State.PROTECTED
    node.gate.protecting = True
    connection = GatedConnection(opening(), pair.now)
    connection.enter(Gate.PROTECTED, "")
    node.gate.flows[FLOW] = node.gate.numbers[1] = connection
    return node, connection


def fail(node: Node, connection: GatedConnection, now: float) -> None:
    """The connection's server is found to have failed."""
    node.gate.findings.append(ApplicationFailed(connection, "it has failed", alone=True))
    node._judge(now)


def follow(pair: NodePair, state: State = State.SHADOWING, flags: int = 0) -> None:
    """What the peer is, and that it hears us."""
    pair.heartbeat("b", role=int(state.role), state=int(state), flags=flags, echo_ms=int(pair.now * 1000))


@pytest.mark.parametrize(
    ("state", "flags", "late_s", "may"),
    [
        (State.SHADOWING, 0, 0.0, True),
        (State.SHADOWING, UNHEALTHY, 0.0, False),
        (State.CHECKING, 0, 0.0, False),
        (State.SHADOWING, 0, 1.0, False),
    ],
)
def test_it_begins_only_if_the_backup_can_go_on(state: State, flags: int, late_s: float, may: bool) -> None:
    pair = NodePair()
    node, connection = serving(pair)
    follow(pair, state, flags)
    node.members.state = State.PROTECTED
    fail(node, connection, pair.now + late_s)
    assert (connection.state is Gate.HANDED) is may
    assert (FLOW in node.gate.flows) is not may
    assert any(isinstance(record, HandOver) for record in node.protector.lane) is may


def rules(node: Node) -> list[Profile]:
    """The rules that are asked for."""
    found = [e.profile for e in node.out.effects if isinstance(e, ApplyRules)]
    node.out.effects.clear()
    return found


def test_tap_stays_on_without_protection_until_the_last_one_is_over() -> None:
    pair = NodePair()
    node, connection = serving(pair)
    node.gate.opening.adopt_unknown(True)
    follow(pair)
    node.members.state = State.PROTECTED
    fail(node, connection, pair.now)
    node.out.effects.clear()
    node.members.state = State.UNPROTECTED
    node.actions._do(Do.RELEASE, pair.now)
    assert rules(node) == [Profile.PRIMARY]  # no bypass either: our TCP's answers must not get out if the daemon dies
    node.gate.handovers.on_handed(HandedOver(1, Handed.ACTIVE), pair.now)
    node.handle(TimerFired(), pair.now + 0.03)
    assert rules(node) == []
    node.gate.handovers.on_handed(HandedOver(1, Handed.OVER), pair.now)
    node.handle(TimerFired(), pair.now + 0.06)
    assert rules(node) == [Profile.ALONE]
    node.handle(TimerFired(), pair.now + 0.09)
    assert rules(node) == []


@pytest.mark.parametrize("role", [State.SHADOWING, State.UNPROTECTED])
def test_backup_that_leaves_cuts_what_it_was_given(role: State) -> None:
    pair = NodePair()
    node = pair.nodes["b"]
    node.members.state = role
    cuts: list[str] = []

    def cut(reason: str, now: float) -> None:
        del now
        cuts.append(reason)

    node.shadow.handovers.cut = cut  # type: ignore[method-assign]
    node.handle(OperatorCommand("shutdown"), pair.now)
    assert cuts == (["this host leaves"] if role is State.SHADOWING else [])
    assert not any(isinstance(e, Inject) and not e.inward for e in node.out.effects)
