"""How loud each change of a host's state is: who reads only the errors learns that protection is lost, and no more."""

from __future__ import annotations

from nfq_failover.core.pair.roles import TRANSITIONS, Change, Input, State

S, I = State, Input  # noqa: E741


def level(before: State, given: Input) -> str:
    return Change(before, TRANSITIONS[before, given], given, "").level


def test_a_clean_start_and_a_clean_stop_have_no_error() -> None:
    for before, given in (
        (S.WAITING, I.ELECTED),
        (S.WAITING, I.PEER_SERVES),
        (S.UNPROTECTED, I.BACKUP_JOINED),
        (S.ARMING, I.ARMED),
        (S.PROTECTED, I.STOP),
        (S.SHADOWING, I.STOP),
        (S.YIELDED, I.APP_WELL),
    ):
        assert level(before, given) == "info", (before, given)
    assert level(S.CLAIMING, I.STORED) == "warning"  # it serves, and nobody protects it yet
    assert level(S.SHADOWING, I.PEER_YIELDED) == "warning"  # the primary has left the service to this host


def test_lost_protection_is_an_error() -> None:
    lost = [key for key, after in TRANSITIONS.items() if key[0] is S.PROTECTED and after is S.UNPROTECTED]
    lost += [key for key, after in TRANSITIONS.items() if key[0] is S.BACKUP_LOST and after is S.UNPROTECTED]
    assert len(lost) >= 3
    assert {level(*key) for key in lost} == {"error"}


def test_a_host_that_was_turned_off_or_can_not_act_is_an_error() -> None:
    for (before, given), after in TRANSITIONS.items():
        if after is S.REFUSED or given in (I.FENCED, I.FENCE_FAILED, I.OUTDATED, I.APP_FAILED, I.STORE_FAILED):
            assert level(before, given) == "error", (before, given)


def test_what_passes_by_itself_is_a_warning() -> None:
    assert level(S.SHADOWING, I.PEER_SILENT) == "warning"
    assert level(S.CHECKING, I.PEER_BACK) == "info"
    assert level(S.PROTECTED, I.PEER_SILENT) == "warning"
    assert level(S.PROTECTED, I.PAUSED) == "warning"
