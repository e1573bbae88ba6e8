"""A replica that its client does not wait for is compared all the while, and may be as late as it likes."""

from __future__ import annotations

import pytest

from nfq_failover.core.shadow import comparison, divergence
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.divergence import NOT_COMPARED
from nfq_failover.wire.records import PaceAsked
from tests.support.gate import digest, seen
from tests.support.shadow import SILENT, from_client, replica
from tests.unit.core.shadow.test_divergence import Comparing, changed, lost
from tests.unit.core.shadow.test_lengths import quiet


class Late(Comparing):
    """Its client does not wait for it."""

    def __init__(self, policy: str = "default", **changes: object) -> None:
        super().__init__(policy, **changes)
        self >> PaceAsked(1, 1)
        self.effects.clear()
        assert self.shadow.late


def test_it_is_compared_as_any_other() -> None:
    with Late() as t:
        t >> digest(0, 300)
        t >> replica(0, 300) << SILENT << seen(300)
        t >> replica(300, 300) << SILENT
        t.differ(300, changed(300, 300, 310))
        t << "log debug: output differs" << seen(600, 1)


@pytest.mark.parametrize("late", [True, False])
def test_digest_that_is_lost_for_good_ends_it(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a connection that has never been let go the rest is compared."""
    monkeypatch.setattr(divergence, "GAP_PENDING", 2)
    with Late() if late else Comparing() as t:
        t >> replica(0, 300) << SILENT
        t >> digest(100, 100)
        t >> digest(200, 100)
        if late:
            lost(t, NOT_COMPARED)
        else:
            t << seen(300)


def test_output_that_was_not_kept_until_its_digest_came_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "KEEP_BYTES", 1000)
    with Late() as t:
        for given in (replica(0, 1000), replica(1000, 1000), from_client(ack=2000)):
            t >> given
            t.effects.clear()
        t >> digest(0, 100)
        lost(t, NOT_COMPARED)


def lags(t: Comparing) -> None:
    """The server has sent 20 bytes that the client has, and the replica has not."""
    t >> digest(0, 20)
    t >> from_client(ack=20)
    t.effects.clear()


def test_it_may_stand_still_while_no_replica_says_anything() -> None:
    with Late(out_of_step_ms=2000) as t:
        lags(t)
        quiet(t, 30.0)
        assert t.shadow.state is Shadow.SHADOW
        t >> replica(0, 20)
        assert seen(20) in t.effects
        t.effects.clear()


def test_it_may_stand_still_no_longer_once_others_go_on() -> None:
    with Late(out_of_step_ms=2000) as t:
        lags(t)
        quiet(t, 30.0)
        for _ in range(10):
            t.side.lengths.heard_replica(t.now)  # another connection's
            quiet(t, 0.5)
        assert t.shadow.state is Shadow.FED
        assert "bytes less than the server, which the client has" in t.shadow.reason


def test_it_may_be_late_as_long_as_it_goes_on() -> None:
    with Late(out_of_step_ms=2000) as t:
        t >> digest(0, 4000)
        t >> from_client(ack=4000)
        for number in range(20):
            t.effects.clear()
            t >> replica(20 * number, 20)
            quiet(t, 1.0)
        assert t.shadow.state is Shadow.SHADOW


def test_it_may_not_say_more_than_its_server() -> None:
    with Late(out_of_step_ms=2000) as t:
        lags(t)
        t >> replica(0, 25)
        assert seen(20) in t.effects
        t.effects.clear()
        quiet(t, 5.0)
        assert "5 bytes more than the server" in t.shadow.reason
