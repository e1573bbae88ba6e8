"""The takeover of a connection: what the client gets at once, and what it sees from then on."""

from __future__ import annotations

from typing import Any

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.records import Close, Closed, Data, Opened, Progress, Record, Unprotected
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import SynOptions
from tests.support.shadow import EDGE, SILENT, Shadowing, answer, from_client, replica
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    ISS_OWN,
    SEEN_TS,
    After,
    ShadowTranscript,
    client_seq,
    confirmed,
    granted,
    opening,
    replica_end,
    server,
)

SLACK = 1000
AT = SEEN_TS + SLACK  # the primary's clock at the replica's SYN-ACK, as the client is shown it after the takeover
WND = EDGE // 4  # the replica's window in the primary's scale (2 instead of 3)


def shown(offset: int, count: int, ack: int, ms: int, *, flags: str = ".", tsecr: int = 1001, edge: int = EDGE) -> str:
    """A segment that the client gets from us, `ms` after the replica's SYN-ACK."""
    span = f"{offset}:{offset + count}" if count else f"{offset}"
    return f"client [{flags}] {span} ack {ack} wnd {(edge - ack) // 4} ts {AT + ms}/{tsecr}"


def test_with_nothing_due_the_client_gets_a_pure_ack() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        assert t.shadow.state is Shadow.ACTIVE


def test_what_the_client_has_not_acknowledged_is_sent_at_once() -> None:
    with Shadowing() as t:
        t >> replica(0, 1000) << SILENT
        t >> replica(1000, 2000) << SILENT
        t >> from_client(0, 0, ack=500) << "pass [.] 0 ack 500 wnd 500 ts 1001/7000000"
        t >> "takeover"
        t << shown(500, 1448, 0, 60) << shown(1948, 1052, 0, 60, flags="P.")


def test_first_burst_is_ten_segments_and_then_the_ack_clock() -> None:
    with Shadowing() as t:
        t >> replica(0, 40000) << SILENT
        t >> "takeover"
        for i in range(10):
            t << shown(1448 * i, 1448, 0, 60)
        t >> from_client(0, 0, ack=2896) << "pass [.] 0 ack 2896 wnd 500 ts 1001/7000000"
        for i in range(10, 14):  # two segments acknowledged, four sent
            t << shown(1448 * i, 1448, 0, 60)


def test_burst_stays_within_the_clients_window() -> None:
    with Shadowing() as t:
        t >> replica(0, 5000) << SILENT
        t >> from_client(0, 0, ack=0, wnd=16) << "pass [.] 0 ack 0 wnd 16 ts 1001/7000000"
        t >> "takeover" << shown(0, 1448, 0, 60) << shown(1448, 600, 0, 60)


def test_new_output_does_not_overtake_what_is_resent() -> None:
    with Shadowing() as t:
        t >> replica(0, 16000) << SILENT
        t >> "takeover"
        for i in range(10):
            t << shown(1448 * i, 1448, 0, 60)
        t >> replica(16000, 500) << "drop resend-pending"
        t >> from_client(0, 0, ack=14480) << "pass [.] 0 ack 14480 wnd 500 ts 1001/7000000"
        t << shown(14480, 1448, 0, 60) << shown(15928, 572, 0, 60, flags="P.")
        t >> replica(16500, 500) << f"pass [.] 16500:17000 ack 0 wnd {WND} ts {AT + 60}/1001"


def test_replicas_own_retransmission_passes() -> None:
    with Shadowing() as t:
        t >> replica(0, 20000) << SILENT
        t >> "takeover"
        t.effects.clear()
        t >> replica(0, 1448, ts=(7_000_300, 1001)) << f"pass [.] 0:1448 ack 0 wnd {WND} ts {AT + 300}/1001"
        t >> replica(19000, 1000) << "drop resend-pending"


def test_what_the_client_has_acknowledged_is_cut_off() -> None:
    with Shadowing() as t:
        t >> replica(0, 1448) << SILENT
        t >> "takeover" << shown(0, 1448, 0, 60, flags="P.")
        t >> from_client(0, 0, ack=700) << "pass [.] 0 ack 700 wnd 500 ts 1001/7000000"
        t >> replica(0, 1448) << "drop client-has-its-head" << shown(700, 748, 0, 60)


