"""Who serves: every transition of the table, and what a host does on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_hosts import DETECTION_S, Host

from nfq_failover.core.membership import Do
from nfq_failover.core.roles import TRANSITIONS, Candidate, Input, Role, State, next_state
from nfq_failover.core.settings import Peer
from nfq_failover.errors import InternalError

S = State
Scenario = Callable[[], Host]
SCENARIOS: list[Scenario] = []


def scenario(run: Scenario) -> Scenario:
    """Every scenario is a test of its own, and all together must use every transition."""
    SCENARIOS.append(run)
    return run


# ---------------------------------------------------------------------------------------------- boot


@scenario
def elected_with_the_peers_consent() -> Host:
    h = Host()
    assert h.hear(S.WAITING, heard=False) == []  # the peer may not hear us: no consent
    assert h.hear(S.WAITING) == [Do.STORE]
    assert (h.state, h.members.epoch) == (S.CLAIMING, 1)
    assert h.stored() == [Do.SERVE]
    assert h.at(S.UNPROTECTED)
    return h


@scenario
def not_elected_against_a_greater_candidate() -> Host:
    h = Host(epoch=3)
    assert h.hear(S.WAITING, stored=4) == []
    assert h.hear(S.WAITING, stored=3, served=True) == []
    assert h.hear(S.WAITING, stored=2, served=True) == [Do.STORE]
    assert h.members.epoch == 4
    return h


@scenario
def elected_beyond_the_epoch_of_the_peer() -> Host:
    h = Host(epoch=3)
    h.hear(S.LEAVING, stored=9)
    assert (h.state, h.members.epoch) == (S.CLAIMING, 10)
    return h


@scenario
def becomes_backup_of_one_who_serves() -> Host:
    h = Host(epoch=7, served=True)
    assert h.hear(S.UNPROTECTED, 7, 3) == [Do.STORE]  # it is the backup now, on disk too
    assert h.at(S.SHADOWING)
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    assert h.hear(S.PROTECTED, 7, 4) == []
    assert not h.members.invalid
    return h


@scenario
def does_not_follow_an_older_epoch() -> Host:
    h = Host(epoch=8)
    assert h.hear(S.PROTECTED, 7, 3) == []
    assert h.at(S.WAITING)
    return h


@scenario
def waits_alone_for_ever() -> Host:
    h = Host()
    assert h.silence(60.0) == []
    assert h.at(S.WAITING) and "will not serve alone" in h.members.reason
    return h


@scenario
def fences_when_alone_if_told_so() -> Host:
    h = Host(boot_alone="fence")
    assert h.silence(2.9) == []
    assert h.silence(0.2) == [Do.FENCE]
    assert h.at(S.BOOT_FENCING)
    assert h.fence(False) == []
    assert h.at(S.WAITING)
    assert h.silence(29.0) == []
    assert h.silence(1.5) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    assert h.stored() == [Do.SERVE]
    return h


@scenario
def does_not_fence_when_alone_without_a_fence() -> Host:
    h = Host(boot_alone="fence", has_fence=False)
    assert h.silence(20.0) == []
    return h


@scenario
def peer_serves_after_all_while_it_is_being_fenced() -> Host:
    h = Host(boot_alone="fence")
    h.silence(3.1)
    h.hear(S.UNPROTECTED, 5)
    assert h.at(S.SHADOWING)
    assert h.fence(True) == []
    return h


@scenario
def peer_serves_after_all_while_the_epoch_is_stored() -> Host:
    h = Host()
    h.hear(S.WAITING)
    h.hear(S.UNPROTECTED, 5)
    assert h.at(S.SHADOWING)
    assert h.stored() == []
    return h


@scenario
def epoch_that_can_not_be_stored_is_not_served_in() -> Host:
    h = Host()
    h.hear(S.WAITING)
    assert h.stored(ok=False) == []
    assert h.at(S.WAITING)
    return h


@scenario
def operator_claims_a_waiting_host() -> Host:
    h = Host()
    assert h.members.claim() == "claimed"
    assert h.done() == [Do.STORE]
    assert h.stored() == [Do.SERVE]
    assert "nothing to claim" in h.members.claim()
    return h


# ---------------------------------------------------------------------------------------------- the primary


@scenario
def arms_and_protects_when_the_backup_has_said_the_generation_back() -> Host:
    h = Host().serve()
    h.now += 0.3
    assert h.hear(S.SHADOWING, 1, heard=False) == []  # it may not hear us
    assert h.hear(S.SHADOWING, 1) == [Do.ARM]
    assert h.hear(S.SHADOWING, 1, generation=1) == []  # the rules are not tight yet
    h.members.rules_applied()
    assert h.hear(S.SHADOWING, 1, generation=0) == []
    assert h.hear(S.SHADOWING, 1, generation=1) == [Do.PROTECT]
    assert h.at(S.PROTECTED)
    return h


@scenario
def backup_restarts_while_arming() -> Host:
    h = Host().arm()
    assert h.hear(S.WAITING, 1) == [Do.RELEASE]
    return h


@scenario
def backup_falls_silent_while_arming() -> Host:
    h = Host().arm()
    assert h.silence(DETECTION_S + 0.2) == [Do.RELEASE]
    return h


@pytest.mark.parametrize("say", ["restarted", "refused", "lost", "session"])
def test_backup_that_can_not_take_over_any_more_ends_the_protection_at_once(say: str) -> None:
    h = Host().protect()
    if say == "restarted":
        got = h.hear(S.WAITING, 1)
    elif say == "refused":
        got = h.hear(S.REFUSED, 1, generation=1)
    elif say == "lost":
        got = h.hear(S.SHADOWING, 1, generation=0)
    else:
        h.members.session_started(h.monitor)
        got = h.done()
    assert got == [Do.RELEASE] and h.at(S.UNPROTECTED)


@scenario
def backup_says_that_it_has_nothing() -> Host:
    h = Host().protect()
    assert h.hear(S.SHADOWING, 1, generation=0) == [Do.RELEASE]
    return h


@scenario
def silent_backup_is_waited_for_until_it_can_not_take_over() -> Host:
    h = Host().lose_backup()
    release = h.settings.release_after_ms / 1000
    assert h.silence(release - 0.3) == []
    assert h.at(S.BACKUP_LOST)
    assert h.silence(0.2) == [Do.RELEASE]
    return h


@scenario
def silent_backup_comes_back() -> Host:
    h = Host().lose_backup()
    h.hear(S.SHADOWING, 1, generation=1)
    assert h.tick() == [] and h.at(S.PROTECTED)
    return h


@scenario
def backup_that_hears_nothing_of_us_is_lost_too() -> Host:
    h = Host().protect()
    for _ in range(12):
        h.hear(S.SHADOWING, 1, generation=1, heard=False)
        assert h.silence(0.05) == []
    assert h.at(S.BACKUP_LOST)
    # It speaks: until it says that it has refused, it may be about to take over.
    for _ in range(100):
        h.hear(S.FENCING, 1, generation=1, heard=False)
        assert h.silence(0.05) == []
    assert h.hear(S.REFUSED, 1, generation=1, heard=False) == [Do.RELEASE]
    return h


@scenario
def split_brain_accepted_releases_at_the_detection_time() -> Host:
    h = Host(split_brain_accepted=True).protect()
    assert h.silence(DETECTION_S) == []
    assert h.silence(0.1) == [Do.RELEASE]
    return h


@scenario
def hung_backup_with_a_punctual_heartbeat_is_lost_and_then_let_go() -> Host:
    h = Host().protect()
    actions: list[Do] = []
    for _ in range(90):
        actions += h.hear(S.SHADOWING, 1, generation=1, heard=False, loop_age_ms=1400)
        actions += h.silence(0.05)
    assert actions == [Do.RELEASE] and h.at(S.UNPROTECTED)
    assert h.hear(S.SHADOWING, 1, generation=1, loop_age_ms=1400) == []
    assert h.hear(S.SHADOWING, 1, generation=1) == [Do.ARM]
    return h


@scenario
def paused_primary_doubts_until_the_backup_has_answered() -> Host:
    h = Host().doubt()
    h.now -= 0.005
    h.hear(S.SHADOWING, 1, generation=1)  # it heard us before the pause was over: proves nothing
    assert h.at(S.DOUBT)
    h.now += 0.010
    h.hear(S.SHADOWING, 1, generation=1)
    assert h.at(S.PROTECTED)
    return h


@scenario
def paused_primary_finds_its_backup_serving() -> Host:
    h = Host().doubt()
    assert h.hear(S.UNPROTECTED, 2) == [Do.SILENCE]
    assert h.at(S.WAITING)
    return h


@scenario
def paused_primary_finds_nobody() -> Host:
    h = Host().doubt()
    assert h.silence(h.settings.release_after_ms / 1000 - 0.1) == []
    assert h.silence(0.2) == [Do.RELEASE]
    return h


@scenario
def pause_while_the_backup_is_lost_and_another_one() -> Host:
    h = Host().lose_backup()
    h.tick(1.0)
    assert h.at(S.DOUBT)
    h.tick(1.0)
    assert h.at(S.DOUBT)
    return h


@scenario
def short_pause_is_none() -> Host:
    h = Host().protect()
    h.tick(DETECTION_S - 0.01)
    assert h.at(S.PROTECTED)
    return h


@scenario
def outdated_primary_steps_down_from_wherever_it_is() -> Host:
    last = Host()
    for state in ("serve", "arm", "protect", "lose_backup", "doubt"):
        h = getattr(Host(), state)()
        assert h.hear(S.UNPROTECTED, 2) == [Do.SILENCE]
        assert (h.state, h.members.generation) == (S.WAITING, 0)
        assert h.hear(S.UNPROTECTED, 2) == [Do.STORE]
        h.seen |= last.seen
        last = h
    return last


@scenario
def older_epoch_does_not_impress_the_primary() -> Host:
    h = Host().protect()
    assert h.hear(S.UNPROTECTED, 0) == []
    assert h.at(S.PROTECTED)
    return h


def test_of_two_who_serve_in_the_same_epoch_one_steps_down() -> None:
    for name, peer in (("a", "b"), ("b", "a")):
        h = Host(name=name, peers=(Peer(peer, "10.77.0.9"),))
        h.members.claim()
        h.stored()
        h.hear(S.UNPROTECTED, 1)
        assert h.at(S.WAITING) is (name == "b")


def test_primary_takes_a_later_epoch_than_its_peer_has_on_disk() -> None:
    h = Host().serve()
    assert h.hear(S.WAITING, stored=8) == [Do.STORE]
    assert h.members.epoch == 9 and h.at(S.UNPROTECTED)


# ---------------------------------------------------------------------------------------------- the backup


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


# ---------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()


def test_every_transition_of_the_table_happens_in_a_scenario() -> None:
    seen = set().union(*(run().seen for run in SCENARIOS))
    assert sorted(set(TRANSITIONS) - seen, key=str) == []
    assert sorted(seen - set(TRANSITIONS), key=str) == []


def test_transition_that_is_not_in_the_table_is_our_own_bug() -> None:
    with pytest.raises(InternalError, match="no transition from WAITING on ARMED"):
        next_state(S.WAITING, Input.ARMED)


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
