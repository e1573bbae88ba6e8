"""The window that the primary lets the client see, and the end of connections."""

from __future__ import annotations

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.wire.records import (
    AckAsked,
    Close,
    Closed,
    Data,
    EndKind,
    Missing,
    Progress,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.transcript import (
    FLOW,
    After,
    Copy,
    GateTranscript,
    asked,
    client,
    client_bytes,
    client_seq,
    confirmed,
    replica_end,
    server,
    server_seq,
)
from tests.unit.core.gate.test_gate import HELD, TS, Gated, ack


def test_window_stays_within_what_the_backup_takes() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> server(0, 100, ack=1000, wnd=12250, ts=TS) << "pass [.] 0:100 ack 1000 wnd 10000 ts 2000010/1010"


def test_window_that_was_clamped_is_opened_later() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> confirmed(1000, 50000) << "client [.] 0 ack 1000 wnd 12250 ts 2000010/1010"
        t >> confirmed(1000, 60000)  # the primary's own TCP takes no more


def test_window_opens_in_steps_of_a_segment() -> None:
    with Gated() as t:
        t >> confirmed(1000, 41000)
        t >> ack(1000, edge=50000) << "pass [.] 0 ack 1000 wnd 10000 ts 2000010/1010"
        t >> confirmed(1000, 41400)
        t >> confirmed(1000, 42800) << "client [.] 0 ack 1000 wnd 10450 ts 2000010/1010"


def test_closed_window_is_asked_about_until_it_opens() -> None:
    with Gated() as t:
        t >> confirmed(40000, 40000)
        t >> ack(40000, edge=90000) << "pass [.] 0 ack 40000 wnd 0 ts 2000010/1010"
        t >> After(0.004) << Progress(1, client_seq(40000), True)
        t >> After(0.01) << Progress(1, client_seq(40000), True)
        t >> confirmed(40000, 80000) << "client [.] 0 ack 40000 wnd 10000 ts 2000010/1010"
        t >> After(0.1)


def test_client_that_has_ended_gets_no_window_update() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000, flags="F."))
        t >> confirmed(1001, 41000)
        t >> ack(1001, edge=50000) << "pass [.] 0 ack 1001 wnd 9999 ts 2000010/1010"
        t >> confirmed(1001, 50000)
        t >> After(0.1)


def test_right_edge_never_moves_left() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000, edge=39000) << "pass [.] 0 ack 1000 wnd 9750 ts 2000010/1010"


def test_rounding_to_the_scale_creeps_no_further_than_the_backup_has_room_for() -> None:
    before = 40000
    with Gated() as t:
        for at in range(1, 3000):
            t >> confirmed(at, 40000)
            t >> server(0, ack=at, wnd=20000)
            text = str(t.effects.popleft())
            edge = at + 4 * int(text.split()[6])
            assert edge >= before or (before - edge < 4 and before > 40000 + ROUNDING_BYTES - 4), text
            assert 40000 <= edge <= 40000 + ROUNDING_BYTES, text
            before = edge


def test_missing_bytes_are_served_only_as_far_as_our_tcp_has_taken_them() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> Copy(client(1000, 1000))
        t >> Missing(1, client_seq(0), client_seq(2000))
        t >> ack(1500) << HELD
        t >> Missing(1, client_seq(0), client_seq(2000))
        t << Data(1, client_seq(0), client_bytes(0, 1300)) << Data(1, client_seq(1300), client_bytes(1300, 200))


def test_missing_fin_is_served() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100, flags="F."))
        t >> ack(101) << HELD
        t >> Missing(1, client_seq(0), client_seq(101)) << Data(1, client_seq(0), client_bytes(0, 100), True)
        t >> Missing(1, client_seq(100), client_seq(101)) << Data(1, client_seq(100), b"", True)


def test_fin_that_our_tcp_has_not_taken_is_not_served() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100, flags="F."))
        t >> ack(100) << HELD
        t >> Missing(1, client_seq(0), client_seq(101)) << Data(1, client_seq(0), client_bytes(0, 100))


def test_missing_bytes_come_in_bounded_bursts() -> None:
    with Gated(edge=80_000) as t:
        for at in range(0, 60000, 1000):
            t >> Copy(client(at, 1000))
        t >> ack(60000, edge=80000) << HELD
        t >> Missing(1, client_seq(0), client_seq(60000))
        assert len(t.effects) == 32
        t.effects.clear()


