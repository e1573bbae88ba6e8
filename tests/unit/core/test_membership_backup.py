"""Who serves: the backup, and what becomes of its primary."""

from __future__ import annotations

import pytest
from core_hosts import DETECTION_S, Host, Scenario, collector

from nfq_failover.core.membership import Do
from nfq_failover.core.roles import Role, State

S = State
SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)


@scenario
def takes_over_after_the_fence() -> Host:
    h = Host().shadow()
    assert h.silence(DETECTION_S + 0.03) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    assert h.members.epoch == 8
    assert h.stored() == [Do.TAKE_OVER]
    assert h.at(S.UNPROTECTED) and h.members.may_continue(h.now)
    return h


@scenario
def refuses_when_the_fence_fails() -> Host:
    h = Host().fencing()
    assert h.fence(False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED) and "timeout" in h.members.reason
    assert h.silence(5.0) == []
    return h


@scenario
def refuses_without_a_fence() -> Host:
    h = Host(has_fence=False).check()
    assert h.link(True) == [Do.INVALIDATE]
    assert h.at(S.REFUSED) and "no fence" in h.members.reason
    return h


@scenario
def refuses_when_its_own_link_is_down() -> Host:
    h = Host(split_brain_accepted=True).check()
    assert h.link(False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    return h


@scenario
def split_brain_accepted_takes_over_without_a_fence() -> Host:
    h = Host(has_fence=False, split_brain_accepted=True).check()
    assert h.link(True) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    return h


@scenario
def split_brain_accepted_takes_over_when_the_fence_fails() -> Host:
    h = Host(split_brain_accepted=True).fencing()
    assert h.fence(False) == [Do.STORE]
    return h


@scenario
def primary_comes_back_while_the_link_is_checked() -> Host:
    h = Host().check()
    h.hear(S.PROTECTED, 7, 3)
    h.tick()
    assert h.at(S.SHADOWING)
    assert h.link(True) == [] and h.at(S.SHADOWING)
    return h


@scenario
def primary_that_yields_is_followed_at_once() -> Host:
    h = Host().shadow()
    assert h.hear(S.LEAVING, 7) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert h.members.may_continue(h.now)
    return h


@scenario
def primary_that_restarts_while_the_link_is_checked_is_followed() -> Host:
    h = Host().check()
    assert h.hear(S.WAITING, 7) == [Do.STORE]
    return h


@scenario
def primary_that_restarts_in_no_time_leaves_its_connections_valid() -> Host:
    h = Host().shadow()
    h.members.session_started(h.monitor)
    h.monitor.reset(h.now)
    h.hear(S.WAITING, 7, heard=False)
    assert h.at(S.STORING) and h.members.may_continue(h.now)
    return h


@scenario
def epoch_that_can_not_be_stored_is_not_taken_over_in() -> Host:
    h = Host().storing()
    assert h.stored(ok=False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    return h


@scenario
def refused_host_follows_a_primary_again() -> Host:
    h = Host().refused()
    h.hear(S.UNPROTECTED, 7, 3)
    assert h.at(S.SHADOWING) and h.members.invalid
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert not h.members.invalid
    return h


@scenario
def refused_host_does_not_pretend_to_have_what_the_primary_protects() -> Host:
    h = Host().refused()
    assert h.hear(S.BACKUP_LOST, 7, 3) == []  # the primary does not know yet
    assert h.at(S.SHADOWING)
    assert h.members.generation == 0 and h.members.invalid
    assert h.hear(S.PROTECTED, 7, 3) == []
    assert h.members.generation == 0
    return h


@scenario
def refused_host_is_elected_but_continues_nothing() -> Host:
    h = Host().refused()
    assert h.hear(S.WAITING, stored=7) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert not h.members.may_continue(h.now)
    return h


@scenario
def refused_host_is_claimed_by_the_operator() -> Host:
    h = Host().refused()
    assert h.members.claim() == "claimed"
    h.stored()
    assert h.at(S.UNPROTECTED) and not h.members.may_continue(h.now)
    return h


@scenario
def primary_that_went_on_unprotected_invalidates_the_shadows() -> Host:
    h = Host().shadow()
    assert h.hear(S.UNPROTECTED, 7, 3) == [Do.INVALIDATE]
    assert h.hear(S.UNPROTECTED, 7, 3) == []
    assert not h.members.candidate.shadowing
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert h.members.candidate.shadowing
    return h


@scenario
def hung_primary_is_taken_over_from() -> Host:
    h = Host().shadow()
    actions: list[Do] = []
    for _ in range(6):
        actions += h.hear(S.PROTECTED, 7, 3, loop_age_ms=1400)
        actions += h.tick(0.05)
    assert actions == [Do.CHECK_LINK]
    return h


def test_pause_of_the_backup_itself_is_not_the_primarys_silence() -> None:
    h = Host().shadow()
    assert h.tick(10.0) == [] and h.at(S.SHADOWING)
    assert h.silence(DETECTION_S) == [Do.CHECK_LINK]
    h.link(True), h.fence(True), h.stored()
    assert not h.members.may_continue(h.now)  # meanwhile the primary may have gone on unprotected


def test_backup_whose_loop_is_always_late_still_detects() -> None:
    h = Host().shadow()
    actions: list[Do] = []
    for _ in range(8):
        actions += h.tick(0.06)
    assert actions == [Do.CHECK_LINK]


def test_takeover_that_comes_too_late_continues_nothing() -> None:
    h = Host().storing()
    h.now += h.settings.release_after_ms / 1000
    h.stored()
    assert not h.members.may_continue(h.now)


@scenario
def stops_from_wherever_it_is() -> Host:
    last = Host()
    ways = ("serve", "arm", "protect", "lose_backup", "doubt", "shadow", "check", "fencing", "refused", "storing")
    for way in ways:
        h = getattr(Host(), way)()
        serving = h.members.role is Role.PRIMARY
        h.members.stop()
        assert h.done() == ([Do.SILENCE] if serving else []) and h.at(S.LEAVING)
        h.seen |= last.seen
        last = h
    for h in (Host(), Host(boot_alone="fence"), Host()):
        if h.settings.boot_alone == "fence":
            h.silence(3.1)
        h.members.stop()
        h.members.stop()
        h.done()
        last.seen |= h.seen
    h = Host()
    h.hear(S.WAITING)
    h.members.stop()
    h.done()
    last.seen |= h.seen
    return last


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()
