"""What clients send on connections that have no replica: counted, told to the backup, and nothing new is protected."""

from __future__ import annotations

import pytest

from nfq_failover.core.application import Begun
from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import FEED_LINGER_S, Gate
from nfq_failover.core.gate.missed import CROSSED_S, LOOK_WITHIN_S
from nfq_failover.wire.records import (
    Anew,
    BegunAnew,
    Believed,
    Data,
    Fed,
    InputMissed,
    Lives,
    Missing,
    Opened,
    Unprotected,
    Whole,
    WholeSaid,
)
from tests.support.gate import TS, Gated, ack
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    Copy,
    GateTranscript,
    client,
    client_bytes,
    client_seq,
    confirmed,
    server,
    syn,
    syn_ack,
)

LOST = Unprotected(1, "the replica reset the connection")


def quiet(t: GateTranscript) -> list[object]:
    """All that has come out."""
    found: list[object] = list(t.effects)
    t.effects.clear()
    return found


def do(t: GateTranscript, *inputs: object) -> list[object]:
    """Feed several inputs; all that has come out."""
    found: list[object] = []
    for each in inputs:
        t >> each
        found += quiet(t)
    return found


def told(t: GateTranscript, seconds: float = 0.1) -> list[InputMissed]:
    """What the backup is told."""
    t >> After(seconds)
    return [each for each in quiet(t) if isinstance(each, InputMissed)]


def another(t: GateTranscript, far: int = 70000) -> str:
    """A new connection from the same port; why it is not protected."""
    do(t, syn(irs=IRS + far))
    do(t, syn_ack(irs=IRS + far, iss=(ISS + far) % 2**32))
    quiet(t)
    return t.side.flows[FLOW].reason if t.side.flows[FLOW].state is Gate.UNPROTECTED else ""


def lost(**changes: object) -> Gated:
    """A connection that has lost its replica."""
    t = Gated()
    t.side.missed._shared = changes.get("state") != "none"
    do(t, Whole(7, 0, 0))
    do(t, LOST)
    quiet(t)
    return t


def test_client_that_sends_nothing_does_no_harm() -> None:
    with lost() as t:
        do(t, server(0, 1000, wnd=10000, ts=TS))
        assert not told(t)
        assert another(t) == ""


def test_what_a_client_sends_is_missing_and_nothing_new_is_protected() -> None:
    with lost() as t:
        assert InputMissed(7, 1) in do(t, Copy(client(0, 1, ts=TS)), ack(1))
        assert told(t) == [InputMissed(7, 1)]
        do(t, Whole(7, 1, 1))
        assert not told(t, 2.0)
        assert another(t) == "the replica has missed input of 1 connections"


def test_it_limits_the_harm_to_that_connection_if_told_so() -> None:
    with lost(state="none") as t:
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        assert another(t) == ""


def test_copy_that_our_tcp_has_not_taken_is_no_input() -> None:
    with lost() as t:
        do(t, Copy(client(0, 100, ts=TS)))
        assert not told(t)
        assert any(isinstance(each, InputMissed) for each in do(t, ack(100)))


def test_end_of_the_client_is_no_input() -> None:
    with lost() as t:
        do(t, ack(1), Copy(client(0, 0, flags="F.", ts=TS)))
        assert not told(t)


def test_bytes_whose_copies_were_lost_are_input() -> None:
    with lost() as t:
        assert any(isinstance(each, InputMissed) for each in do(t, ack(2)))


def test_bytes_that_the_backup_had_are_not_missing() -> None:
    with Gated() as t:
        do(t, Whole(7, 0, 0))
        do(t, Copy(client(0, 100, ts=TS)), ack(100), confirmed(100, 40000))
        quiet(t)
        do(t, LOST)
        quiet(t)
        assert not told(t)
        assert any(isinstance(each, InputMissed) for each in do(t, Copy(client(100, 1, ts=TS)), ack(101)))


def test_bytes_that_the_backup_has_not_confirmed_are_missing_at_once() -> None:
    with Gated() as t:
        do(t, Whole(7, 0, 0))
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        assert InputMissed(7, 1) in do(t, LOST)


def test_replica_that_was_never_opened_has_missed_what_was_sent() -> None:
    with GateTranscript() as t:
        do(t, Whole(7, 0, 0))
        do(t, syn(), syn_ack(), Opened(1, False, 0, "the hosts grant different TCP options"))
        quiet(t)
        assert InputMissed(7, 1) in do(t, Copy(client(0, 100)), server(0, ack=100))


def late(t: GateTranscript) -> None:
    """A connection whose replica is late, and lacks 100 bytes when our TCP resets it."""
    do(t, Whole(7, 0, 0))
    do(t, syn(), syn_ack(), *[After(0.05)] * 30)
    assert t.side.flows[FLOW].reason == "replica not ready"
    do(t, Copy(client(0, 100)), server(0, ack=100))
    assert not told(t)
    assert not any(isinstance(each, InputMissed) for each in do(t, server(0, ack=100, flags="R.")))


