"""The backup in the primary's shadow: logging, translating, and keeping its own TCP content."""

from __future__ import annotations

from nfq_failover.core.shadow.repair import REQUEST_BYTES
from nfq_failover.core.tcp.claims import TWO_VERSIONS
from nfq_failover.wire.records import AckAsked, Data, Missing, Progress, SentAsked, SentUpTo, Unprotected
from tests.support.shadow import EDGE, SILENT, Shadowing, from_client, replica
from tests.support.transcript import (
    IRS,
    ISS,
    SEEN_TS,
    After,
    client_bytes,
    client_seq,
    confirmed,
    server_seq,
)


def quietly(t: Shadowing, *given: object) -> None:
    """What comes of it is not the point."""
    for event in given:
        t >> event
        t.effects.clear()


def test_data_is_logged_translated_delivered_and_confirmed_at_once() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        assert t.shadow.inward.inbound.read(0, 2000) == client_bytes(0, 1000)
        t >> replica(ack=1000) << SILENT
        assert t.shadow.inward.inbound.size == 0


def test_corrupted_segment_is_neither_logged_nor_confirmed() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000, corrupt=True) << "drop bad-checksum"
        t >> from_client(0, 1000, corrupt=False, pending=True)
        t << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)


def test_hole_is_confirmed_as_such_asked_for_and_filled() -> None:
    with Shadowing() as t:
        t >> from_client(1000, 500) << "pass [.] 1000:1500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (1000, 1500))
        t >> After(0.003) << Missing(1, client_seq(0), client_seq(1000))
        t >> After(0.005) << Missing(1, client_seq(0), client_seq(1000))
        t >> Data(1, client_seq(0), client_bytes(0, 600)) << "kernel [.] 0:600 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(600, EDGE, (1000, 1500))
        t >> Data(1, client_seq(600), client_bytes(600, 400)) << "kernel [.] 600:1000 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(1500, EDGE)
        t >> replica(ack=1500) << SILENT
        t >> After(0.1)


def test_hole_that_the_client_fills_is_not_asked_for() -> None:
    with Shadowing() as t:
        t >> from_client(1000, 500) << "pass [.] 1000:1500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (1000, 1500))
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1500, EDGE)
        t >> replica(ack=1500) << SILENT
        t >> After(0.003)


def test_lost_tail_shows_by_the_primarys_progress() -> None:
    with Shadowing() as t:
        t >> Progress(1, client_seq(700), True) << confirmed(0, EDGE)
        t >> After(0.003) << Missing(1, client_seq(0), client_seq(700))  # the tap may just be late
        t >> Data(1, client_seq(0), client_bytes(0, 700)) << "kernel [.] 0:700 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(700, EDGE)


def test_answer_that_is_on_its_way_is_not_asked_for_again() -> None:
    with Shadowing() as t:
        t >> Progress(1, client_seq(3000), True) << confirmed(0, EDGE)
        t >> After(0.003) << Missing(1, client_seq(0), client_seq(3000))
        t >> Data(1, client_seq(0), client_bytes(0, 1000)) << "kernel [.] 0:1000 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(1000, EDGE)
        t >> After(0.003)  # the answer has taken its time, so the rest of it may, too
        t >> Data(1, client_seq(1000), client_bytes(1000, 1000))
        t << "kernel [.] 1000:2000 ack 0 wnd 500 ts 1001/7000000" << confirmed(2000, EDGE)
        t >> After(0.02) << Missing(1, client_seq(2000), client_seq(3000))
        t >> Data(1, client_seq(2000), client_bytes(2000, 1000))
        t << "kernel [.] 2000:3000 ack 0 wnd 500 ts 1001/7000000" << confirmed(3000, EDGE)
        t >> replica(ack=3000) << SILENT
        t >> After(0.3)


def test_one_request_is_for_no_more_than_one_answer_brings() -> None:
    with Shadowing() as t:
        t >> Progress(1, client_seq(100_000), True) << confirmed(0, EDGE)
        t >> After(0.003) << Missing(1, client_seq(0), client_seq(REQUEST_BYTES))
        for at in range(0, REQUEST_BYTES, 1000):
            quietly(t, Data(1, client_seq(at), client_bytes(at, 1000)))
        t >> After(0.0) << Missing(1, client_seq(REQUEST_BYTES), client_seq(2 * REQUEST_BYTES))


