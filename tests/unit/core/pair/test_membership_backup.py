"""Who serves: the backup, and what becomes of its primary."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.roles import Do, Role, State
from tests.support.member import DETECTION_S, Member, Scenario, collector

S = State
SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)
TIME_TO_ACT_S = Member().settings.release_after_ms / 1000 - DETECTION_S


@scenario
def takes_over_after_the_fence() -> Member:
    h = Member().shadow()
    assert h.silence(DETECTION_S + 0.03) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    assert h.members.epoch == 8
    assert h.stored() == [Do.TAKE_OVER]
    assert h.at(S.UNPROTECTED) and h.members.may_continue(h.now)
    return h


@scenario
def refuses_when_the_fence_fails() -> Member:
    h = Member().fencing()
    assert h.fence(False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED) and "timeout" in h.members.reason
    assert h.members.generation == 0, "the primary must not take it for a backup that has everything"
    assert h.silence(4.9) == []
    return h


@scenario
def tries_the_fence_again_while_the_primary_is_silent_but_continues_nothing() -> Member:
    h = Member().refused()
    for seconds in (5, 10, 20, 40, 60, 60):  # loud each time, and less and less often
        assert h.silence(seconds - 0.1) == [] and h.at(S.REFUSED)
        assert h.silence(0.2) == [Do.CHECK_LINK] and h.at(S.RETRYING)
        assert h.link(True) == [Do.FENCE]
        assert h.fence(False) == [] and h.at(S.REFUSED)
    assert h.silence(60.1) == [Do.CHECK_LINK]
    h.link(True)
    assert h.fence(True) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert not h.members.may_continue(h.now)
    return h


@scenario
def tries_again_when_its_own_link_was_down() -> Member:
    h = Member().check()
    h.link(False)
    assert set(h.silence(TIME_TO_ACT_S)) == {Do.CHECK_LINK, Do.INVALIDATE} and h.at(S.REFUSED)
    h.silence(5.1)
    assert h.link(False) == [] and h.at(S.REFUSED)
    h.silence(10.1)
    assert h.link(True) == [] and h.silence(DETECTION_S + 0.05) == [Do.FENCE]
    return h


@scenario
def tries_again_although_only_a_split_brain_is_accepted() -> Member:
    h = Member(has_fence=False, split_brain_accepted=True).check()
    h.link(False)
    h.silence(5.1)
    assert h.link(True) == [] and h.silence(DETECTION_S + 0.05) == [Do.STORE]
    h.stored()
    assert not h.members.may_continue(h.now)
    return h


@scenario
def waits_while_it_is_cut_off_itself_and_until_the_primary_had_time_to_be_heard() -> Member:
    h = Member().check()
    assert h.link(False) == [] and h.at(S.CHECKING) and "cut off" in h.members.reason
    assert set(h.silence(0.6)) == {Do.CHECK_LINK}
    assert h.link(True) == [] and h.at(S.CHECKING), "it might not have been heard yet"
    assert h.silence(DETECTION_S - 0.03) == []
    assert h.silence(0.06) == [Do.FENCE]
    h.fence(True), h.stored()
    assert h.members.may_continue(h.now)
    return h


@scenario
def primary_that_is_heard_when_the_backup_is_no_longer_cut_off_is_followed() -> Member:
    h = Member().shadow()
    h.reach(False)
    assert h.silence(1.0) == [Do.CHECK_LINK]
    assert h.link(False) == []
    assert h.silence(0.5) == [], "it will be told"
    h.reach(True)
    assert h.silence(0.05) == [Do.CHECK_LINK] and h.link(True) == []
    h.hear(S.BACKUP_LOST, 7, 3)
    h.tick()
    assert h.at(S.SHADOWING) and not h.members.invalid, "nothing is lost"
    assert h.silence(DETECTION_S + 0.05) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE], "long forgotten"
    return h


@scenario
def outage_that_ends_before_the_silence_is_noticed_counts_too() -> Member:
    h = Member().shadow()
    h.reach(False)
    h.silence(DETECTION_S - 0.05)
    h.reach(True)
    assert h.silence(0.08) == [Do.CHECK_LINK]
    assert h.link(True) == []
    assert h.silence(DETECTION_S - 0.1) == []
    assert h.silence(0.1) == [Do.FENCE]
    return h


@scenario
def backup_that_is_cut_off_while_it_waits_begins_to_wait_again() -> Member:
    h = Member(fence_delay_ms=500).check()
    h.link(True)
    h.silence(0.4)
    h.reach(False)
    assert h.silence(0.5) == []
    h.reach(True)
    assert h.silence(0.05) == [Do.CHECK_LINK]
    assert h.link(True) == [] and h.silence(0.4) == []
    assert h.silence(0.2) == [Do.FENCE]
    return h


@scenario
def retry_of_a_host_that_is_cut_off_waits() -> Member:
    h = Member().refused()
    h.reach(False)
    assert h.silence(30) == [] and h.at(S.REFUSED)
    h.reach(True)
    assert h.silence(DETECTION_S - 0.03) == []
    assert h.silence(0.06) == [Do.CHECK_LINK]
    h.reach(False)
    assert h.silence(0.05) == [] and h.at(S.REFUSED)
    return h


@scenario
def does_not_try_again_if_told_so() -> Member:
    h = Member(fence_retry_ms=0).refused()
    assert h.silence(300) == []
    return h


@scenario
def primary_that_is_heard_again_is_not_fenced_by_a_retry() -> Member:
    h = Member().refused()
    h.silence(5.1)
    assert h.at(S.RETRYING)
    h.hear(S.WAITING, stored=7)  # it may elect us, or itself: not both
    h.tick()
    assert h.at(S.REFUSED)
    assert h.link(True) == []
    assert h.silence(0.2) == [Do.CHECK_LINK]
    h.hear(S.UNPROTECTED, 7, 3)
    assert h.at(S.SHADOWING) and h.link(True) == []
    return h


@scenario
def operator_claims_while_it_is_tried_again() -> Member:
    h = Member().refused()
    h.silence(5.1)
    assert h.members.claim() == "claimed" and h.at(S.STORING)
    h.done()
    return h


@scenario
def fence_delay_comes_after_the_link_and_gives_the_primary_time_to_come_back() -> Member:
    h = Member(fence_delay_ms=500).check()
    assert h.link(True) == [] and h.at(S.CHECKING)
    assert h.silence(0.45) == []
    assert h.silence(0.1) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    h.stored()
    assert h.members.may_continue(h.now), "the primary knows of the delay"
    h = Member(fence_delay_ms=500).check()
    h.link(True)
    h.silence(0.3)
    h.hear(S.PROTECTED, 7, 3)
    h.tick()
    assert h.at(S.SHADOWING)
    assert h.silence(0.3) == [Do.CHECK_LINK] and h.silence(1) == [], "the delay begins anew"
    return h


def test_both_reckon_with_the_slower_fence() -> None:
    h = Member().shadow()
    h.hear(S.PROTECTED, 7, 3, release_after_ms=9000)
    h.silence(DETECTION_S + 0.03)
    h.link(True), h.fence(True)
    h.silence(8.0)
    h.stored()
    assert h.members.may_continue(h.now)


@scenario
def refuses_without_a_fence() -> Member:
    h = Member(has_fence=False).check()
    assert h.link(True) == [Do.INVALIDATE]
    assert h.at(S.REFUSED) and "no fence" in h.members.reason
    return h


@scenario
def refuses_when_it_is_cut_off_until_it_is_too_late() -> Member:
    h = Member().check()
    assert h.link(False) == []
    h.reach(False)
    assert h.silence(TIME_TO_ACT_S - 0.3) == []
    assert h.silence(0.4) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    h = Member(split_brain_accepted=True).check()
    assert h.link(False) == [Do.INVALIDATE], "the primary waits for nobody"
    return h


@scenario
def split_brain_accepted_takes_over_without_a_fence() -> Member:
    h = Member(has_fence=False, split_brain_accepted=True).check()
    assert h.link(True) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    return h


@scenario
def split_brain_accepted_takes_over_when_the_fence_fails() -> Member:
    h = Member(split_brain_accepted=True).fencing()
    assert h.fence(False) == [Do.STORE]
    return h


@scenario
def primary_comes_back_while_the_link_is_checked() -> Member:
    h = Member().check()
    h.hear(S.PROTECTED, 7, 3)
    h.tick()
    assert h.at(S.SHADOWING)
    assert h.link(True) == [] and h.at(S.SHADOWING)
    return h


@scenario
def primary_that_yields_is_followed_at_once() -> Member:
    h = Member().shadow()
    assert h.hear(S.LEAVING, 7) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert h.members.may_continue(h.now)
    return h


@scenario
def primary_that_restarts_while_the_link_is_checked_is_followed() -> Member:
    h = Member().check()
    assert h.hear(S.WAITING, 7) == [Do.STORE]
    return h


@scenario
def primary_that_restarts_in_no_time_leaves_its_connections_valid() -> Member:
    h = Member().shadow()
    h.members.session_started()
    h.monitor.reset(h.now)
    h.hear(S.WAITING, 7, heard=False)
    assert h.at(S.STORING) and h.members.may_continue(h.now)
    return h


@scenario
def epoch_that_can_not_be_stored_is_not_taken_over_in() -> Member:
    h = Member().storing()
    assert h.stored(ok=False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    return h


@scenario
def refused_host_follows_a_primary_again() -> Member:
    h = Member().refused()
    h.hear(S.UNPROTECTED, 7, 3)
    assert h.at(S.SHADOWING) and h.members.invalid
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert not h.members.invalid
    return h


@scenario
def refused_host_does_not_pretend_to_have_what_the_primary_protects() -> Member:
    h = Member().refused()
    assert h.hear(S.BACKUP_LOST, 7, 3) == []  # the primary does not know yet
    assert h.at(S.SHADOWING)
    assert h.members.generation == 0 and h.members.invalid
    assert h.hear(S.PROTECTED, 7, 3) == []
    assert h.members.generation == 0
    return h


@scenario
def refused_host_is_elected_but_continues_nothing() -> Member:
    h = Member().refused()
    assert h.hear(S.WAITING, stored=7) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert not h.members.may_continue(h.now)
    return h


@scenario
def refused_host_is_claimed_by_the_operator() -> Member:
    h = Member().refused()
    assert h.members.claim() == "claimed"
    h.stored()
    assert h.at(S.UNPROTECTED) and not h.members.may_continue(h.now)
    return h


@scenario
def primary_that_went_on_unprotected_invalidates_the_shadows() -> Member:
    h = Member().shadow()
    assert h.hear(S.UNPROTECTED, 7, 3) == [Do.INVALIDATE]
    assert h.hear(S.UNPROTECTED, 7, 3) == []
    assert not h.members.candidate.shadowing
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert h.members.candidate.shadowing
    return h


@scenario
def hung_primary_is_taken_over_from() -> Member:
    h = Member().shadow()
    actions: list[Do] = []
    for _ in range(6):
        actions += h.hear(S.PROTECTED, 7, 3, loop_age_ms=1400)
        actions += h.tick(0.05)
    assert actions == [Do.CHECK_LINK]
    return h


def test_pause_of_the_backup_itself_is_not_the_primarys_silence() -> None:
    h = Member().shadow()
    assert h.tick(10.0) == [] and h.at(S.SHADOWING)
    assert h.silence(DETECTION_S) == [Do.CHECK_LINK]
    h.link(True), h.fence(True), h.stored()
    assert not h.members.may_continue(h.now)  # meanwhile the primary may have gone on unprotected


def test_backup_whose_loop_is_always_late_still_detects() -> None:
    h = Member().shadow()
    actions: list[Do] = []
    for _ in range(8):
        actions += h.tick(0.06)
    assert actions == [Do.CHECK_LINK]


def test_takeover_that_comes_too_late_continues_nothing() -> None:
    h = Member().storing()
    h.now += h.settings.release_after_ms / 1000
    h.stored()
    assert not h.members.may_continue(h.now)


@scenario
def stops_from_wherever_it_is() -> Member:
    last = Member()
    ways = ("serve", "arm", "protect", "lose_backup", "doubt", "shadow", "check", "fencing", "refused", "storing")
    for way in ways:
        h = getattr(Member(), way)()
        serving = h.members.role is Role.PRIMARY
        h.members.stop()
        assert h.done() == ([Do.SILENCE] if serving else []) and h.at(S.LEAVING)
        h.seen |= last.seen
        last = h
    for h in (Member(), Member(boot_alone="fence"), Member()):
        if h.settings.boot_alone == "fence":
            h.silence(3.1), h.link(True)
        h.members.stop()
        h.members.stop()
        h.done()
        last.seen |= h.seen
    h = Member().refused()
    h.silence(5.1)
    h.members.stop()
    h.done()
    last.seen |= h.seen
    h = Member()
    h.hear(S.WAITING)
    h.members.stop()
    h.done()
    last.seen |= h.seen
    return last


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()
