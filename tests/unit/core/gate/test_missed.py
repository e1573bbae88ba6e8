"""What clients send on connections that have no replica: counted, told to the backup, and nothing new is protected."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import FEED_LINGER_S
from nfq_failover.wire.records import (
    Data,
    Fed,
    InputMissed,
    Lives,
    Missing,
    Opened,
    Whole,
    WholeSaid,
)
from tests.support.gate import TS, Gated, ack
from tests.support.missed import LOST, another, do, lost, quiet, told
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


def test_word_of_an_earlier_life_that_was_overtaken_is_not_about_this_one() -> None:
    """Else all that is missed between that and the next word would be forgotten, and the connections without a replica
    would be taken for some from before."""
    with GateTranscript() as t:
        do(t, Whole(7, 0, 0), Whole(8, 0, 0))
        do(t, syn(), syn_ack(), Opened(1, False, 0, "the hosts grant different TCP options"))
        do(t, Lives(7, 70, 0), Whole(7, 0, 0))
        assert InputMissed(8, 1) in do(t, Copy(client(0, 100)), server(0, ack=100))
        do(t, Whole(7, 0, 0), Whole(8, 0, 0))
        assert another(t) == "the replica has missed input of 1 connections"


def test_daemon_of_the_backup_that_is_restarted_may_be_in_an_earlier_life() -> None:
    with lost() as t:
        do(t, Whole(8, 0, 0))
        t.side.stop_protecting("the backup is gone", t.now)
        t.side.start_protecting(t.now)
        do(t, Whole(7, 0, 3))
        assert another(t) == "the replica has missed input of 3 connections"


def test_daemon_of_the_backup_that_is_restarted_is_told_again_what_its_application_has_missed() -> None:
    """Else a restart of that application, which is the cure, would seem to be for no reason."""
    with lost() as t:
        do(t, Copy(client(0, 100, ts=TS)), ack(100), Whole(7, 1, 1))
        t.side.stop_protecting("the backup is gone", t.now)
        t.side.start_protecting(t.now)
        do(t, Whole(7, 0, 0))
        assert told(t)[0] == InputMissed(7, 1)
        do(t, Whole(7, 1, 1))
        assert not told(t, 2.0)


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