def test_tap_that_is_late_is_given_time() -> None:
    with Shadowing() as t:
        for at in range(0, 10_000, 1000):
            late = from_client(at, 1000), replica(ack=at + 1000)
            quietly(t, Progress(1, client_seq(at + 1000), True), After(0.02), *late)
        t >> Progress(1, client_seq(11_000), True) << confirmed(10_000, EDGE)
        t >> After(0.015)
        (
            t
            >> from_client(10_000, 1000)
            << "pass [.] 10000:11000 ack 0 wnd 500 ts 1001/7000000"
            << confirmed(11_000, EDGE)
        )
        t >> replica(ack=11_000) << SILENT
        t >> After(0.1)


def test_bytes_that_the_tap_has_lost_say_nothing_of_how_late_it_is() -> None:
    with Shadowing() as t:
        for at in range(0, 10_000, 1000):
            fetched = Data(1, client_seq(at), client_bytes(at, 1000)), replica(ack=at + 1000)
            quietly(t, Progress(1, client_seq(at + 1000), True), After(0.003), *fetched, After(1.0))
        assert t.side.repair.pace.patience_s < 0.003


def test_fin_counts_as_a_byte_and_is_fetched_when_lost() -> None:
    with Shadowing() as t:
        t >> from_client(0, 10) << "pass [.] 0:10 ack 0 wnd 500 ts 1001/7000000" << confirmed(10, EDGE)
        t >> replica(ack=10) << SILENT
        t >> Progress(1, client_seq(11), True) << confirmed(10, EDGE)
        t >> After(0.003) << Missing(1, client_seq(10), client_seq(11))
        t >> Data(1, client_seq(10), b"", True) << "kernel [F.] 10 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(11, EDGE)
        t >> replica(ack=11) << SILENT
        t >> After(0.1)


def test_clients_fin_is_delivered_and_confirmed() -> None:
    with Shadowing() as t:
        t >> from_client(0, 10, flags="F.") << "pass [F.] 0:10 ack 0 wnd 500 ts 1001/7000000" << confirmed(11, EDGE)


def test_late_segments_of_an_earlier_connection_do_not_count() -> None:
    with Shadowing() as t:
        t >> from_client(0, 10, irs=IRS + 500_000_000) << "drop implausible"
        t >> from_client(0, 10, irs=IRS - 500_000_000, flags="F.") << "drop implausible"
        t >> from_client(0, 0, irs=IRS + 500_000_000, flags="R.") << "drop implausible"
        t >> from_client(0, 0, iss=(ISS + 2_000_000_000) % 2**32) << "drop ack-of-unsent" << SentAsked(1)
        t >> from_client(-1, 0) << "pass [.] -1 ack 0 wnd 500 ts 1001/7000000"  # a keepalive
        assert (t.shadow.inward.fin_in, t.shadow.inward.rst_in, t.shadow.output.snd_una) == (None, None, 0)


def test_end_that_lies_before_what_we_hold_is_a_contradiction() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> from_client(0, 10, flags="F.") << "log warning: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "drop contradiction" << Unprotected(1, TWO_VERSIONS)
        assert t.shadow.inward.fin_in is None


def test_full_log_confirms_no_more_than_it_holds() -> None:
    with Shadowing(max_log_bytes=1500) as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> from_client(1000, 1000) << "pass [.] 1000:2000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> replica(ack=2000) << SILENT << confirmed(2000, EDGE)  # its TCP has them: that counts as well


def test_hole_can_be_filled_although_what_lies_beyond_it_has_filled_the_log() -> None:
    with Shadowing(max_log_bytes=1500) as t:
        t >> from_client(500, 1000) << "pass [.] 500:1500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (500, 1500))
        t >> from_client(1500, 100) << "pass [.] 1500:1600 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (500, 1500))
        t >> Data(1, client_seq(0), client_bytes(0, 500)) << "kernel [.] 0:500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(1500, EDGE)


def test_bytes_that_the_replica_did_not_take_are_delivered_again() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> After(0.061) << "kernel [P.] 0:1000 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(ack=400) << SILENT
        t >> After(0.061) << "kernel [P.] 400:1000 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(ack=1000) << SILENT
        t >> After(2.0)


