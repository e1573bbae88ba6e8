"""An application that is started anew on one host alone has forgotten what the other knows: nothing is protected."""

from __future__ import annotations

import pytest

from nfq_failover.core.application import Begun
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.missed import CROSSED_S, LOOK_WITHIN_S
from nfq_failover.wire.records import (
    Anew,
    BegunAnew,
    Believed,
    Lives,
    Whole,
    WholeSaid,
)
from tests.support.gate import Gated
from tests.support.missed import another, do, quiet
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    Copy,
    GateTranscript,
    client,
    server,
)

SERVER_ANEW = "the server's application was started anew, and the replica's was not"
REPLICA_ANEW = "the replica's application was started anew, and the server's was not"


def begin(t: GateTranscript, anew: bool = True) -> list[object]:
    """Our application begins to listen; it was not there, or was another one, a second ago. What comes of it."""
    t.side.application_begun(Begun((80,) if anew else (), t.now - 1.0), t.now)
    return do(t, After(0.02))


def lives(life: int, anew: Anew = Anew.NONE, instance: int = 7) -> list[object]:
    """What the backup tells of its application, once a second."""
    return [Lives(instance, life, anew), Whole(instance, 0, int(anew is not Anew.NONE))]


def both_known() -> Gated:
    """A protected connection that has sent something; both applications are known, and have begun before it."""
    t = Gated()
    do(t, *lives(0))
    begin(t, anew=False)
    do(t, *lives(5))
    do(t, After(10.0))
    return t


def test_server_that_is_started_anew_alone_protects_nothing_new_until_it_is_said_to_be_whole() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        assert BegunAnew(7) in begin(t)
        assert BegunAnew(7) in do(t, After(0.1)), "until it is heard"
        assert another(t) == SERVER_ANEW
        do(t, *lives(5, Anew.SERVER))
        assert BegunAnew(7) not in do(t, After(5.0))
        assert another(t, 140000) == SERVER_ANEW
        t.side.missed.said(t.now)
        assert WholeSaid(7) in do(t, After(0.1))
        do(t, *lives(5, instance=8))
        assert another(t, 210000) == ""


@pytest.mark.parametrize("where", ["here", "there", "there, while it is told"])
def test_what_an_operator_says_is_about_a_start_of_the_server_that_nobody_has_seen_so_far(where: str) -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        instance = 7
        if where == "here":
            t.side.missed.said(t.now)
        else:
            if where != "there":
                assert BegunAnew(7) in begin(t)
            instance = 8
            do(t, Believed(8), *lives(5, instance=8))
        assert t.side.missed.wants_look
        found = begin(t) if where != "there, while it is told" else []
        t.side.missed.looked(t.now)
        found += do(t, After(0.1))
        assert not t.side.missed.wants_look
        assert WholeSaid(instance) in found and not any(isinstance(each, BegunAnew) for each in found)
        do(t, *lives(5, instance=9))
        assert another(t, 140000) == ""
        assert BegunAnew(9) in begin(t), "that was after it"


def test_what_an_operator_says_on_the_backup_is_about_what_was_until_then() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100), Believed(8), *lives(5, instance=8))
        t.side.missed.looked(t.now)
        do(t, Believed(8), *lives(5, instance=8))
        assert not t.side.missed.wants_look, "it is repeated once a second"
        assert BegunAnew(8) in begin(t)


def test_what_an_operator_says_does_not_wait_for_a_kernel_that_can_not_be_asked() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        begin(t)
        do(t, Believed(8), *lives(5, instance=8))
        assert not any(isinstance(each, WholeSaid) for each in do(t, After(LOOK_WITHIN_S / 2)))
        assert WholeSaid(8) in do(t, After(LOOK_WITHIN_S))


def test_what_an_operator_says_while_the_backups_application_is_not_well() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        t.side.stop_protecting("the backup's application has failed", t.now)
        quiet(t)
        t.side.missed.said(t.now)
        assert WholeSaid(7) in do(t, After(0.01))
        assert WholeSaid(7) in do(t, After(1.0)), "until it is heard"
        begin(t)
        t.side.missed.looked(t.now)
        do(t, *lives(6, instance=8))
        begin(t)
        assert not any(isinstance(each, BegunAnew) for each in do(t, After(10.0))), "there is no backup to be told"


def test_what_an_operator_says_before_anything_is_known_of_the_backups_application() -> None:
    with Gated() as t:
        t.side.missed.instance = 0  # as when the protection has just begun
        t.side.missed.said(t.now)
        assert not do(t, After(0.1))
        assert WholeSaid(9) in do(t, *lives(5, instance=9))
        assert WholeSaid(9) in do(t, After(0.1))
        assert not any(isinstance(each, WholeSaid) for each in do(t, *lives(5, instance=10), After(1.0)))