def test_acknowledgements_of_a_replica_that_is_behind_reach_the_client() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=900) << "pass [.] 0 ack 0 wnd 508 ts 1001/7000000"
        t >> "takeover" << shown(900, 0, 0, 60)
        # The replica has not produced what the client has got from the primary: its SEQ is below the client's window.
        t.shadow.inward.order.in_vain()  # nor is it waited for
        t >> from_client(0, 500, ack=900) << "pass [.] 0:500 ack 0 wnd 508 ts 1001/7000000"
        t >> replica(0, 0, ack=500) << f"pass [.] 900 ack 500 wnd {(EDGE - 500) // 4} ts {AT + 60}/1001"
        t >> replica(0, 300, ack=500) << "drop client-has-it" << "kernel [.] 500 ack 300 wnd 505 ts 1001/7000000"
        t >> from_client(500, 500, ack=900) << "pass [.] 500:1000 ack 300 wnd 505 ts 1001/7000000"
        t >> replica(300, 600, ack=1000) << "drop client-has-it" << shown(900, 0, 1000, 60)
        t << "kernel [.] 1000 ack 900 wnd 500 ts 1001/7000000"


def test_probe_of_the_replicas_tcp_stays_one() -> None:
    with Shadowing() as t:
        t >> replica(0, 900) << SILENT
        t >> from_client(0, 0, ack=900, wnd=0) << "pass [.] 0 ack 900 wnd 0 ts 1001/7000000"
        t >> "takeover" << shown(900, 0, 0, 60) << shown(899, 0, 0, 60)
        # One below what the client expects, so that it must answer; so does a keepalive.
        t >> replica(899, 0) << f"pass [.] 899 ack 0 wnd {WND} ts {AT + 60}/1001"


def test_acknowledgement_of_a_segment_that_may_not_go_yet_is_sent_alone() -> None:
    with Shadowing() as t:
        t >> replica(0, 20000) << SILENT
        t >> "takeover"
        t.effects.clear()
        t >> from_client(0, 500) << "pass [.] 0:500 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(20000, 100, ack=500) << "drop resend-pending" << shown(14480, 0, 500, 60)
        t >> replica(20100, 100, ack=500) << "drop resend-pending"


def test_zero_window_does_not_stop_the_resending_for_ever() -> None:
    with Shadowing() as t:
        t >> replica(0, 5000) << SILENT
        t >> from_client(0, 0, wnd=0) << "pass [.] 0 ack 0 wnd 0 ts 1001/7000000"
        t >> "takeover" << shown(0, 0, 0, 60) << shown(-1, 0, 0, 60)  # the second one is answered
        # The replica's TCP sends again; that must reach the client, since the client's own update may be lost.
        t >> replica(0, 1000, ts=(7_000_300, 1001)) << f"pass [.] 0:1000 ack 0 wnd {WND} ts {AT + 300}/1001"
        t >> from_client(0, 0, ack=1000, wnd=500) << "pass [.] 0 ack 1000 wnd 500 ts 1001/7000000"
        got = [str(t.effects.popleft()) for _ in range(3)]
        assert [text.split()[2] for text in got] == ["1000:2448", "2448:3896", "3896:5000"]


def test_fin_of_the_server_is_resent_with_the_data() -> None:
    with Shadowing() as t:
        t >> replica(0, 700, flags="F.") << SILENT << replica_end(700)
        t >> "takeover" << shown(0, 700, 0, 60, flags="FP.")
        t >> from_client(0, 0, ack=701) << "pass [.] 0 ack 701 wnd 500 ts 1001/7000000"


def test_fin_alone_is_resent() -> None:
    with Shadowing() as t:
        t >> replica(0, 700, flags="F.") << SILENT << replica_end(700)
        t >> from_client(0, 0, ack=700) << "pass [.] 0 ack 700 wnd 500 ts 1001/7000000"
        t >> "takeover" << shown(700, 0, 0, 60, flags="FP.")


