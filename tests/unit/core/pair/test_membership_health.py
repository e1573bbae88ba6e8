"""What the health of the application means for this host's place in the pair."""

from __future__ import annotations

import pytest

from nfq_failover.core.pair.health import CHECKED_REST_S, UNCHECKED_REST_S
from nfq_failover.core.pair.roles import UNHEALTHY, Do, Role
from nfq_failover.core.pair.roles import State as S
from tests.support.member import Member, Scenario, collector

SCENARIOS: list[Scenario] = []
scenario = collector(SCENARIOS)


@pytest.mark.parametrize("run", SCENARIOS)
def test_scenario(run: Scenario) -> None:
    run()


def checked() -> Member:
    return Member(health_checked=True)


@scenario
def failed_checks_in_a_row_yield_the_service() -> Member:
    h = checked().protect()
    h.check_health(False, False, True, False, False)
    assert h.tick() == [] and h.at(S.PROTECTED)
    h.check_health(False)
    assert h.tick() == [Do.SILENCE] and h.at(S.YIELDED)
    assert h.members.reason == "the application has failed 3 health checks: not accepted"
    assert h.state.role is Role.JOINING  # so the backup takes over without a fence
    return h


@scenario
def yielded_host_joins_when_its_application_is_well_again() -> Member:
    h = checked().yielded()
    h.done()
    h.check_health(True, False)  # the first one is not later than the failure
    assert h.hear(S.UNPROTECTED, 2) == [] and h.tick() == [] and h.at(S.YIELDED)
    h.check_health(True)  # what is about to die may pass one more
    assert h.silence(CHECKED_REST_S + 0.1) == [] and h.at(S.YIELDED)
    h.check_health(True)
    assert h.tick() == [] and h.at(S.WAITING)
    h.hear(S.UNPROTECTED, 2)
    assert h.at(S.SHADOWING)
    return h


@scenario
def yielded_host_that_nobody_checks_rests_for_a_while() -> Member:
    h = Member().yielded()
    h.done()
    assert h.silence(UNCHECKED_REST_S - 0.1) == [] and h.at(S.YIELDED)
    assert h.silence(0.2) == [] and h.at(S.WAITING)
    return h


@scenario
def yielded_host_is_not_elected_but_can_be_told_to_serve() -> Member:
    h = checked().yielded()
    h.done()
    for state in (S.WAITING, S.REFUSED, S.LEAVING):
        assert h.hear(state, 1) == [] and h.at(S.YIELDED)
    assert h.silence(5.0) == [] and h.at(S.YIELDED)
    assert h.members.claim() == "claimed"
    assert h.done() == [Do.STORE] and h.stored() == [Do.SERVE]
    return h


@scenario
def yielded_host_can_be_stopped() -> Member:
    h = Member().yielded()
    h.done()
    h.members.stop()
    assert h.done() == [] and h.at(S.LEAVING)
    return h


@scenario
def service_is_not_yielded_to_a_backup_that_can_not_go_on() -> Member:
    h = checked().lose_backup()
    h.check_health(False, False, False)
    assert not h.members.application_failed("a connection", h.now)
    h.silence(0.3)
    assert h.at(S.BACKUP_LOST)
    h.hear(S.SHADOWING, 1, generation=1)
    assert h.tick() == [] and h.at(S.PROTECTED)
    assert h.tick() == [Do.SILENCE] and h.at(S.YIELDED)  # as soon as it is back
    return h


@scenario
def service_is_not_yielded_to_a_backup_that_is_about_to_take_over() -> Member:
    h = Member().protect()
    h.hear(S.CHECKING, 1, generation=1)
    assert not h.members.application_failed("a connection", h.now)
    return h


@scenario
def service_is_not_yielded_while_unprotected() -> Member:
    h = checked().serve()
    h.check_health(False, False, False)
    assert h.tick() == [] and h.at(S.UNPROTECTED)
    return h


@scenario
def failed_checks_move_the_service_though_single_connections_move_alone() -> Member:
    h = Member(health_checked=True, on_app_failure="connection").protect()
    h.check_health(False, False, False)
    assert Do.SILENCE in h.tick() and h.at(S.YIELDED)
    return h


@scenario
def service_is_not_yielded_if_the_configuration_says_so() -> Member:
    h = Member(health_checked=True, on_app_failure="off").protect()
    h.check_health(False, False, False)
    assert h.tick() == [] and h.at(S.PROTECTED)
    assert h.members.flags & UNHEALTHY
    return h


@scenario
def backup_whose_application_has_failed_gives_its_shadows_up_and_says_so() -> Member:
    h = checked().shadow()
    assert not h.members.invalid and h.members.generation == 3
    h.check_health(False, False, False)
    assert h.tick() == [Do.INVALIDATE]
    assert h.members.generation == 0 and h.members.flags & UNHEALTHY and h.members.invalid
    h.hear(S.ARMING, 7, 4)  # no new generation as long as it lasts
    assert h.members.generation == 0
    h.check_health(True)
    assert not h.members.flags & UNHEALTHY
    assert h.hear(S.ARMING, 7, 4) == [Do.SHADOW]
    return h


@scenario
def backup_that_is_taking_over_goes_on_whatever_its_health() -> Member:
    h = checked().fencing()
    h.check_health(False, False, False)
    assert h.tick() == [] and not h.members.invalid
    h.fence(True)
    assert h.stored() == [Do.TAKE_OVER]
    return h


@scenario
def primary_is_unprotected_while_its_backups_application_is_not_well() -> Member:
    h = Member().protect()
    assert h.hear(S.SHADOWING, 1, generation=0, well=False) == [Do.RELEASE]
    assert h.members.reason == "the backup's application has failed"
    assert h.hear(S.SHADOWING, 1, well=False) == [] and h.at(S.UNPROTECTED)
    assert h.hear(S.SHADOWING, 1) == [Do.ARM]
    return h


@scenario
def protection_that_is_about_to_begin_does_not_if_the_backups_application_fails() -> Member:
    h = Member().arm()
    h.done()
    assert h.hear(S.SHADOWING, 1, well=False) == [Do.RELEASE] and h.at(S.UNPROTECTED)
    return h


@scenario
def unhealthy_backup_that_still_holds_everything_is_not_released_yet() -> Member:
    """It may be taking over at this moment: only its own word that it has nothing makes it harmless."""
    h = Member().protect()
    assert h.hear(S.SHADOWING, 1, generation=1, well=False) == [] and h.at(S.PROTECTED)
    assert not h.members.application_failed("a connection", h.now)
    return h
