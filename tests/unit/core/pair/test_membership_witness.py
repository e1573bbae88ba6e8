"""Who serves: with a witness that decides who may act alone."""

from __future__ import annotations

from typing import Any

import pytest

from nfq_failover.core.pair.pact import CLOCK_MARGIN, OUTLAST_MARGIN_S
from nfq_failover.core.pair.roles import Do, State
from nfq_failover.core.pair.silence import BOTH_ASK_S
from tests.support.member import DETECTION_S, Member, Scenario, collector

S = State
SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)
LEASE_S = 3 * DETECTION_S
ASKS_S = 0.8 * LEASE_S
PACT = 7 << 32


def primary(**changes: Any) -> Member:
    """Protected, by a backup that has said the pact back."""
    h = Member(has_witness=True, **{"has_fence": False, **changes}).protect()
    h.hear(S.SHADOWING, 1, 1, pact=h.members.pact.high)
    assert h.members.pact.confirmed
    return h


def backup(**changes: Any) -> Member:
    """Of a primary that protects in epoch 7, generation 3."""
    h = Member(has_witness=True, **{"has_fence": False, **changes}).shadow()
    h.hear(S.PROTECTED, 7, 3, pact=PACT)
    assert h.members.pact.high == PACT
    return h


def asking(**changes: Any) -> Member:
    """The primary is silent, our own link is up."""
    h = backup(**changes)
    h.silence(DETECTION_S + 0.03)
    h.link(True)
    if not h.settings.has_fence:
        assert h.at(S.CHECKING), "a primary that lives asks first"
        while h.at(S.CHECKING):
            assert h.tick() == []
    assert h.at(S.ASKING)
    return h


# ------------------------------------------------------------------------------------ the backup


@scenario
def takes_over_with_a_grant_once_the_lease_of_the_primary_has_ended() -> Member:
    heard = backup().now
    h = asking()
    assert heard < h.now < heard + LEASE_S
    assert h.tick() == [Do.ASK]
    h.witness(True)
    while h.at(S.ASKING):
        h.tick()
    assert h.at(S.STORING)
    assert 0 <= h.now - heard - (LEASE_S * CLOCK_MARGIN + OUTLAST_MARGIN_S) < 0.05
    h.done()
    assert h.stored() == [Do.TAKE_OVER]
    h.now += 3600
    assert h.members.may_continue(h.now), "without a grant the primary has let nothing go, however late we are"
    return h


@scenario
def asks_until_the_witness_answers() -> Member:
    h = asking()
    actions = h.silence(30)
    assert h.at(S.ASKING)
    assert set(actions) == {Do.ASK} and len(actions) > 300
    h.witness(True)
    h.tick()
    assert h.at(S.STORING)
    return h


@scenario
def is_denied_and_stays_silent() -> Member:
    h = asking()
    h.tick()
    assert h.witness(False) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    assert h.silence(200) == []
    return h


@scenario
def takes_over_from_a_primary_that_has_restarted_while_it_asked() -> Member:
    """A new session counts as a sign of life, but says nothing of who serves."""
    h = asking()
    h.members.session_started()
    h.monitor.reset(h.now)
    h.tick()
    assert h.at(S.ASKING)
    h.hear(S.WAITING, 7, 0)
    assert h.at(S.ASKING), "it may have been granted the right, and have let go what we lack"
    assert h.witness(True) == [Do.STORE]
    h.now += 3600
    assert h.stored() == [Do.TAKE_OVER] and h.members.may_continue(h.now)
    return h


@scenario
def fences_only_with_a_grant() -> Member:
    h = asking(has_fence=True)
    assert h.tick() == [Do.ASK]
    assert h.witness(True) == [Do.FENCE]
    assert h.fence(True) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER]
    assert h.members.may_continue(h.now)
    return h


