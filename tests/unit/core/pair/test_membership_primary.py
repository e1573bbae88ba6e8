"""Who serves: the primary, and what becomes of its backup."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.roles import Do, State
from tests.support import configured
from tests.support.member import DETECTION_S, Member, Scenario, collector

S = State
SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)


@scenario
def arms_and_protects_when_the_backup_has_said_the_generation_back() -> Member:
    h = Member().serve()
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
def backup_restarts_while_arming() -> Member:
    h = Member().arm()
    assert h.hear(S.WAITING, 1) == [Do.RELEASE]
    return h


@scenario
def backup_falls_silent_while_arming() -> Member:
    h = Member().arm()
    assert h.silence(DETECTION_S + 0.2) == [Do.RELEASE]
    return h


@pytest.mark.parametrize("say", ["restarted", "refused", "lost", "session"])
def test_backup_that_can_not_take_over_any_more_ends_the_protection_at_once(say: str) -> None:
    h = Member().protect()
    if say == "restarted":
        got = h.hear(S.WAITING, 1)
    elif say == "refused":
        got = h.hear(S.REFUSED, 1, generation=1)
    elif say == "lost":
        got = h.hear(S.SHADOWING, 1, generation=0)
    else:
        h.members.session_started()
        got = h.done()
    assert got == [Do.RELEASE] and h.at(S.UNPROTECTED)


@scenario
def backup_says_that_it_has_nothing() -> Member:
    h = Member().protect()
    assert h.hear(S.SHADOWING, 1, generation=0) == [Do.RELEASE]
    return h


@scenario
def silent_backup_is_waited_for_until_it_can_not_take_over() -> Member:
    h = Member().lose_backup()
    release = h.settings.release_after_ms / 1000
    assert h.silence(release - 0.3) == []
    assert h.at(S.BACKUP_LOST)
    assert h.silence(0.2) == [Do.RELEASE]
    return h


@scenario
def silent_backup_comes_back() -> Member:
    h = Member().lose_backup()
    h.hear(S.SHADOWING, 1, generation=1)
    assert h.tick() == [] and h.at(S.PROTECTED)
    return h


@scenario
def backup_that_hears_nothing_of_us_is_lost_too() -> Member:
    h = Member().protect()
    for _ in range(12):
        h.hear(S.SHADOWING, 1, generation=1, heard=False)
        assert h.silence(0.05) == []
    assert h.at(S.BACKUP_LOST)
    # It speaks: until it says that it has refused, it may be about to take over, however long that lasts.
    for _ in range(round(h.settings.release_after_ms / 50) + 40):
        h.hear(S.FENCING, 1, generation=1, heard=False)
        assert h.silence(0.05) == []
    assert h.hear(S.REFUSED, 1, generation=1, heard=False) == [Do.RELEASE]
    return h


@scenario
def split_brain_accepted_releases_at_the_detection_time() -> Member:
    h = Member(split_brain_accepted=True).protect()
    assert h.silence(DETECTION_S) == []
    assert h.silence(0.1) == [Do.RELEASE]
    return h


@scenario
def hung_backup_with_a_punctual_heartbeat_is_lost_and_then_let_go() -> Member:
    h = Member().protect()
    actions: list[Do] = []
    for _ in range(round(h.settings.release_after_ms / 50) + 20):
        actions += h.hear(S.SHADOWING, 1, generation=1, heard=False, loop_age_ms=1400)
        actions += h.silence(0.05)
    assert actions == [Do.RELEASE] and h.at(S.UNPROTECTED)
    assert h.hear(S.SHADOWING, 1, generation=1, loop_age_ms=1400) == []
    assert h.hear(S.SHADOWING, 1, generation=1) == [Do.ARM]
    return h


@scenario
def paused_primary_doubts_until_the_backup_has_answered() -> Member:
    h = Member().doubt()
    h.now -= 0.005
    h.hear(S.SHADOWING, 1, generation=1)  # it heard us before the pause was over: proves nothing
    assert h.at(S.DOUBT)
    h.now += 0.010
    h.hear(S.SHADOWING, 1, generation=1)
    assert h.at(S.PROTECTED)
    return h


@scenario
def paused_primary_finds_its_backup_serving() -> Member:
    h = Member().doubt()
    assert h.hear(S.UNPROTECTED, 2) == [Do.SILENCE]
    assert h.at(S.WAITING)
    return h


@scenario
def paused_primary_finds_nobody() -> Member:
    h = Member().doubt()
    assert h.silence(h.settings.release_after_ms / 1000 - 0.1) == []
    assert h.silence(0.2) == [Do.RELEASE]
    return h


@scenario
def pause_while_the_backup_is_lost_and_another_one() -> Member:
    h = Member().lose_backup()
    h.tick(1.0)
    assert h.at(S.DOUBT)
    h.tick(1.0)
    assert h.at(S.DOUBT)
    return h


@scenario
def short_pause_is_none() -> Member:
    h = Member().protect()
    h.tick(DETECTION_S - 0.01)
    assert h.at(S.PROTECTED)
    return h


@scenario
def outdated_primary_steps_down_from_wherever_it_is() -> Member:
    last = Member()
    for state in ("serve", "arm", "protect", "lose_backup", "doubt"):
        h = getattr(Member(), state)()
        assert h.hear(S.UNPROTECTED, 2) == [Do.SILENCE]
        assert (h.state, h.members.generation) == (S.WAITING, 0)
        assert h.hear(S.UNPROTECTED, 2) == [Do.STORE]
        h.seen |= last.seen
        last = h
    return last


@scenario
def older_epoch_does_not_impress_the_primary() -> Member:
    h = Member().protect()
    assert h.hear(S.UNPROTECTED, 0) == []
    assert h.at(S.PROTECTED)
    return h


def test_of_two_who_serve_in_the_same_epoch_one_steps_down() -> None:
    for name, peer in (("a", "b"), ("b", "a")):
        h = Member(name=name, peers=(configured.peer(peer, "10.77.0.9"),))
        h.members.claim()
        h.stored()
        h.hear(S.UNPROTECTED, 1)
        assert h.at(S.WAITING) is (name == "b")


def test_primary_takes_a_later_epoch_than_its_peer_has_on_disk() -> None:
    h = Member().serve()
    assert h.hear(S.WAITING, stored=8) == [Do.STORE]
    assert h.members.epoch == 9 and h.at(S.UNPROTECTED)


def test_backup_that_has_just_come_is_not_left_alone_with_a_silence() -> None:
    """It may have heard that we serve already, and would fence us if our daemon ended without a word."""
    h = Member().serve()
    h.silence(DETECTION_S + 0.2)
    assert h.members.serves_alone(h.now)
    h.monitor.reset(began := h.now)  # a session
    assert not h.members.serves_alone(h.now)
    h.silence(DETECTION_S / 2)
    h.hear(S.SHADOWING, 1, heard=False)
    assert not h.members.serves_alone(h.now)
    while h.now < began + 2 * DETECTION_S + 0.2:  # it never hears us
        h.hear(S.WAITING, 1, heard=False)
        h.silence(DETECTION_S / 2)
    assert h.members.serves_alone(h.now)


def test_peer_that_leaves_is_handed_nothing() -> None:
    """A primary that was stopped within the detection time of its backup's stop gave up a service that nobody took."""
    h = Member().protect()
    h.hear(S.LEAVING, 1)
    assert h.at(S.UNPROTECTED) and h.members.serves_alone(h.now)
    h.monitor.reset(h.now)  # its next life: what it has heard of us is not known
    assert not h.members.serves_alone(h.now)


def test_peer_that_answers_is_handed_the_service() -> None:
    h = Member().serve()
    assert not h.members.serves_alone(h.now)
    h.hear(S.SHADOWING, 1)
    assert not h.members.serves_alone(h.now)  # arming: not unprotected for long


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()