def test_acknowledgement_never_falls_behind_what_was_confirmed() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> "takeover" << shown(0, 0, 1000, 60)
        # The replica's TCP has not taken them (it will get them from the log again): the client must not see that.
        t >> replica(0, 100, ack=0) << f"pass [.] 0:100 ack 1000 wnd {(EDGE - 1000) // 4} ts {AT + 60}/1001"
        t >> After(0.07) << "kernel [P.] 0:1000 ack 0 wnd 500 ts 1001/7000000"


def test_new_bytes_are_acknowledged_only_by_the_replicas_tcp() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000"
        assert t.shadow.inward.inbound.size == 0
        t >> replica(0, 0, ack=1000) << f"pass [.] 0 ack 1000 wnd {(EDGE - 1000) // 4} ts {AT + 60}/1001"


def test_right_edge_does_not_move_left() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1001) << "pass [.] 0:1001 ack 0 wnd 500 ts 1001/7000000" << confirmed(1001, EDGE)
        t >> "takeover" << f"client [.] 0 ack 1001 wnd 9750 ts {AT + 60}/1001"
        t >> replica(0, 0, ack=1001, edge=30000) << f"pass [.] 0 ack 1001 wnd 9750 ts {AT + 60}/1001"
        t >> replica(0, 0, ack=1001, edge=48001) << f"pass [.] 0 ack 1001 wnd 11750 ts {AT + 60}/1001"


def test_timestamps_never_fall() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)  # our estimate of its clock is ahead of what the replica's TCP says next
        t >> replica(0, 10, ts=(7_000_030, 1001)) << f"pass [.] 0:10 ack 0 wnd {WND} ts {AT + 60}/1001"
        t >> replica(10, 10, ts=(7_000_090, 1001)) << f"pass [.] 10:20 ack 0 wnd {WND} ts {AT + 90}/1001"


def test_echo_that_proves_the_estimate_low_raises_it() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1, ts=(1002, SEEN_TS + 400)) << "pass [.] 0:1 ack 0 wnd 500 ts 1002/7000010"
        t << confirmed(1, EDGE)
        t >> "takeover"
        t << f"client [.] 0 ack 1 wnd {WND} ts {SEEN_TS + 400 + SLACK}/1002"


def test_selective_acknowledgements_stay_in_the_clients_numbers() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> replica(0, 0, ack=0, sack=((2000, 3000),))
        t << f"pass [.] 0 ack 0 wnd {WND} sack 2000-3000 ts {AT + 60}/1001"


def test_syn_ack_is_repeated_with_the_primarys_numbers_and_scale() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> "takeover"  # the client has not been heard of: it may or may not have seen the SYN-ACK
        event = t.event(server(-1, 0, flags="S.", wnd=5000, options=granted(3, 7_000_500)))
        packet = event.packet
        t.side.segments.outbound(event, Segment(packet), t.side.flows[FLOW], t.now)
        t.drain()
        t << "pass [S.] -1 ack 0 wnd 5000"
        options = SynOptions.parse(Segment(packet).options())
        assert (options.wscale, options.tsval) == (2, AT + 500)
        t >> from_client(0, 0) << "pass [.] 0 ack 0 wnd 500 ts 1001/7000000"
        t >> from_client(0, 10) << "pass [.] 0:10 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(0, 5, ack=10) << f"pass [.] 0:5 ack 10 wnd 9996 ts {AT + 500}/1001"


@pytest.mark.parametrize("known", [Progress(1, client_seq(0), True), Data(1, client_seq(0), b"x", False)])
def test_syn_ack_that_the_client_has_is_not_sent_again(known: Record) -> None:
    """It waited in our queue, or our TCP has missed the client's answer: it gets that, and the client hears nothing."""
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> known
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        t >> answer()
        told = [str(effect) for effect in t.effects]
        t.effects.clear()
        assert told[0] == "drop syn-ack-late" and told[1].startswith("kernel [.] ") and len(told) == 2


def test_connection_that_no_client_has_seen_is_native() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> "takeover" << "client [R] 0 wnd 0"
        t.effects.clear()
        assert not t.side.flows


