"""The table of a shadowed connection's moves: each happens, and no other is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nfq_failover.core.shadow.checkpoint import pack, unpack
from nfq_failover.core.shadow.connection import SHADOW_MOVES, SHADOW_STARTS, Shadow, ShadowConnection
from nfq_failover.errors import InternalError
from nfq_failover.wire.records import Fed, Unprotected
from tests.support.gate import digest
from tests.support.shadow import answer, from_client, replica
from tests.support.transcript import FLOW, OWN_TS, After, ShadowTranscript, granted, opening, server, settings
from tests.unit.core.shadow.test_divergence import Comparing

Move = tuple[Shadow, Shadow]
Scenario = Callable[[], None]
SCENARIOS: list[Scenario] = []


class Unwatched(ShadowTranscript):
    """A shadow whose effects are other tests' business."""

    def drain(self) -> None:
        super().drain()
        self.effects.clear()


def scenario(run: Scenario) -> Scenario:
    """A test of its own; all together must use every move of the table."""
    SCENARIOS.append(run)
    return run


def shadowed() -> Unwatched:
    """The replica has answered, and the handshake is complete."""
    t = Unwatched()
    return t >> opening() >> answer() >> from_client() >> replica()


@scenario
def replica_answers() -> None:
    shadowed()


@scenario
def replica_answers_anew() -> None:
    shadowed() >> server(8999, ack=0, flags="S.", options=granted(3, OWN_TS))


@scenario
def hosts_grant_different_options() -> None:
    Unwatched() >> opening() >> answer(sack=False)


@scenario
def primary_gives_it_up_before_the_replica_answers() -> None:
    Unwatched() >> opening() >> Unprotected(1, "let go")


@scenario
def client_contradicts_itself_before_the_replica_answers() -> None:
    t = Unwatched() >> opening() >> from_client(0, 10) >> from_client(0, 10, payload=bytes(10))
    assert t.side.flows[FLOW].state is Shadow.DEAD


@scenario
def takeover() -> None:
    shadowed() >> "takeover"


@scenario
def replica_resets() -> None:
    shadowed() >> replica(0, flags="R.")


@scenario
def primary_lets_it_be_fed_and_the_replica_resets() -> None:
    shadowed() >> Fed(1, "its server has ended elsewhere") >> replica(0, flags="R.")


@scenario
def hole_can_not_be_filled() -> None:
    t = shadowed() >> "takeover"
    for _ in range(5):
        t.now += 1.0
        t >> from_client(1000, 10)


@scenario
def differs_after_the_takeover_while_its_input_is_on_the_way() -> None:
    with Comparing() as t:
        t >> digest(0, 1200, bytes(1200))
        t.effects.clear()
        t >> from_client(0, 100)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        t >> replica(0, 1200)
        found = [t.effects.popleft() for _ in range(len(t.effects))]
        assert any("client [R" in str(each) for each in found), found
        assert not any("kernel [R" in str(each) for each in found), found
        assert t.shadow.state is Shadow.FED and t.shadow.heard
        for _ in range(20):  # our TCP takes the rest, then it is reset
            t >> replica(1200, ack=100)
            found += [t.effects.popleft() for _ in range(len(t.effects))]
            t >> After(0.05)
            found += [t.effects.popleft() for _ in range(len(t.effects))]
        assert any("kernel [R" in str(each) for each in found), found
        assert not t.out.counters["input-missed-here"]


def moves_of(monkeypatch: pytest.MonkeyPatch, run: Scenario) -> list[Move]:
    """The moves that a scenario makes, in order."""
    moves: list[Move] = []
    enter = ShadowConnection.enter

    def noting(self: ShadowConnection, state: Shadow, reason: str = "") -> None:
        moves.append((self.state, state))
        enter(self, state, reason)

    monkeypatch.setattr(ShadowConnection, "enter", noting)
    run()
    monkeypatch.undo()
    return moves


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario_makes_moves_of_the_table(monkeypatch: pytest.MonkeyPatch, run: Scenario) -> None:
    moves = moves_of(monkeypatch, run)
    assert moves
    assert moves[0][0] in SHADOW_STARTS
    assert all(move in SHADOW_MOVES for move in moves)


def test_every_move_of_the_table_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {move for run in SCENARIOS for move in moves_of(monkeypatch, run)} == set(SHADOW_MOVES)


def at(state: Shadow) -> ShadowConnection:
    """A connection in a state, led there by the shortest way."""
    made: Any = ShadowConnection(opening(), settings(), 0.0)
    ways = {
        Shadow.OPENING: (),
        Shadow.SHADOW: (Shadow.SHADOW,),
        Shadow.ACTIVE: (Shadow.SHADOW, Shadow.ACTIVE),
        Shadow.FED: (Shadow.SHADOW, Shadow.FED),
    }
    for one in ways.get(state, (Shadow.DEAD,)):
        made.enter(one)
    assert made.state is state
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", Shadow)
@pytest.mark.parametrize("after", Shadow)
def test_other_moves_are_refused(before: Shadow, after: Shadow) -> None:
    connection = at(before)
    if (before, after) in SHADOW_MOVES:
        connection.enter(after, "why")
        assert (connection.state, connection.reason) == (after, "why")
        return
    with pytest.raises(InternalError, match=f"no move from {before.name} to {after.name}"):
        connection.enter(after, "why")
    assert (connection.state, connection.reason) == (before, "")


@pytest.mark.parametrize("state", set(Shadow) - set(SHADOW_STARTS))
def test_no_connection_begins_in_another_state(state: Shadow) -> None:
    with pytest.raises(InternalError, match="begins"):
        ShadowConnection(opening(), settings(), 0.0, state)


def test_what_was_given_up_twice_has_the_latest_reason() -> None:
    connection = at(Shadow.DEAD)
    connection.give_up("this host leaves")
    assert (connection.state, connection.reason) == (Shadow.DEAD, "this host leaves")


@pytest.mark.parametrize("state", [Shadow.ACTIVE, Shadow.DEAD])
def test_restart_begins_where_the_connection_was(state: Shadow) -> None:
    t = shadowed() >> "takeover"
    connection = t.side.flows[FLOW]
    if state is Shadow.DEAD:
        connection.give_up("lost")
    assert unpack(pack(connection), settings(), t.now).state is state