@scenario
def tries_a_failed_fence_again_only_with_a_grant() -> Member:
    h = asking(has_fence=True)
    h.tick()
    h.witness(True)
    h.fence(False)
    assert h.at(S.REFUSED)
    assert h.silence(5.1) == [Do.CHECK_LINK]
    assert h.link(True) == [Do.FENCE]
    h.fence(True)
    h.stored()
    assert h.at(S.UNPROTECTED) and not h.members.may_continue(h.now)
    h = asking(has_fence=True)
    h.tick()
    h.witness(False)
    assert h.silence(200) == []
    return h


@scenario
def primary_that_is_back_while_the_witness_is_asked_ends_the_pact() -> Member:
    h = asking()
    h.tick()
    h.hear(S.BACKUP_LOST, 7, 3, pact=PACT)
    assert h.tick() == [Do.INVALIDATE]
    assert h.at(S.REFUSED) and not h.members.pact.held and h.members.generation == 0
    h.members.witnessed(PACT, True, "")
    assert h.done() == [] and h.at(S.REFUSED), "too late"
    h.hear(S.UNPROTECTED, 7, 3)
    assert h.at(S.SHADOWING)
    return h


@scenario
def primary_that_is_back_in_doubt_can_not_go_on_either() -> Member:
    """The witness may have decided for us, and its answer be lost: we ask on, for a moment."""
    h = asking()
    h.tick()
    h.hear(S.DOUBT, 7, 3, pact=PACT)
    h.tick()
    assert h.at(S.ASKING)
    h.witness(True)
    h.hear(S.WAITING, 7, 0)
    assert h.at(S.STORING) and not h.members.invalid
    return h


@scenario
def primary_that_stays_in_doubt_is_not_waited_for_for_ever() -> Member:
    """Nobody reaches the witness: we give the pact up, so that the primary can go on."""
    h = asking()
    h.hear(S.DOUBT, 7, 3, pact=PACT)
    h.tick()
    assert h.at(S.ASKING)
    patience = max(BOTH_ASK_S, DETECTION_S)
    h.silence(patience / 2)
    h.hear(S.DOUBT, 7, 3, pact=PACT)
    h.tick()
    assert h.at(S.ASKING)
    h.silence(patience / 2)
    assert h.at(S.REFUSED) and not h.members.pact.held
    return h


@scenario
def primary_that_is_back_after_the_grant_has_lost() -> Member:
    h = asking()
    h.tick()
    h.witness(True)
    h.hear(S.BACKUP_LOST, 7, 3, pact=PACT)
    h.silence(LEASE_S)
    assert h.at(S.STORING)
    return h


@scenario
def primary_that_yields_while_the_witness_is_asked_is_followed() -> Member:
    """With a fence there is time enough, whatever the witness says."""
    h = asking(has_fence=True)
    assert h.hear(S.WAITING, 7) == [Do.STORE]
    h.now += 3600
    assert h.stored() == [Do.TAKE_OVER] and h.members.may_continue(h.now), "it lets nothing go any more"
    return h


def unheard() -> Member:
    """We hear the primary, and it has not heard us for so long that it may let everything go, with a grant."""
    h = backup()
    for _ in range(6):
        h.hear(S.BACKUP_LOST, 7, 3, pact=PACT, heard=False)
        h.tick(0.05)
    assert h.at(S.SHADOWING) and not h.members.may_continue(h.now)
    return h


@scenario
def primary_that_yields_though_it_has_not_heard_us_for_long_is_followed_with_a_grant() -> Member:
    h = unheard()
    assert h.hear(S.WAITING, 7, heard=False) == []
    assert h.at(S.ASKING)
    assert h.tick() == [Do.ASK]
    assert h.hear(S.WAITING, 7) == [], "that it hears us now says nothing of what it did before"
    assert h.witness(True) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER] and h.members.may_continue(h.now)
    return h