def test_dead_connection_is_reset_at_the_takeover() -> None:
    with Shadowing() as t:
        t >> Unprotected(1, "protection had ended")
        t.effects.clear()
        t >> from_client(0, 10) << "drop connection-dead"
        t >> "takeover" << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"
        t >> from_client(0, 10) << "drop connection-dead" << "client [R.] 0 ack 10 wnd 0"
        t >> from_client(0, 0, flags="R.") << "drop connection-dead"


def test_connection_that_the_primary_had_closed_is_not_continued() -> None:
    with Shadowing() as t:
        t >> Close(1, "reset by the server") << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Closed(1)
        t >> "takeover"
        assert not t.side.flows


def test_connection_that_has_ended_does_not_answer_for_a_later_one_from_the_same_port() -> None:
    """The primary had that one without a replica. Its numbers may be near enough to be believed."""
    with Shadowing() as t:
        t >> from_client(0, 0, flags="F.") << "pass [F.] 0 ack 0 wnd 500 ts 1001/7000000" << confirmed(1, EDGE)
        t >> replica(0, ack=1, flags="F.") << SILENT << replica_end(0, taken=1)
        t >> from_client(1, 0, ack=1) << "pass [.] 1 ack 1 wnd 500 ts 1001/7000000"
        t >> "takeover"
        t >> from_client(20000, 1000, ack=22 << 20) << "drop ack-of-unsent" << f"client [R.] {22 << 20} ack 1 wnd 0"
        # Right behind the end of the earlier one, in either direction.
        t >> from_client(2, 10, ack=1) << "drop beyond-the-end" << "client [R.] 1 ack 1 wnd 0"


def test_connection_that_has_ended_is_left_in_peace() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, flags="F.") << "pass [F.] 0 ack 0 wnd 500 ts 1001/7000000" << confirmed(1, EDGE)
        t >> replica(0, ack=1, flags="F.") << SILENT << replica_end(0, taken=1)
        t >> from_client(1, 0, ack=1) << "pass [.] 1 ack 1 wnd 500 ts 1001/7000000"
        t >> "takeover"
        # The client has not heard that its FIN was taken. Our TCP may be rid of the connection: it is not asked.
        t >> from_client(0, 0, ack=1, flags="F.") << "drop ended"
        t << f"client [.] 1 ack 1 wnd {(EDGE - 1) // 4 + 1} ts {AT + 60}/1001"
        t >> from_client(1, 0, ack=1) << "drop ended"
        t >> replica(1, ack=1, flags="R.") << "drop ended"
        t.now += 30
        t >> FlowsGone([FLOW])
        assert t.side.flows
        t.now += 61
        t >> FlowsGone([FLOW])
        assert not t.side.flows


def hole(t: Any, times: int, at: int = 5000) -> None:
    """The client repeats a segment beyond what we hold."""
    for _ in range(times):
        t >> from_client(at, 100)
        t << f"pass [.] {at}:{at + 100} ack 0 wnd 500 ts 1001/7000000"
        t.now += 1.0


def test_hole_that_can_never_be_filled_resets_the_connection_loudly() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        hole(t, 3)
        t >> from_client(5000, 100) << "pass [.] 5000:5100 ack 0 wnd 500 ts 1001/7000000"
        t << "log error: connection lost its replica" << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"
        t << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"


def test_hole_is_found_at_the_third_sight_of_a_client_that_backs_off() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        hole(t, 2)
        t.now += 4.0
        t >> from_client(5000, 100) << "pass [.] 5000:5100 ack 0 wnd 500 ts 1001/7000000"
        t << "log error: connection lost its replica" << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"
        t << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"