def test_redelivery_stays_within_the_replicas_window() -> None:
    with Shadowing() as t:
        for at in range(0, EDGE, 8000):
            t >> from_client(at, 8000)
            t.effects.clear()
        t >> from_client(EDGE, 1000)
        t.effects.clear()
        t >> replica(ack=EDGE - 8000) << SILENT
        t >> After(0.061) << f"kernel [P.] {EDGE - 8000}:{EDGE} ack 0 wnd 500 ts 1001/7000000"
        t >> replica(ack=EDGE, edge=EDGE) << SILENT
        t >> replica(ack=EDGE, edge=EDGE + 8000) << SILENT  # at once: it had taken everything before
        t << f"kernel [P.] {EDGE}:{EDGE + 1000} ack 0 wnd 500 ts 1001/7000000" << confirmed(EDGE + 1000, EDGE + 8000)


def test_replica_that_goes_on_gets_the_rest_as_fast_as_it_takes_it() -> None:
    """Not by the clock: what it has missed meanwhile may be much."""
    big = EDGE * 8
    with Shadowing() as t:
        for at in range(0, big, EDGE):
            t >> from_client(at, EDGE)
            t.effects.clear()
        t >> replica(ack=EDGE, edge=EDGE)
        t.effects.clear()
        t >> After(0.061)
        t.effects.clear()
        taken = EDGE
        for _ in range(200):
            edge = min(taken + 60_000, big)
            t >> replica(ack=taken, edge=edge)
            given = [str(each) for each in t.effects if str(each).startswith("kernel [P.]")]
            t.effects.clear()
            if taken == edge:
                break
            assert given, taken
            taken = max(int(each.split(":")[1].split()[0]) for each in given)
            assert taken <= edge
        assert taken == big
        t >> replica(ack=big, edge=big + 60_000)
        assert not any(str(each).startswith("kernel [P.]") for each in t.effects)
        t.effects.clear()


def test_part_that_its_tcp_takes_does_not_bring_the_rest_again() -> None:
    """It would get everything many times."""
    with Shadowing() as t:
        for at in range(0, EDGE, 8000):
            t >> from_client(at, 8000)
            t.effects.clear()
        t >> replica(ack=8000)
        t.effects.clear()
        t >> After(0.061)
        t.effects.clear()
        for upto in range(9000, EDGE, 1000):
            t >> replica(ack=upto) << SILENT
        t >> replica(ack=EDGE) << SILENT
        t >> After(2.0)


def test_replica_is_asked_for_its_window_once_that_has_been_closed_for_some_time() -> None:
    """What opens it is told once, and may be lost in our queue."""
    with Shadowing() as t:
        for at in range(0, EDGE + 8000, 8000):
            t >> from_client(at, 8000)
            t.effects.clear()
        t >> replica(ack=EDGE, edge=EDGE) << SILENT
        times = []
        for _ in range(100):
            t >> After(0.05)
            if t.effects and str(t.effects[0]).startswith(f"kernel [.] {EDGE - 1} ack 0"):
                times.append(t.now)
            t.effects.clear()
        assert 5 <= len(times) <= 10 and times[-1] - times[-2] > 0.9, times
        t >> replica(ack=EDGE, edge=EDGE + 8000) << SILENT
        t << f"kernel [P.] {EDGE}:{EDGE + 8000} ack 0 wnd 500 ts 1001/7000000" << confirmed(EDGE + 8000, EDGE + 8000)


def test_replicas_output_is_kept_and_goes_nowhere() -> None:
    with Shadowing() as t:
        t >> replica(0, 1000) << SILENT
        assert t.shadow.output.outbound.size == 1000
        t >> from_client(0, 0, ack=600) << "pass [.] 0 ack 600 wnd 500 ts 1001/7000000"
        assert t.shadow.output.outbound.size == 400


def test_ack_beyond_what_the_replica_has_produced_is_clamped_and_told_when_it_has() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=900) << "pass [.] 0 ack 0 wnd 508 ts 1001/7000000"  # the right edge is the same
        t >> from_client(0, 0, ack=900) << "drop ack-clamped"
        t >> replica(0, 600) << SILENT << "kernel [.] 0 ack 600 wnd 503 ts 1001/7000000"
        t >> replica(600, 600) << SILENT << "kernel [.] 0 ack 900 wnd 500 ts 1001/7000000"
        t >> from_client(0, 0, ack=1200) << "pass [.] 0 ack 1200 wnd 500 ts 1001/7000000"
        assert t.shadow.output.outbound.size == 0


def test_retransmission_of_what_the_client_has_is_acknowledged_locally() -> None:
    with Shadowing() as t:
        t >> replica(0, 600) << SILENT
        t >> from_client(0, 0, ack=600) << "pass [.] 0 ack 600 wnd 500 ts 1001/7000000"
        t >> replica(0, 600) << SILENT << "kernel [.] 0 ack 600 wnd 500 ts 1001/7000000"