def gone(t: GateTranscript, seconds: float) -> list[object]:
    """Our TCP has forgotten the connection, and the kernel says so again and again; all that has come out."""
    return do(t, *[FlowsGone([FLOW]), After(0.2)] * round(seconds / 0.2))


def test_replica_that_is_late_gets_what_it_lacks_also_after_the_end() -> None:
    with GateTranscript() as t:
        late(t)
        gone(t, FEED_LINGER_S - 1.0)
        assert FLOW in t.side.flows
        data = Data(1, client_seq(0), client_bytes(0, 100), False)
        assert data in do(t, Missing(1, client_seq(0), client_seq(100)))
        found = do(t, confirmed(50, 40000))  # it goes on, and that is all that is asked of it
        found += gone(t, FEED_LINGER_S - 1.0)
        assert FLOW in t.side.flows
        found += do(t, confirmed(100, 40000)) + gone(t, 0.4)
        assert FLOW not in t.side.flows and not any(isinstance(each, InputMissed) for each in found)


def test_replica_that_does_not_go_on_has_missed_it_in_the_end() -> None:
    with GateTranscript() as t:
        late(t)
        assert InputMissed(7, 1) in gone(t, FEED_LINGER_S + 1.0)
        assert FLOW not in t.side.flows


def test_room_for_new_connections_comes_before_what_a_late_replica_lacks() -> None:
    with GateTranscript(max_connections=1) as t:
        late(t)
        assert InputMissed(7, 1) in gone(t, 0.4)
        assert FLOW not in t.side.flows


def test_replica_that_was_fed_has_missed_what_it_does_not_get_in_the_end() -> None:
    with Gated() as t:
        do(t, Whole(7, 0, 0), Fed(1, "diverged"), Copy(client(0, 100, ts=TS)), ack(100))
        assert InputMissed(7, 1) in gone(t, FEED_LINGER_S + 1.0)


def test_another_life_of_the_replicas_application_has_missed_nothing() -> None:
    with lost() as t:
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        do(t, Whole(8, 0, 0))
        assert not told(t)
        do(t, Copy(client(100, 100, ts=TS)), ack(200))  # it is from before: an operator's matter
        assert t.side.out.concerns.own and not told(t)
        assert another(t) == ""


def test_what_was_open_before_the_backup_joined_is_only_warned_of() -> None:
    with GateTranscript(protecting=False) as t:
        do(t, syn(), syn_ack(), server(0, ack=100))
        t.side.start_protecting(t.now)
        do(t, Whole(7, 0, 0))
        do(t, Copy(client(100, 100)), server(0, ack=200))
        assert t.side.out.concerns.own and not told(t)
        assert another(t) == ""


def test_what_the_backup_has_found_itself_counts() -> None:
    with Gated() as t:
        do(t, Whole(7, 0, 2))
        assert another(t) == "the replica has missed input of 2 connections"
        do(t, Whole(8, 0, 0))
        assert another(t, 140_000) == ""


def test_what_was_missed_before_the_backup_was_heard_is_told_then() -> None:
    with Gated() as t:
        do(t, LOST)
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        assert another(t) == "the replica has missed input of 1 connections"
        do(t, Whole(7, 0, 0))
        assert told(t) == [InputMissed(7, 2 - 1)]


def test_word_of_an_operator_is_passed_on_until_it_is_heard() -> None:
    with lost() as t:
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        t.side.missed.said(t.now)
        t.drain()
        assert WholeSaid(7) in quiet(t)
        assert WholeSaid(7) in do(t, After(0.1))
        found = do(t, Whole(9, 0, 0), After(2.0))
        assert not any(isinstance(each, WholeSaid | InputMissed) for each in found)
        assert another(t) == ""


@pytest.mark.parametrize("told_first", [True, False])
def test_connection_from_the_backups_absence_counts_for_nobody(told_first: bool) -> None:
    with lost() as t:
        if told_first:
            do(t, Whole(7, 0, 0))
        t.side.stop_protecting("backup gone", t.now)
        do(t, Copy(client(0, 100, ts=TS)), ack(100))
        quiet(t)
        assert t.side.missed.reason == ""


def test_server_that_opens_connections_from_one_port_again_and_again_misses_nothing() -> None:
    """Active FTP: the clients only listen, and each connection has numbers of its own."""
    with GateTranscript() as t:
        do(t, Whole(7, 0, 0))
        for number in range(3):
            ends = {"irs": IRS + 90_000 * number, "iss": (ISS + 50_000 * number) % 2**32}
            do(t, server(-1, ack=None, flags="S", **ends), server(0, 0, ack=0, **ends))
            do(t, server(0, 1000, ack=0, **ends), server(1000, flags="F.", ack=0, **ends))
            do(t, Copy(client(0, 0, ack=1001, flags="F.", **ends)), server(1001, 0, ack=1, **ends))
        assert not told(t) and another(t) == ""


# ---------------------------------------------------------------------------------- applications that begin anew

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