def test_hole_that_the_client_fills_is_none() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        hole(t, 3)
        t >> from_client(0, 5000) << "pass [.] 0:5000 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(0, 0, ack=5100) << f"pass [.] 0 ack 5100 wnd {(EDGE - 5100) // 4} ts {AT + 60}/1001"
        hole(t, 5, at=5100)
        assert t.shadow.state is Shadow.ACTIVE


def test_port_reuse_after_the_takeover_is_native() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        assert t.shadow.taken_over  # so the SYN is the gate's
        event = t.event(server(-1, 0, flags="S.", irs=(IRS + 70000) % 2**32, iss=5))
        assert not t.side.segments.outbound(event, Segment(event.packet), t.shadow, t.now)
        t._open_ids.clear()
        assert not t.side.flows


def test_replicas_reset_reaches_the_client_in_the_primarys_numbers() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> replica(0, flags="R.", edge=0) << f"pass [R.] 0 ack 0 wnd {WND} ts {AT + 60}/1001"
        t >> server(0, ack=None, flags="R") << "pass [R] 0 wnd 1000"


def test_connection_is_forgotten_when_our_tcp_has_forgotten_it() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t.now += 3
        t >> FlowsGone([FLOW])
        assert not t.side.flows


def test_numbers_of_both_sides_wrap() -> None:
    assert ISS + 1000 > 2**32 > IRS and ISS_OWN < 2**31
    with Shadowing() as t:
        t >> replica(0, 1400) << SILENT
        t >> "takeover" << shown(0, 1400, 0, 60, flags="P.")
        t >> from_client(0, 900, ack=1400) << "pass [.] 0:900 ack 1400 wnd 500 ts 1001/7000000"
        t >> replica(1400, 10, ack=900) << f"pass [.] 1400:1410 ack 900 wnd {(EDGE - 900) // 4} ts {AT + 60}/1001"


def test_after_the_takeover_a_reset_in_the_window_is_for_our_tcp_to_judge() -> None:
    with Shadowing() as t:  # RFC 5961 section 3.2: it asks back
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> from_client(100, flags="R", ack=None, ts=None) << "pass [R] 100 wnd 500"
        assert (t.shadow.inward.rst_in, t.shadow.inward.reset_by_client) == (None, False)


def test_after_the_takeover_our_tcp_answers_what_can_not_be_of_the_connection() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> from_client(50_000_000, 10) << "pass [.] 50000000:50000010 ack 0 wnd 500 ts 1001/7000000"
        t >> from_client(0, 10, ack=100_000_000) << "pass [.] 0:10 ack 100000000 wnd 500 ts 1001/7000000"
        assert (t.shadow.output.snd_una, t.shadow.inward.own_una) == (0, 0)


def test_after_the_takeover_a_connection_that_has_ended_answers_for_no_later_one() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, flags="F.") << "pass [F.] 0 ack 0 wnd 500 ts 1001/7000000" << confirmed(1, EDGE)
        t >> replica(0, ack=1, flags="F.")
        t.effects.clear()
        t >> from_client(1, 0, ack=1)
        assert t.shadow.ended
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        # The client has used the port again, for a connection that was not protected.
        t >> from_client(500_000_000, 10, ack=99) << "drop implausible" << "client [R.] 99 ack 1 wnd 0"
        t >> from_client(500_000_000, flags="R.", ack=99) << "drop implausible"


def test_after_the_takeover_a_client_may_know_more_than_the_replica_has_said() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        t >> from_client(0, 10, ack=1000) << "pass [.] 0:10 ack 0 wnd 508 ts 1001/7000000"
        assert t.shadow.output.snd_una == 1000


def test_connection_whose_handshake_is_not_complete_has_no_bytes_of_the_other_server() -> None:
    """A restart of the daemon cuts connections of which only its memory has bytes: this is none of them."""
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer()
        (connection,) = t.side.flows.values()
        assert connection.output.snd_una == -1
        assert not connection.output.foreign
        t.effects.clear()


def test_what_clients_bring_after_the_takeover_is_counted() -> None:
    with Shadowing() as t:

        def takes(start: int, length: int) -> tuple[int, int]:
            for given in (from_client(start, length), replica(ack=start + length)):
                t >> given
                t.effects.clear()
            return t.side.takeover.brought()

        assert takes(0, 100) == (0, 0), "before the takeover"
        t >> "takeover"
        t.effects.clear()
        assert t.side.takeover.brought() == (0, 0)
        assert takes(100, 50) == t.side.takeover.brought() == (1, 50)
        assert takes(150, 1) == (1, 50), "it may be a FIN"
        assert takes(151, 7) == (2, 57), "more of one that has been counted before"
        t.side.forget(t.shadow)
        assert t.side.takeover.brought() == (2, 57)
