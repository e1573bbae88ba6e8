"""The primary opens connections towards the backup: what is held, what is let go and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfq_failover.core.gate.connection import Gate
from nfq_failover.wire.records import DECLARED, Close, Closed, Opened, Progress, Towards, Unprotected, UnprotectedSeen
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    OFFER,
    After,
    GateTranscript,
    client,
    client_seq,
    confirmed,
    granted,
    opening,
    server,
    server_seq,
    syn,
    syn_ack,
)

HELD = "drop syn-ack-held"


def test_syn_ack_waits_until_the_replica_can_continue() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(0.006) << "query" << opening()
        t >> After(0.011) << opening()
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        assert t.side.flows[FLOW].state is Gate.PROTECTED
        t >> After(0.05)


def test_retransmitted_syn_ack_is_held_too_and_passes_once_the_replica_is_ready() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> syn_ack() << HELD
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> syn_ack() << "pass"


def test_syn_ack_promises_no_more_than_the_replica_takes() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack(wnd=8000) << HELD << opening()
        t >> Opened(1, True, client_seq(5000)) << "client [S.] -1 ack 0 wnd 5000"


def test_answer_that_came_twice_releases_once() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> Opened(1, True, client_seq(65000))


def test_replica_that_is_not_ready_in_time_goes_unprotected_and_is_protected_when_it_has_caught_up() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        connection = t.side.flows[FLOW]
        assert (connection.state.name, connection.reason) == ("UNPROTECTED", "replica not ready")
        t >> server(0, 0, ack=300, ts=(5, 6)) << "pass"
        t >> After(0.06) << Progress(1, client_seq(300), True)
        t >> confirmed(200, 70000)  # the client was told 300: the backup still lacks a part of it
        assert connection.state.name == "CATCHING_UP"
        t >> confirmed(300, 70000) << "log debug: connection protected" << Progress(1, client_seq(300), True)
        assert connection.state.name == "PROTECTED"
        t >> server(0, 0, ack=400) << "drop ack-held"


def test_replica_that_is_ready_when_the_protection_has_ended_is_too_late() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        t.side.stop_protecting("the backup is silent, and its time to take over has passed", t.now)
        t.drain()
        t >> confirmed(300, 70000)
        t.side.start_protecting(0.0)  # with nothing: the backup has begun a new generation
        t >> confirmed(300, 70000)
        assert t.side.flows[FLOW].reason == "opened before the backup joined"


def test_connection_let_go_is_not_protected_while_the_client_may_count_on_selective_acknowledgements() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        t >> server(0, 0, ack=300, sack=((400, 500),)) << "pass"
        t >> confirmed(300, 70000)
        assert t.side.flows[FLOW].state.name == "CATCHING_UP"
        t >> confirmed(500, 70000) << "log debug: connection protected" << Progress(1, client_seq(300), True)


def test_busy_client_is_told_no_more_while_the_backup_catches_up() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        connection = t.side.flows[FLOW]
        t >> server(0, 0, ack=3000, ts=(5, 6)) << "pass"
        t >> confirmed(1000, 70000)
        t >> server(0, 0, ack=5000, ts=(5, 6)) << "drop ack-held"
        (t >> server(0, 10, ack=5000, ts=(5, 6)) << "pass [.] 0:10 ack 3000 wnd 1500 ts 5/6")  # said before
        t >> confirmed(2500, 70000)
        assert connection.state.name == "CATCHING_UP"
        t >> confirmed(4000, 70000)
        t << "client [.] 10 ack 4000 wnd 1250 ts 2000000/1000" << "log debug: connection protected"
        t << Progress(1, client_seq(5000), True)
        assert connection.state.name == "PROTECTED"


def test_backup_that_does_not_catch_up_in_time_holds_nothing_up() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        connection = t.side.flows[FLOW]
        t >> server(0, 0, ack=3000, ts=(5, 6)) << "pass"
        t >> confirmed(1000, 70000)
        t >> server(0, 0, ack=5000, ts=(5, 6)) << "drop ack-held"
        t >> After(0.6) << "client [.] 0 ack 5000 wnd 1000 ts 2000000/1000" << Progress(1, client_seq(5000), True)
        assert (connection.state.name, connection.reason) == ("UNPROTECTED", "replica not ready")
        assert connection.acks.told_ack == 5000
        t >> confirmed(2000, 70000)
        assert connection.state.name == "UNPROTECTED"  # not again so soon
        t.now += 2.1
        t >> confirmed(2000, 70000)
        assert connection.state.name == "CATCHING_UP"


def test_refusal_with_a_reason_lets_the_connection_go_unprotected() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, False, 0, "the hosts grant different TCP options")
        t << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected"
        assert t.side.flows[FLOW].reason == "the hosts grant different TCP options"
        t >> server(0, 10, ack=100) << "pass"


def test_refusal_without_a_reason_means_not_yet() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, False, 0, "")
        assert t.side.flows[FLOW].state is Gate.SYN_HELD


def test_refusal_that_comes_late_gives_the_true_reason_and_ends_the_asking() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> After(1.1) << "client [S.] -1 ack 0 wnd 8000" << "log warning: connection unprotected" << "query"
        t >> Unprotected(1, "the hosts grant different TCP options")
        t << "log warning: connection unprotected" << UnprotectedSeen(1)
        assert t.side.flows[FLOW].reason == "the hosts grant different TCP options"
        t >> After(1.0)


def test_options_that_a_takeover_cannot_continue_are_taken_out_of_the_syn() -> None:
    mptcp, fast_open, unknown = bytes((30, 4, 0, 1)), bytes((34, 4, 9, 9)), bytes((253, 4, 7, 7))
    with GateTranscript() as t:
        t >> syn(OFFER + mptcp + fast_open + unknown) << "pass [S] -1 wnd 64240"
        t >> syn_ack() << HELD << opening(syn_options=OFFER + b"\x01" * 12)


def test_data_is_taken_out_of_a_syn_with_and_without_the_fast_open_cookie() -> None:
    """A kernel with net.ipv4.tcp_fastopen bit 0x200 takes it without any option."""
    fast_open = bytes((34, 6, 1, 2, 3, 4, 1, 1))
    for number, options in enumerate((fast_open, OFFER), 1):
        with GateTranscript() as t:
            t >> client(-1, flags="S", ack=None, options=options, payload=b"early" * number) << "pass [S] -1 wnd 1000"
            assert t.out.counters["syn-stripped"] == 1
            (kept,) = (options for _, options, _ in t.side.opening._syns.values())
            assert kept == (b"\x01" * 8 if options == fast_open else OFFER)


def test_corrupted_syn_gets_no_fresh_checksum() -> None:
    with GateTranscript() as t:
        t >> syn(OFFER + bytes((30, 4, 0, 1)), corrupt=True) << "drop bad-checksum"
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()


@pytest.mark.parametrize("kind", [19, 29], ids=["TCP-MD5", "TCP-AO"])
def test_signed_connection_works_but_unprotected(kind: int) -> None:
    signed = bytes((kind, 18)) + bytes(16) + bytes((1, 1))
    options = bytes((2, 4, 5, 180)) + signed
    with GateTranscript() as t:
        t >> syn(options) << "pass"
        t >> syn_ack(options=granted(None, None, False) + signed)
        t << "log warning: connection unprotected" << "pass"
        assert t.side.flows[FLOW].reason == "TCP-MD5 or TCP-AO signs the header"
        t >> server(0, 0, ack=100) << "pass"


def test_full_table_leaves_the_connection_alone() -> None:
    with GateTranscript(max_connections=0) as t:
        t >> syn() << "pass"
        t >> syn_ack() << "log error: connection table full: new connections are not protected" << "pass"
        t >> server(0, 10, ack=100) << "pass"
        assert t.out.counters["connection-not-tracked"] == 1


def test_connection_that_had_no_room_is_no_stranger_when_there_is_room_again() -> None:
    with GateTranscript(max_connections=0) as t:
        t.side.opening.adopt_unknown(False)
        t >> syn() << "pass"
        t >> syn_ack() << "log error: connection table full: new connections are not protected" << "pass"
        t.side.settings.adopt(replace(t.side.settings, max_connections=1))
        t >> server(0, 10, ack=100) << "pass"
        assert "no room" in t.side.flows[FLOW].reason


def test_connection_that_the_server_opens_is_left_alone_and_listed() -> None:
    with GateTranscript() as t:
        t >> server(-1, ack=None, flags="S", options=OFFER) << "pass"
        assert not t.side.flows
        t >> server(0, 10, ack=100) << "pass"
        assert "opened by the server" in t.side.flows[FLOW].reason
        assert [(each.flow, each.seq, each.ack) for each in t.served] == [(FLOW, server_seq(0), client_seq(100))]
        t >> server(10, 10, ack=200) << "pass"
        t >> After(0.3) << "query"
        assert [(each.seq, each.ack) for each in t.served[1:]] == [(server_seq(20), client_seq(200))]
        t >> server(20, ack=200, flags="R.") << "pass" << Close(1, "reset by the server")


def test_connection_whose_syn_was_not_seen_is_unprotected() -> None:
    with GateTranscript() as t:
        t >> syn_ack() << "log warning: connection unprotected" << "pass"
        assert t.side.flows[FLOW].reason == "opened before the rules were there"


def test_without_a_backup_connections_pass_and_are_listed_with_the_reason() -> None:
    with GateTranscript(protecting=False) as t:
        t >> syn() << "pass"
        t >> syn_ack() << "log warning: connection unprotected" << "pass"
        t >> server(0, 0, ack=100) << "pass"
        assert t.side.flows[FLOW].reason == "no backup"
        t.side.start_protecting(0.0)
        assert t.side.flows[FLOW].reason == "opened before the backup joined"
        warns = "log warning: concern: warning"  # of what it has brought before, and of what it brings now
        t >> server(0, 0, ack=200) << warns << "pass" << warns


def test_port_reuse_closes_the_old_connection_and_opens_the_new_one() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        again: dict[str, Any] = {"irs": IRS + 70000, "iss": ISS + 90000}
        t >> syn(**again) << "pass"
        t >> syn_ack(**again) << HELD
        t << Close(1, "replaced by a new connection") << opening(2, **{k: v % 2**32 for k, v in again.items()})
        t >> Closed(1)
        t >> After(0.004) << "query"


def test_late_answer_to_an_earlier_syn_leaves_the_later_one_remembered() -> None:
    with GateTranscript() as t:
        again: dict[str, Any] = {"irs": IRS + 70000, "iss": ISS + 90000}
        t >> syn() << "pass"
        t >> syn(**again) << "pass"  # the client has given up its first attempt
        t >> syn_ack() << HELD << opening()
        t >> syn_ack(**again) << HELD
        t << Close(1, "replaced by a new connection") << opening(2, **{k: v % 2**32 for k, v in again.items()})
        t >> Closed(1)
        t >> After(0.004) << "query"


def test_handshake_is_reported_until_the_backup_has_seen_it() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> server(0, 100) << "pass [.] 0:100 ack 0 wnd 2000"  # never left of the SYN-ACK's edge
        t >> After(0.004) << "query" << Progress(1, client_seq(0), True)
        t >> After(0.007) << Progress(1, client_seq(0), True)
        t >> confirmed(0, 65000, established=True)
        t >> After(0.1)


def test_gate_takes_the_records_that_are_for_it_and_no_others() -> None:
    wanted = {record for record in DECLARED.values() if record.towards in (Towards.GATE, Towards.EITHER)}
    assert set(GateTranscript().side.takes) == wanted
    with GateTranscript() as t:
        t.side.take(Progress(1, 0, True), t.now)
        t.drain()


def test_what_our_tcp_has_from_an_earlier_life_is_kept_from_the_clients() -> None:
    with GateTranscript() as t:
        t >> server(0, 100, ack=5, wnd=1) << "pass"
    with GateTranscript() as t:
        t.side.opening.adopt_unknown(False)
        t >> server(0, 100, ack=5, wnd=1) << "drop stranger" << "kernel [R] 5 wnd 0"
        t >> server(0, ack=5, flags="F.", wnd=1) << "drop stranger" << "kernel [R] 5 wnd 0"
        t >> server(0, flags="R", wnd=0) << "pass"  # to somebody that nobody knows


def test_connection_that_the_server_opens_is_no_stranger() -> None:
    with GateTranscript() as t:
        t.side.opening.adopt_unknown(False)
        t >> server(-1, ack=None, flags="S") << "pass"
        t >> server(0, ack=0, wnd=1) << "pass"
        t >> server(0, 100, ack=5, wnd=1) << "pass"
        t >> server(100, ack=5, flags="F.", wnd=1) << "pass"
        assert "opened by the server" in t.side.flows[FLOW].reason
        t.side.clear(t.now)
        t >> server(0, 100, ack=5, wnd=1) << "drop stranger" << "kernel [R] 5 wnd 0"
