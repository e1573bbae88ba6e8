"""What a host has been lately, and how its last takeover went."""

from __future__ import annotations

from nfq_failover.core.history import MOST, History, Phase
from nfq_failover.core.pair.roles import Change, Input, Role, State


def change(before: State, after: State) -> Change:
    return Change(before, after, Input.PEER_SILENT, "")


def test_only_what_is_new_is_kept_and_no_more_than_so_much() -> None:
    history = History()
    for number in range(3):
        history.observe(Role.BACKUP, "shadowing", 1, "", float(number))
    assert [(each.number, each.at, each.state) for each in history.happenings] == [(1, 0.0, "shadowing")]
    history.observe(Role.BACKUP, "degraded", 1, "the disk is slow", 3.0)
    assert [each.number for each in history.since(1)] == [2]
    for epoch in range(30):
        history.observe(Role.PRIMARY, "protected", epoch, "", 4.0)
    assert len(history.happenings) == MOST
    assert [each.epoch for each in history.since(0)] == list(range(20, 30))


def test_the_phases_of_a_takeover_are_reckoned_from_the_last_heartbeat() -> None:
    history = History()
    history.changed(change(State.SHADOWING, State.CHECKING), 10.0, 10.15)
    history.changed(change(State.CHECKING, State.FENCING), 10.0, 10.16)
    history.changed(change(State.FENCING, State.STORING), 10.0, 11.0)
    history.changed(change(State.STORING, State.UNPROTECTED), 10.0, 11.01)
    history.took_over(4, 12, 1, 11.01)
    took = history.takeover
    assert took is not None
    assert (took.epoch, took.going, took.reset, took.at) == (4, 12, 1, 11.01)
    assert took.phases == (
        Phase("checking", 150.0),
        Phase("fencing", 160.0),
        Phase("storing", 1000.0),
        Phase("heard by the clients", 1010.0),
    )


def test_an_attempt_that_ends_leaves_nothing_in_the_next_one() -> None:
    history = History()
    history.changed(change(State.SHADOWING, State.CHECKING), 10.0, 10.15)
    history.changed(change(State.CHECKING, State.SHADOWING), 10.2, 10.2)
    assert history.takeover is None
    history.changed(change(State.SHADOWING, State.CHECKING), 20.0, 20.15)
    for _ in range(100):
        history.changed(change(State.REFUSED, State.RETRYING), None, 21.0)
    history.took_over(4, 0, 0, 22.0)
    assert history.takeover is not None
    assert history.takeover.phases[0] == Phase("checking", 150.0)
    assert history.takeover.phases[-1].reached == "heard by the clients"
    assert len(history.takeover.phases) <= 16


def test_a_peer_that_was_never_heard_has_no_time_to_reckon_from() -> None:
    history = History()
    history.took_over(1, 0, 0, 5.0)
    assert history.takeover is not None
    assert history.takeover.phases == (Phase("heard by the clients", None),)