def test_bytes_that_were_not_retained_end_the_protection_loudly() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))
        t.now += 1.5
        t >> Missing(1, client_seq(0), client_seq(1000))
        t << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010" << "log warning: connection unprotected"
        reason = "bytes that the backup misses were not retained"
        t << Unprotected(1, reason)
        t >> After(0.004) << Unprotected(1, reason)
        t >> UnprotectedSeen(1)
        t >> After(0.05)
        assert t.gate.reason == reason


def test_copy_that_comes_late_saves_the_connection() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))
        t >> Copy(client(0, 1000))
        t.now += 0.9
        t >> Missing(1, client_seq(0), client_seq(1000)) << Data(1, client_seq(0), client_bytes(0, 1000))
        assert t.gate.state is Gate.PROTECTED


def test_two_holes_at_different_times_are_not_one_that_lasts() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))  # the backup gets it from its tap after all
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)
        t.effects.clear()
        t.now += 5
        t >> ack(2000, edge=41000) << HELD
        t >> Missing(1, client_seq(1000), client_seq(2000))
        assert t.gate.state is Gate.PROTECTED
        t.now += 0.9
        t >> Missing(1, client_seq(1000), client_seq(2000))
        assert t.gate.state is Gate.PROTECTED


def test_a_hole_that_lasts_is_found_also_beside_another_one() -> None:
    with Gated() as t:
        t >> Copy(client(1000, 1000))
        t >> ack(3000) << HELD
        for _ in range(12):
            for at in (0, 2000):
                if t.gate.state is Gate.PROTECTED:
                    t >> Missing(1, client_seq(at), client_seq(at + 1000))
            t.now += 0.1
        assert t.gate.reason == "bytes that the backup misses were not retained"
        t.effects.clear()


def test_confirmed_bytes_are_not_retained_for_long() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(600, 40000)
        assert (
            t.gate.retained.inbound.size == 1000
        )  # our TCP has not taken them: another version of them may still come
        t >> ack(600) << "pass"
        t >> After(0.3)
        t >> confirmed(600, 40000)
        assert t.gate.retained.inbound.size == 400


def test_what_is_retained_is_dropped_on_a_connection_that_says_no_more() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        t >> After(6) << "query"
        assert t.gate.retained.inbound.size == 0


def test_rest_of_a_merged_packet_is_retained_when_its_beginning_is_confirmed() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(600, 40000) << "client [.] 0 ack 600 wnd 9850 ts 2000010/1010"
        t >> Copy(client(0, 1000))
        t >> Missing(1, client_seq(600), client_seq(1000)) << Data(1, client_seq(600), client_bytes(600, 400))


def test_backup_that_gave_up_ends_the_protection() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Unprotected(1, "the replica reset the connection")
        t << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010" << "log warning: connection unprotected"
        t << UnprotectedSeen(1)
        t >> Unprotected(1, "the replica reset the connection") << UnprotectedSeen(1)
        assert t.gate.reason == "the replica reset the connection"


def test_reset_by_the_server_closes_at_the_backup_until_it_answers() -> None:
    close = Close(1, "reset by the server")
    with Gated() as t:
        t >> replica_end(0, EndKind.RST) << asked(0, EndKind.OPEN)
        t >> server(0, ack=0, flags="R.", wnd=0) << "pass [R.] 0 ack 0 wnd 10000" << close
        assert FLOW not in t.side.flows
        t >> After(0.004) << close
        t >> After(0.007) << close
        t >> Closed(1)
        t >> After(0.1)
        assert t.side.poll_timeout() is None


def test_telling_ends_some_time_even_without_an_answer() -> None:
    with Gated() as t:
        t >> replica_end(0, EndKind.RST) << asked(0, EndKind.OPEN)
        t >> server(0, ack=0, flags="R.", wnd=0) << "pass [R.] 0 ack 0 wnd 10000" << Close(1, "reset by the server")
        for _ in range(20):
            t >> After(10.0)
            t.effects.clear()
        assert t.side.poll_timeout() is None