@scenario
def the_same_without_a_grant_loses_the_connections_and_not_the_service() -> Member:
    h = unheard()
    h.hear(S.LEAVING, 7)
    h.tick()
    assert h.witness(False) == [Do.INVALIDATE]
    assert h.hear(S.LEAVING, 7, stored=7) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER] and not h.members.may_continue(h.now)
    return h


@scenario
def the_same_without_an_answer_waits_for_one_lease() -> Member:
    h = unheard()
    h.hear(S.WAITING, 7)
    actions = h.silence(LEASE_S - 0.03)
    assert h.at(S.ASKING) and set(actions) == {Do.ASK}
    assert h.silence(0.05) == [Do.STORE]
    assert h.stored() == [Do.TAKE_OVER] and not h.members.may_continue(h.now)
    return h


@scenario
def primary_that_restarts_while_the_link_is_checked_is_asked_about() -> Member:
    h = backup()
    while h.now < 1000 + 2 * DETECTION_S:
        h.tick()
    h.link(True)
    assert h.at(S.CHECKING)
    h.members.session_started()
    h.monitor.reset(h.now)
    assert h.hear(S.WAITING, 7) == [] and h.at(S.ASKING)
    h.hear(S.UNPROTECTED, 8, 1)
    h.tick()
    assert h.at(S.REFUSED), "it serves again, by the operator's word"
    return h


@scenario
def operator_claims_while_the_witness_is_asked() -> Member:
    h = asking()
    assert h.members.claim() == "claimed"
    assert h.at(S.STORING) and not h.members.may_continue(h.now)
    h.done()
    return h


@scenario
def without_pact_and_fence_nothing_is_asked() -> Member:
    """The primary has never said that it protects: it serves whatever the witness says."""
    h = Member(has_witness=True, has_fence=False).shadow(S.ARMING)
    h.silence(DETECTION_S + 0.03)
    assert h.link(True) == [Do.INVALIDATE]
    assert h.at(S.REFUSED)
    return h


@scenario
def stops_while_it_asks() -> Member:
    h = asking()
    h.members.stop()
    h.done()
    return h


def test_a_host_without_witness_has_no_pact() -> None:
    h = Member().shadow()
    h.hear(S.PROTECTED, 7, 3, pact=PACT)
    assert not h.members.pact.held
    h.silence(DETECTION_S + 0.03)
    assert h.link(True) == [Do.FENCE]


def test_another_generation_ends_pact_and_grant() -> None:
    h = backup()
    h.hear(S.UNPROTECTED, 7, 3)
    assert not h.members.pact.held
    h.hear(S.ARMING, 7, 4)
    assert not h.members.pact.held
    h.hear(S.PROTECTED, 7, 4, pact=PACT + 1)
    assert h.members.pact.high == PACT + 1


# ------------------------------------------------------------------------------------ the primary


@scenario
def releases_as_soon_as_the_witness_has_granted() -> Member:
    h = primary()
    h.silence(ASKS_S)
    assert h.at(S.BACKUP_LOST) and h.members.pact.asked
    h.witness(True)
    assert Do.RELEASE in h.tick()
    assert h.at(S.UNPROTECTED) and h.members.lease_until > h.now + 10**6
    return h


def test_daemon_that_goes_on_after_a_grant_proposes_a_pact_of_which_nothing_is_decided() -> None:
    """Else its next backup would be denied, though the witness had granted the primary another protection."""
    h = primary()
    decided = h.members.pact.high
    h.silence(ASKS_S)
    h.witness(True)
    h.tick()
    assert h.at(S.UNPROTECTED)
    restarted = Member(h.members.epoch, True, has_witness=True, has_fence=False)
    restarted.now = h.now
    restarted.members.resume(h.members.epoch)
    restarted.tick(0.3)
    restarted.hear(S.SHADOWING, h.members.epoch)
    restarted.members.rules_applied()
    restarted.hear(S.SHADOWING, h.members.epoch, 1)
    assert restarted.at(S.PROTECTED)
    assert decided < restarted.members.pact.high < (h.members.epoch + 1) << 32


