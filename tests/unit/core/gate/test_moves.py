"""The table of a gated connection's moves: each happens, and no other is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nfq_failover.core.gate.connection import GATE_MOVES, GATE_STARTS, NOT_READY, Gate, GatedConnection
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.errors import InternalError
from nfq_failover.wire.records import EndKind, Fed, Handed, HandedOver, Opened, PaceTold, Unprotected
from tests.support.gate import TS
from tests.support.transcript import (
    FLOW,
    IRS,
    After,
    GateTranscript,
    client_seq,
    confirmed,
    opening,
    replica_end,
    server,
    server_seq,
    syn,
    syn_ack,
)

Move = tuple[Gate, Gate]
Scenario = Callable[[], None]
SCENARIOS: list[Scenario] = []


class Unwatched(GateTranscript):
    """A gate whose effects are other tests' business. A finding leads to a hand-over."""

    def __lshift__(self, expected: object) -> Unwatched:
        raise AssertionError("nobody compares effects here")

    def drain(self) -> None:
        super().drain()
        self.effects.clear()

    def judge(self, found: ApplicationFailed) -> None:
        self.side.hand_over(found.connection, found.reason, self.now)


def scenario(run: Scenario) -> Scenario:
    """A test of its own; all together must use every move of the table."""
    SCENARIOS.append(run)
    return run


def held(**changes: Any) -> Unwatched:
    """The SYN-ACK waits."""
    t = Unwatched(**changes)
    return t >> syn() >> syn_ack()


def protected(**changes: Any) -> Unwatched:
    """The replica was ready in time, and our server has sent something."""
    t = held(**changes)
    return t >> Opened(1, True, client_seq(40000)) >> confirmed(0, 40000) >> server(0, 100, wnd=10000, ts=TS)


def late() -> Unwatched:
    """The replica was not ready in time; the client has been told of 3000 bytes."""
    return held() >> After(1.1) >> server(0, 0, ack=3000, ts=TS)


@scenario
def replica_is_ready() -> None:
    protected()


@scenario
def replica_is_not_ready_in_time() -> None:
    late()


@scenario
def port_is_used_again_before_the_replica_is_ready() -> None:
    held() >> syn() >> syn_ack(iss=77)


@scenario
def late_replica_lacks_nothing() -> None:
    late() >> confirmed(3000, 70000)


@scenario
def late_replica_catches_up() -> None:
    late() >> confirmed(1000, 70000) >> confirmed(3000, 70000)


@scenario
def late_replica_does_not_catch_up() -> None:
    late() >> confirmed(1000, 70000) >> After(0.6)


@scenario
def port_is_used_again_while_the_replica_catches_up() -> None:
    late() >> confirmed(1000, 70000) >> syn(irs=IRS + 70000) >> syn_ack(irs=IRS + 70000, iss=77)


@scenario
def server_resets_what_has_no_replica() -> None:
    replica = Unprotected(1, "the replica reset the connection")
    protected() >> replica >> server(100, flags="R.", wnd=0, ts=TS)


@scenario
def replica_stands_still_and_comes_back() -> None:
    t = protected()
    for _ in range(30):
        t >> After(0.1) >> confirmed(0, 40000)
    t >> PaceTold(1, 1, client_seq(0), client_seq(40000), server_seq(100))
    t >> PaceTold(1, 2, client_seq(0), client_seq(40000), server_seq(100))


@scenario
def replica_is_lost() -> None:
    protected() >> Unprotected(1, "the replica reset the connection")


@scenario
def replica_differs_and_is_lost_later() -> None:
    protected() >> Fed(1, "diverged") >> Unprotected(1, "the replica reset the connection")


@scenario
def replica_differs_until_the_server_resets() -> None:
    protected() >> Fed(1, "diverged") >> server(100, flags="R.", wnd=0, ts=TS)


@scenario
def late_replica_differs() -> None:
    held() >> After(1.1) >> Fed(1, "diverged")


@scenario
def late_replica_differs_while_it_catches_up() -> None:
    late() >> confirmed(1000, 70000) >> Fed(1, "diverged")


@scenario
def both_servers_reset() -> None:
    protected() >> replica_end(100, EndKind.RST) >> server(100, flags="R.", wnd=0, ts=TS)


@scenario
def backup_refuses_a_connection_whose_server_has_failed() -> None:
    t = protected(on_app_failure="connection")
    t >> server(100, flags="F.", wnd=10000, ts=TS)
    for _ in range(100):
        t >> After(0.1) >> replica_end(101, EndKind.OPEN)
    t >> HandedOver(1, Handed.REFUSED, "unknown to the backup")


def moves_of(monkeypatch: pytest.MonkeyPatch, run: Scenario) -> list[Move]:
    """The moves that a scenario makes, in order."""
    moves: list[Move] = []
    enter = GatedConnection.enter

    def noting(self: GatedConnection, state: Gate, reason: str) -> None:
        moves.append((self.state, state))
        enter(self, state, reason)

    monkeypatch.setattr(GatedConnection, "enter", noting)
    run()
    monkeypatch.undo()
    return moves


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario_makes_moves_of_the_table(monkeypatch: pytest.MonkeyPatch, run: Scenario) -> None:
    moves = moves_of(monkeypatch, run)
    assert moves
    assert moves[0][0] in GATE_STARTS
    assert all(move in GATE_MOVES for move in moves)


def test_every_move_of_the_table_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {move for run in SCENARIOS for move in moves_of(monkeypatch, run)} == set(GATE_MOVES)


def at(state: Gate) -> GatedConnection:
    """A connection in a state, led there by the shortest way."""
    ways: dict[Gate, tuple[Gate, ...]] = {start: (start,) for start in GATE_STARTS}
    while state not in ways:
        for before, after in GATE_MOVES:
            if before in ways:
                ways.setdefault(after, (*ways[before], after))
    first, *rest = ways[state]
    connection = GatedConnection(opening(), 0.0, first, "a start")
    for one in rest:
        connection.enter(one, "on the way")
    return connection


@pytest.mark.parametrize("before", Gate)
@pytest.mark.parametrize("after", Gate)
def test_other_moves_are_refused(before: Gate, after: Gate) -> None:
    connection = at(before)
    if (before, after) in GATE_MOVES:
        connection.enter(after, "why")
        assert (connection.state, connection.reason) == (after, "why")
        return
    reason = connection.reason
    with pytest.raises(InternalError, match=f"no move from {before.name} to {after.name}"):
        connection.enter(after, "why")
    assert (connection.state, connection.reason) == (before, reason)


@pytest.mark.parametrize("state", Gate)
def test_acknowledgements_are_held_in_three_states(state: Gate) -> None:
    connection = at(state)
    assert connection.gated == (state in (Gate.PROTECTED, Gate.CATCHING_UP))
    assert connection.fed == (state is Gate.FED)
    assert connection.acks.holds == (connection.gated or connection.fed)
    assert connection.acks.lenient == (state in (Gate.CATCHING_UP, Gate.FED))


@pytest.mark.parametrize("state", set(Gate) - set(GATE_STARTS))
def test_no_connection_begins_in_another_state(state: Gate) -> None:
    with pytest.raises(InternalError, match="begins"):
        GatedConnection(opening(), 0.0, state, "why")


def test_late_replica_is_waited_for_under_one_reason() -> None:
    t = late()
    connection = t.side.flows[FLOW]
    assert (connection.state, connection.reason) == (Gate.UNPROTECTED, NOT_READY)
    t >> confirmed(1000, 70000)
    assert (connection.state, connection.reason) == (Gate.CATCHING_UP, NOT_READY)
