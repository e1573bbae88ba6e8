"""The table of states: complete, closed, and used."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.roles import TRANSITIONS, Candidate, Input, State, next_state
from nfq_failover.errors import InternalError
from tests.unit.core.pair import test_membership_backup as backup
from tests.unit.core.pair import test_membership_boot as boot
from tests.unit.core.pair import test_membership_health as health
from tests.unit.core.pair import test_membership_primary as primary
from tests.unit.core.pair import test_membership_witness as witness


def test_every_transition_of_the_table_happens_in_a_scenario() -> None:
    seen = set().union(
        *(run().seen for scenarios in (boot, primary, backup, health, witness) for run in scenarios.SCENARIOS)
    )
    assert sorted(set(TRANSITIONS) - seen, key=str) == []
    assert sorted(seen - set(TRANSITIONS), key=str) == []


def test_transition_that_is_not_in_the_table_is_our_own_bug() -> None:
    with pytest.raises(InternalError, match="no transition from WAITING on ARMED"):
        next_state(State.WAITING, Input.ARMED)


def test_order_of_candidates_is_total() -> None:
    candidates = [
        Candidate(shadowing, epoch, served, preferred, name)
        for shadowing in (False, True)
        for epoch in (1, 2)
        for served in (False, True)
        for preferred in (False, True)
        for name in ("a", "b")
    ]
    for one in candidates:
        assert Candidate.from_heartbeat(one.flags(), one.stored_epoch, one.name) == one
        for other in candidates:
            if one.name != other.name:
                assert one.goes_before(other) is not other.goes_before(one)