@pytest.mark.parametrize("crosses", [False, True])
def test_start_of_the_replica_that_is_found_while_an_operator_says_so(crosses: bool) -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        t.side.missed.said(t.now)
        t.side.missed.looked(t.now)
        do(t, After(CROSSED_S / 10 if crosses else 2 * CROSSED_S))
        found = do(t, *lives(6, Anew.REPLICA, 8), After(0.02))
        assert (WholeSaid(8) in found) is crosses, "it had been found before that was heard"
        do(t, *lives(6, Anew.NONE if crosses else Anew.REPLICA, 9))
        assert another(t) == ("" if crosses else REPLICA_ANEW)


def test_replica_that_is_started_anew_alone() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        do(t, *lives(6, Anew.REPLICA, 8))
        assert another(t) == REPLICA_ANEW
        assert not any(isinstance(each, WholeSaid | BegunAnew) for each in do(t, After(1.0)))


@pytest.mark.parametrize("first", ["server", "replica"])
@pytest.mark.parametrize("sent", ["before", "between", "after"])
def test_both_are_started_anew_one_after_the_other(first: str, sent: str) -> None:
    """What was sent before either has begun does not matter; what comes after the first one does."""
    with both_known() as t:
        if sent == "before":
            do(t, server(0, 0, ack=100))
        do(t, After(20.0))

        def restart(what: str) -> list[object]:
            if what == "server":
                return begin(t)
            return do(t, *lives(6, Anew.REPLICA, 8))

        restart(first)
        if sent == "between":
            another(t)
            do(t, Copy(client(0, 5, irs=IRS + 70000)), server(0, 0, ack=5, irs=IRS + 70000, iss=(ISS + 70000) % 2**32))
        do(t, After(10.0))
        found = restart("replica" if first == "server" else "server")
        equal = any(isinstance(each, WholeSaid) for each in found)
        assert equal is (sent != "between")
        assert "started anew" in another(t, 140000), "until the backup says that it is whole"
        if equal:
            if sent == "after":
                t.side.missed.untracked("it is not kept", None, t.now)
            do(t, *lives(6, instance=9))
            count = "the replica has missed input of 1 connections"
            assert another(t, 210000) == (count if sent == "after" else "")


def test_input_of_a_connection_that_is_over_counts() -> None:
    with both_known() as t:
        begin(t)
        another(t)
        do(t, server(0, 0, ack=5, irs=IRS + 70000, iss=(ISS + 70000) % 2**32))
        do(t, server(5, 0, ack=5, flags="R.", irs=IRS + 70000, iss=(ISS + 70000) % 2**32))
        do(t, After(20.0))
        assert not any(isinstance(each, WholeSaid) for each in do(t, *lives(6, Anew.REPLICA, 8)))


def test_what_was_before_anybody_looked_may_have_got_anything() -> None:
    with Gated() as t:
        do(t, *lives(5))  # it was there when the backup joined
        assert BegunAnew(7) in begin(t)


def test_server_that_was_started_anew_before_the_backup_joined_is_no_matter() -> None:
    with Gated() as t:
        begin(t)
        do(t, *lives(5))
        assert another(t) == ""


def test_server_that_was_started_anew_while_nothing_was_protected() -> None:
    """The backup's application goes on with what it has."""
    with both_known() as t:
        t.side.stop_protecting("no backup", t.now)
        quiet(t)
        begin(t)
        assert BegunAnew(7) not in do(t, After(1.0))
        t.side.start_protecting(t.now)
        assert BegunAnew(7) in do(t, *lives(5), After(0.1))
        t.side.stop_protecting("no backup", t.now)
        t.side.start_protecting(t.now)
        assert BegunAnew(7) not in do(t, *lives(8, instance=9), After(0.1)), "it is another one that has joined"
        assert another(t) == ""


def test_connection_that_was_opened_before_the_restart_was_seen_is_not_protected() -> None:
    with both_known() as t:
        do(t, server(0, 0, ack=100))
        t.side.flows[FLOW].opened_at = t.now - 0.5
        begin(t)
        assert t.side.flows[FLOW].state is Gate.FED and t.side.flows[FLOW].reason == SERVER_ANEW


def test_service_without_state_may_be_started_anew() -> None:
    with both_known() as t:
        t.side.missed._shared = False
        begin(t)
        assert BegunAnew(7) not in do(t, After(1.0))
        do(t, *lives(6, Anew.REPLICA, 8))
        assert another(t) == ""
