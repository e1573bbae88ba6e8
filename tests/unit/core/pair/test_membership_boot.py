"""Who serves: hosts that boot."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.roles import Do, State
from tests.support.member import Member, Scenario, collector

S = State
SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)


@scenario
def elected_with_the_peers_consent() -> Member:
    h = Member()
    assert h.hear(S.WAITING, heard=False) == []  # the peer may not hear us: no consent
    assert h.hear(S.WAITING) == [Do.STORE]
    assert (h.state, h.members.epoch) == (S.CLAIMING, 1)
    assert h.stored() == [Do.SERVE]
    assert h.at(S.UNPROTECTED)
    return h


@scenario
def not_elected_against_a_greater_candidate() -> Member:
    h = Member(epoch=3)
    assert h.hear(S.WAITING, stored=4) == []
    assert h.hear(S.WAITING, stored=3, served=True) == []
    assert h.hear(S.WAITING, stored=2, served=True) == [Do.STORE]
    assert h.members.epoch == 4
    return h


@scenario
def elected_beyond_the_epoch_of_the_peer() -> Member:
    h = Member(epoch=3)
    h.hear(S.LEAVING, stored=9)
    assert (h.state, h.members.epoch) == (S.CLAIMING, 10)
    return h


@scenario
def becomes_backup_of_one_who_serves() -> Member:
    h = Member(epoch=7, served=True)
    assert h.hear(S.UNPROTECTED, 7, 3) == [Do.STORE]  # it is the backup now, on disk too
    assert h.at(S.SHADOWING)
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert h.hear(S.PROTECTED, 7, 4) == []
    assert not h.members.invalid
    return h


@scenario
def does_not_follow_an_older_epoch() -> Member:
    h = Member(epoch=8)
    assert h.hear(S.PROTECTED, 7, 3) == []
    assert h.at(S.WAITING)
    return h


@scenario
def waits_alone_for_ever() -> Member:
    h = Member()
    assert h.silence(60.0) == []
    assert h.at(S.WAITING) and "will not serve alone" in h.members.reason
    return h


@scenario
def fences_when_alone_if_told_so() -> Member:
    h = Member(boot_alone="fence")
    assert h.silence(2.9) == []
    assert h.silence(0.2) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE]
    assert h.at(S.BOOT_FENCING)
    assert h.fence(False) == []
    assert h.at(S.WAITING)
    assert h.silence(29.0) == []
    assert h.silence(1.5) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    assert h.stored() == [Do.SERVE]
    return h


@scenario
def does_not_fence_when_alone_because_it_is_cut_off() -> Member:
    h = Member(boot_alone="fence")
    h.silence(3.1)
    assert h.link(False) == [] and h.at(S.WAITING) and "cut off" in h.members.reason
    assert h.silence(1.1) == [Do.CHECK_LINK], "it looks again soon"
    h.reach(False)
    assert h.link(True) == []
    assert h.silence(1.1) == [Do.CHECK_LINK]
    h.reach(True)
    assert h.link(True) == [], "the peer had no time to be heard"
    assert h.silence(1.1) == [Do.CHECK_LINK]
    h.hear(S.WAITING, stored=5)
    assert h.link(True) == [] and h.at(S.WAITING), "it is there after all"
    return h


@scenario
def does_not_fence_when_alone_without_a_fence() -> Member:
    h = Member(boot_alone="fence", has_fence=False)
    assert h.silence(20.0) == []
    return h


@scenario
def peer_serves_after_all_while_it_is_being_fenced() -> Member:
    h = Member(boot_alone="fence")
    h.silence(3.1)
    h.link(True)
    h.hear(S.UNPROTECTED, 5)
    assert h.at(S.SHADOWING)
    assert h.fence(True) == []
    return h


@scenario
def peer_serves_after_all_while_the_epoch_is_stored() -> Member:
    h = Member()
    h.hear(S.WAITING)
    h.hear(S.UNPROTECTED, 5)
    assert h.at(S.SHADOWING)
    assert h.stored() == []
    return h


@scenario
def epoch_that_can_not_be_stored_is_not_served_in() -> Member:
    h = Member()
    h.hear(S.WAITING)
    assert h.stored(ok=False) == []
    assert h.at(S.WAITING)
    return h


@scenario
def operator_claims_a_waiting_host() -> Member:
    h = Member()
    assert h.members.claim() == "claimed"
    assert h.done() == [Do.STORE]
    assert h.stored() == [Do.SERVE]
    assert "nothing to claim" in h.members.claim()
    return h


@scenario
def daemon_of_a_host_that_served_unprotected_restarts() -> Member:
    h = Member(epoch=4, served=True)
    h.members.resume(4)
    assert h.done() == [Do.RESUME]
    assert h.at(S.UNPROTECTED) and h.members.epoch == 4
    assert h.hear(S.WAITING) == []  # a peer that restarts meanwhile follows
    assert h.hear(S.SHADOWING, 4) == [Do.ARM]
    return h


@scenario
def daemon_restarts_with_an_epoch_that_was_announced_but_not_stored() -> Member:
    h = Member(epoch=4, served=True)
    h.members.resume(5)
    assert h.done() == [Do.STORE, Do.RESUME]
    return h


@scenario
def daemon_that_resumed_yields_to_a_newer_epoch() -> Member:
    h = Member(epoch=4, served=True)
    h.members.resume(4)
    h.done()
    assert h.hear(S.UNPROTECTED, 5) == [Do.SILENCE]
    assert h.at(S.WAITING)
    return h


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()
