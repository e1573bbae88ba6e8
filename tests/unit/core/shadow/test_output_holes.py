"""A packet of the replica that was lost on its way to us: its TCP sends it again, so that it can be compared."""

from __future__ import annotations

import pytest

from nfq_failover.core.shadow.connection import Shadow
from tests.support.gate import digest, seen
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import After
from tests.unit.core.shadow.test_divergence import Comparing


def acks(t: Shadowing) -> list[int]:
    """What our TCP is told that the client has."""
    told = [int(text.split(" ack ")[1].split()[0]) for text in map(str, t.effects) if " ack " in text]
    t.effects.clear()
    return told


def test_what_we_have_missed_is_not_acknowledged_until_it_has_come() -> None:
    with Comparing() as t:
        t >> replica(0, 1000) << SILENT
        t >> replica(2000, 1000) << SILENT  # the one in between was lost in our queue
        t >> from_client(ack=3000)
        assert acks(t) == [1000]
        t >> digest(0, 3000)
        t.effects.clear()
        t >> replica(1000, 1000)
        assert seen(3000) in t.effects
        assert acks(t) == [3000]
        assert not t.out.counters["digest-not-compared"]


def test_later_segments_make_its_tcp_repeat_the_missing_one() -> None:
    """As a receiver's duplicate acknowledgements do."""
    with Comparing() as t:
        t >> replica(0, 1000) << SILENT
        t >> from_client(ack=9000)
        assert acks(t) == [1000]
        for at in (2000, 3000, 4000):
            t >> replica(at, 1000)
            assert acks(t) in ([], [1000])


@pytest.mark.parametrize("policy", ["off", "default"])
def test_what_is_not_compared_any_more_is_acknowledged(policy: str) -> None:
    with Comparing(policy) as t:
        if policy == "default":
            t >> digest(0, 0)
            t.effects.clear()
            t.shadow.output.stop_comparing()
        t >> replica(0, 1000) << SILENT
        t >> replica(2000, 1000) << SILENT
        t >> from_client(ack=3000)
        assert acks(t) == [3000]


def test_what_there_was_no_room_for_does_not_hold_its_tcp_up() -> None:
    """It was acknowledged when nobody knew that something was missing."""
    with Comparing(max_unacked_bytes=1000) as t:
        t >> replica(0, 1000) << SILENT
        t >> replica(1000, 1000) << SILENT
        t >> from_client(ack=2000)
        assert acks(t) == [2000]
        t >> replica(2500, 500) << SILENT
        t >> from_client(ack=3000)
        assert acks(t) == [3000]
        t >> After(1.0)
        t.effects.clear()
        assert t.shadow.state is Shadow.SHADOW