@scenario
def is_silent_for_good_when_the_witness_has_decided_for_the_backup() -> Member:
    h = primary()
    h.silence(ASKS_S)
    assert h.witness(False) == [Do.SILENCE]
    assert h.at(S.WAITING)
    return h


@scenario
def is_silent_when_its_lease_has_ended_until_the_witness_answers() -> Member:
    h = primary()
    voted = h.now
    h.silence(ASKS_S)
    assert h.members.lease_until == pytest.approx(voted + LEASE_S, abs=0.002)
    h.members.expire(h.now)
    assert h.done() == [Do.LEAVE_ADDRESS] and h.at(S.DOUBT)
    assert Do.RELEASE not in h.silence(60), "no time is long enough"
    h.witness(True)
    assert h.tick() == [Do.RELEASE, Do.TAKE_ADDRESS] and h.at(S.UNPROTECTED)
    return h


@scenario
def denied_in_doubt() -> Member:
    h = primary()
    h.silence(ASKS_S)
    h.members.expire(h.now)
    h.silence(0.1)
    assert h.witness(False) == [Do.SILENCE] and h.at(S.WAITING)
    return h


@scenario
def lease_ends_while_the_backup_is_heard_but_does_not_follow() -> Member:
    h = primary()
    for _ in range(20):
        if h.now > h.members.lease_until:
            break
        h.tick(0.03)
        h.hear(S.ASKING, 1, 1, pact=h.members.pact.high)
    assert h.at(S.PROTECTED)
    h.members.expire(h.now)
    assert h.done() == [Do.LEAVE_ADDRESS] and h.at(S.DOUBT)
    return h


@scenario
def speaks_again_when_the_backup_follows_again() -> Member:
    h = primary()
    h.silence(ASKS_S)
    h.members.expire(h.now)
    h.done()
    old = h.members.pact.high
    h.tick()
    assert h.hear(S.SHADOWING, 1, 1, pact=old) == [Do.TAKE_ADDRESS]
    assert h.at(S.PROTECTED) and h.members.lease_until > h.now
    assert (h.members.pact.low, h.members.pact.high) == (old, old + 1), "the witness may have decided the old one"
    assert not h.members.pact.confirmed
    h.hear(S.SHADOWING, 1, 1, pact=old + 1)
    assert h.members.pact.low == old + 1 and h.members.pact.confirmed
    return h


@scenario
def backup_that_has_not_said_the_pact_back_may_be_one_that_fences() -> Member:
    h = Member(has_witness=True).protect()
    h.silence(ASKS_S)
    h.witness(True)
    assert Do.RELEASE not in h.silence(h.settings.release_after_ms / 1000 - 0.5)
    assert Do.RELEASE in h.silence(0.5)
    return h


@scenario
def backup_that_refuses_has_given_the_pact_up() -> Member:
    h = primary()
    assert h.hear(S.REFUSED, 1) == [Do.RELEASE]
    assert not h.members.pact.held
    return h


def test_answers_for_another_pact_count_for_nothing() -> None:
    h = primary()
    h.silence(ASKS_S)
    for number in (0, h.members.pact.high - 1, h.members.pact.high + 1):
        h.members.witnessed(number, True, "")
        h.members.witnessed(number, False, "")
    h.tick()
    assert h.at(S.BACKUP_LOST)


def test_nothing_is_released_while_the_target_does_not_answer() -> None:
    h = Member(checks_target=True).lose_backup()
    actions = h.silence(h.settings.release_after_ms / 1000 + 7)
    assert Do.RELEASE not in actions and actions.count(Do.CHECK_LINK) >= 7
    h.members.link_checked(False, "10.0.0.1 does not answer")
    assert h.done() == [] and "does not answer" in h.members.reason
    h.silence(1.1)
    assert h.link(True) == [Do.RELEASE] and h.at(S.UNPROTECTED)


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
def test_scenario(run: Scenario) -> None:
    run()
