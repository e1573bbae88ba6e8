"""A replica whose output is shorter, or longer, than what the client has: found in time, and never silent for good."""

from __future__ import annotations

import pytest

from nfq_failover.core.shadow.connection import Shadow
from tests.support.gate import digest
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import After
from tests.unit.core.shadow.test_divergence import Comparing


def quiet(t: Shadowing, seconds: float = 0.0) -> list[str]:
    """Time passes; all that has come out."""
    found = [str(effect) for effect in t.effects]
    t.effects.clear()
    for _ in range(round(seconds / 0.05)):
        t >> After(0.05)
        found += [str(effect) for effect in t.effects]
        t.effects.clear()
    return found


def message(t: Comparing, number: int, replica_too: bool) -> None:
    """The server sends 20 bytes more, and the client acknowledges them."""
    at = 20 * number
    if replica_too:
        t >> replica(at, 20)
        quiet(t)
    t >> digest(at, 20)
    quiet(t)
    t >> from_client(ack=at + 20)
    quiet(t)


def test_replica_that_stands_still_while_its_server_goes_on() -> None:
    with Comparing(out_of_step_ms=2000) as t:
        for number in range(4):
            message(t, number, True)
            quiet(t, 0.5)
        assert t.shadow.state is Shadow.SHADOW
        for number in range(4, 9):
            message(t, number, False)
            quiet(t, 0.5)
        assert "bytes less than the server, which the client has" in t.shadow.reason
        assert any(each.startswith("Fed(") for each in quiet(t, 12.0))


def test_replica_that_is_always_a_message_late_and_never_catches_up() -> None:
    """Its bytes are the same, so that nothing but the lengths tells."""
    with Comparing(out_of_step_ms=2000) as t:
        t >> digest(0, 4000)
        quiet(t)
        t >> from_client(ack=4000)
        quiet(t)
        for number in range(5):
            t >> replica(20 * number, 20)
            quiet(t, 0.5)
        assert "bytes less than the server, which the client has" in t.shadow.reason


def test_replica_that_is_late_again_and_again_is_not_out_of_step() -> None:
    with Comparing(out_of_step_ms=2000) as t:
        for number in range(12):
            t >> digest(20 * number, 20)
            quiet(t)
            t >> from_client(ack=20 * number + 20)
            quiet(t, 1.0)
            t >> replica(20 * number, 20)
            quiet(t)
        assert t.shadow.state is Shadow.SHADOW


def test_client_that_acknowledges_nothing_is_the_reason_for_both() -> None:
    with Comparing(out_of_step_ms=1000) as t:
        t >> digest(0, 4000)
        quiet(t, 5.0)
        assert t.shadow.state is Shadow.SHADOW


def test_replica_that_says_more_while_both_go_on() -> None:
    with Comparing(out_of_step_ms=1000) as t:
        t >> replica(0, 400) << SILENT
        for number in range(5):
            t >> digest(20 * number, 20)
            quiet(t)
            t >> from_client(ack=20 * number + 20)
            quiet(t, 0.4)
        assert "bytes more than the server" in t.shadow.reason


@pytest.mark.parametrize("policy", ["default", "off"])
def test_silence_after_a_takeover_ends_with_a_reset(policy: str) -> None:
    with Comparing(policy, hole_deadline_ms=1000) as t:
        t >> replica(0, 100) << SILENT
        t >> from_client(ack=500)
        quiet(t)
        t >> "takeover"
        quiet(t)
        t >> replica(100, 100)  # the client has it: it hears nothing
        assert "drop client-has-it" in quiet(t)
        assert not any("client [R" in each for each in quiet(t, 0.9))
        found = quiet(t, 1.5)
        assert any("client [R.] 500" in each for each in found), found
        assert "does not produce 300 bytes that the client has" in t.shadow.reason


def test_late_replica_catches_up_after_a_takeover() -> None:
    with Comparing("off", hole_deadline_ms=1000) as t:
        t >> from_client(ack=500)
        quiet(t)
        t >> "takeover"
        quiet(t)
        for number in range(5):
            t >> replica(100 * number, 100)
            quiet(t, 0.8)
        t >> replica(500, 100)
        assert any(each.startswith("pass [.] 500:600") for each in quiet(t))
        quiet(t, 3.0)
        assert t.shadow.state is Shadow.ACTIVE


def test_late_replica_has_no_more_time_than_one_that_is_compared() -> None:
    with Comparing("off", hole_deadline_ms=1000, out_of_step_ms=3000) as t:
        t >> from_client(ack=5000)
        quiet(t)
        t >> "takeover"
        quiet(t)
        for number in range(5):
            t >> replica(100 * number, 100)
            quiet(t, 0.8)
        assert "that the client has" in t.shadow.reason


def test_client_that_says_after_the_takeover_what_it_has() -> None:
    with Comparing("off", hole_deadline_ms=1000) as t:
        t >> replica(0, 100) << SILENT
        t >> from_client(ack=100)
        quiet(t)
        t >> "takeover"
        quiet(t)
        t >> from_client(ack=300)  # from a primary that is dead
        quiet(t, 0.5)
        assert t.shadow.state is Shadow.ACTIVE
        assert any("client [R.] 300" in each for each in quiet(t, 1.0))