def test_window_update_passes_even_if_its_ack_is_clamped() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=900, wnd=0) << "pass [.] 0 ack 0 wnd 8 ts 1001/7000000"
        t >> from_client(0, 0, ack=900, wnd=700) << "pass [.] 0 ack 0 wnd 708 ts 1001/7000000"


def test_a_closed_window_of_the_client_does_not_stop_a_replica_that_is_behind() -> None:
    with Shadowing() as t:
        t >> SentUpTo(1, server_seq(20_000_000))
        t >> from_client(0, 0, ack=100_000, wnd=0) << "pass [.] 0 ack 0 wnd 782 ts 1001/7000000"
        t >> replica(0, 1000) << SILENT << "kernel [.] 0 ack 1000 wnd 774 ts 1001/7000000"
        t >> from_client(0, 0, ack=10_000_000, wnd=0) << "pass [.] 0 ack 1000 wnd 65535 ts 1001/7000000"


def test_sack_edges_are_translated_and_cut_to_what_the_replica_has_produced() -> None:
    with Shadowing() as t:
        t >> replica(0, 1000) << SILENT
        t >> from_client(0, 0, ack=0, sack=((400, 600), (800, 1500), (2000, 2500)))
        t << "pass [.] 0 ack 0 wnd 500 sack 400-600, 800-1000 ts 1001/7000000"


def test_echoed_timestamp_is_clamped_to_what_the_replica_has_sent() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1, ts=(1002, SEEN_TS + 5)) << "pass [.] 0:1 ack 0 wnd 500 ts 1002/7000005"
        t << confirmed(1, EDGE)
        t >> from_client(0, 1, ts=(1002, SEEN_TS + 500)) << "pass [.] 0:1 ack 0 wnd 500 ts 1002/7000010"
        t << confirmed(1, EDGE)
        t >> from_client(0, 1, ts=(1002, SEEN_TS - 500)) << "pass [.] 0:1 ack 0 wnd 500 ts 1002/7000000"
        t << confirmed(1, EDGE)


def test_old_duplicate_of_the_client_does_not_turn_our_clock_back() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100, ts=(1500, SEEN_TS)) << "pass [.] 0:100 ack 0 wnd 500 ts 1500/7000000"
        t << confirmed(100, EDGE)
        t >> from_client(0, 100, ts=(1200, SEEN_TS)) << "pass [.] 0:100 ack 0 wnd 500 ts 1200/7000000"
        t << confirmed(100, EDGE)
        t >> After(0.061) << "kernel [P.] 0:100 ack 0 wnd 500 ts 1500/7000000"  # PAWS would refuse 1200


def test_window_of_the_replica_is_confirmed_in_time() -> None:
    with Shadowing() as t:
        t >> replica(ack=0, edge=EDGE + 8000) << SILENT
        t >> After(0.005) << confirmed(0, EDGE + 8000)
        t >> from_client(0, EDGE - 8000)
        t.effects.clear()
        t >> replica(ack=EDGE - 8000, edge=EDGE + 16000) << SILENT << confirmed(EDGE - 8000, EDGE + 16000)


def test_segment_of_a_stream_without_ack_flag_is_dropped() -> None:
    with Shadowing() as t:
        t >> from_client(0, 10, flags="P") << "drop no-ack-flag"


def test_acknowledgement_that_the_tap_has_lost_is_asked_for() -> None:
    """The client has no reason to repeat it, and our TCP would give up after some retransmissions."""
    with Shadowing() as t:
        t >> replica(0, 100) << SILENT
        t >> After(0.2)
        t >> replica(0, 100) << SILENT  # it may be the client's path that has lost it
        t >> After(0.4)
        t >> replica(0, 100) << SILENT << AckAsked(1, server_seq(0))
        t >> from_client(0, 0, ack=100) << "pass [.] 0 ack 100 wnd 500 ts 1001/7000000"
        t >> After(1.0)
        t >> replica(100, 100) << SILENT
        t >> replica(200, 100) << SILENT
        t >> from_client(0, 0, ack=200) << "pass [.] 0 ack 200 wnd 500 ts 1001/7000000"
        t >> After(1.0)
        t >> replica(200, 100) << SILENT  # the first time that it is the first
        t >> After(0.6)
        t >> replica(200, 100) << SILENT << AckAsked(1, server_seq(200))