def test_connection_that_our_tcp_has_forgotten_is_closed() -> None:
    with Gated() as t:
        t >> FlowsGone([FLOW])
        assert FLOW in t.side.flows  # too young: it may have been opened after the kernel was asked
        t.now += 2.0
        t >> FlowsGone([FLOW]) << Close(1, "closed")
        t >> Closed(1)
        t >> server(0, ack=5, wnd=1) << "pass"
        t >> After(0.05)


def test_connection_that_was_let_go_unready_is_closed_at_the_backup_too() -> None:
    with Gated() as t:
        t.gate.unprotect("replica not ready", t.out)
        t.drain()
        t.now += 2.0
        t >> FlowsGone([FLOW]) << Close(1, "closed")
        t >> Closed(1)


def test_unprotected_connection_is_none_of_the_backups_business() -> None:
    with Gated() as t:
        t.gate.unprotect("TCP-MD5 or TCP-AO signs the header", t.out)
        t.drain()
        t.now += 2.0
        t >> FlowsGone([FLOW])
        assert not t.side.flows


def test_window_that_the_scale_can_not_say_is_not_repeated() -> None:
    with Gated() as t:
        t >> confirmed(1000, 60000)
        t >> ack(1000, edge=40000) << "pass"
        # Our TCP would give two bytes more than a window field in units of four can say with this ACK number.
        t >> server(0, ack=1002, wnd=9750, ts=TS) << HELD
        for _ in range(20):
            t >> After(0.05) << Progress(1, client_seq(1002), True)


def ended(t: Gated) -> None:
    """The client's FIN at byte 100 is taken and ours is out, without acknowledging the client's."""
    t >> confirmed(100, 40000)
    t >> Copy(client(0, 100, flags="F."))
    t >> replica_end(0) << asked(0, EndKind.OPEN)
    t >> server(0, ack=101, wnd=9975, flags="F.", ts=TS) << "pass [F.] 0 ack 100 wnd 9975 ts 2000010/1010"
    t.now += 2.0


def test_repeated_fin_is_not_answered_by_a_reset_while_its_acknowledgement_is_held() -> None:
    with Gated() as t:
        ended(t)
        t >> FlowsGone([FLOW])
        t >> server(1, ack=101, flags="R.", wnd=0) << "drop rst-after-end"
        assert FLOW in t.side.flows
        t.effects.clear()
        t >> confirmed(101, 40000)
        assert "ack 101" in str(t.effects.popleft())
        t.effects.clear()


def test_last_acknowledgement_is_repeated_for_a_client_that_has_lost_it() -> None:
    with Gated() as t:
        ended(t)
        t.effects.clear()
        t >> confirmed(101, 40000)
        t.effects.clear()
        t >> FlowsGone([FLOW])
        t >> server(1, flags="R", wnd=0) << "drop rst-after-end"
        assert "ack 101" in str(t.effects.popleft())
        t.now += 2.1
        t >> FlowsGone([FLOW]) << Close(1, "closed")
        t >> Closed(1)


def test_reset_of_a_connection_that_has_not_ended_passes() -> None:
    with Gated() as t:
        t >> confirmed(100, 40000)
        t >> replica_end(0) << asked(0, EndKind.OPEN)
        t >> server(0, ack=100, flags="F.", wnd=9975, ts=TS) << "pass"
        t >> server(1, flags="R", wnd=0) << "pass" << Close(1, "reset by the server")
        t >> Closed(1)


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
        assert not t.side.flows
        t.side.clear()
        t >> server(0, 100, ack=5, wnd=1) << "drop stranger" << "kernel [R] 5 wnd 0"


def test_client_is_made_to_repeat_its_acknowledgement() -> None:
    """A keep-alive probe (RFC 9293 section 3.8.4): the last byte that it has acknowledged already, without the byte."""
    with Gated() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t >> AckAsked(1, server_seq(100)) << "client [.] 99 ack 0 wnd 10000 ts 2000010/1010"
        t >> AckAsked(1, server_seq(0)) << "client [.] -1 ack 0 wnd 10000 ts 2000010/1010"
        t >> AckAsked(1, server_seq(101))  # never sent
        t >> AckAsked(2, server_seq(100))  # of no connection
        t.side.stop_protecting("no backup")
        t.drain()
        t.effects.clear()
        t >> AckAsked(1, server_seq(100))
