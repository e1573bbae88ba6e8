"""The backup in the primary's shadow: opening, logging, translating, and keeping its own TCP content."""

from __future__ import annotations

from typing import Any

import pytest
from core_transcript import (
    FLOW,
    IRS,
    ISS,
    OFFER,
    OWN_TS,
    SEEN_TS,
    After,
    BackupTranscript,
    Sent,
    client,
    client_bytes,
    client_seq,
    confirmed,
    granted,
    opening,
    server,
)

from nfq_failover.core.backup_connection import Shadow
from nfq_failover.core.events import FlowsGone
from nfq_failover.wire.records import Close, Closed, Data, Missing, Opened, Progress, Unprotected, UnprotectedSeen

SILENT = "drop replica-silent"
EDGE = 40000


def answer(wnd: int = 5000, wscale: int | None = 3, ts: int | None = OWN_TS, sack: bool = True, **more: Any) -> Sent:
    """The replica's SYN-ACK."""
    return server(-1, ack=0, flags="S.", wnd=wnd, options=granted(wscale, ts, sack), **more)


def replica(start: int = 0, length: int = 0, ack: int = 0, edge: int = EDGE, **more: Any) -> Sent:
    """A segment of the replica's TCP, 60 ms after its SYN-ACK."""
    ts = more.pop("ts", (OWN_TS + 60, 1001))
    return server(start, length, ack, (edge - ack) // 8, ts=ts, **more)


def from_client(start: int = 0, length: int = 0, ack: int | None = 0, **more: Any) -> Sent:
    """A segment of the client, which echoes the primary's SYN-ACK."""
    ts = more.pop("ts", (1001, SEEN_TS))
    wnd = more.pop("wnd", 500)
    return client(start, length, ack, wnd, ts=ts, **more)


class Shadowing(BackupTranscript):
    """A connection 60 ms after its handshake: the replica takes bytes up to 40000."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self >> opening() << "kernel [S] -1 wnd 64240"
        self >> answer() << SILENT << Opened(1, True, client_seq(5000))
        self >> from_client() << f"pass [.] 0 ack 0 wnd 500 ts 1001/{OWN_TS}" << confirmed(0, 5000)
        self.now += 0.0105
        self >> replica(ts=(OWN_TS + 10, 1001)) << SILENT << confirmed(0, EDGE)
        self >> After(0.0505) << "query"
        self.shadow = self.side.flows[FLOW]


# ---------------------------------------------------------------------------------------------- opening


def test_syn_is_delivered_without_what_the_primary_did_not_grant() -> None:
    with BackupTranscript() as t:
        t >> opening(wscale=None, sack_permitted=False, tsval=None)
        t.effects.clear()
    with BackupTranscript() as t:
        t.side.on_open(opening(wscale=None, sack_permitted=False, tsval=None), 1.0)
        packet = bytes(t.out.effects.popleft().packet)  # type: ignore[union-attr,arg-type]
        assert packet[40:] == OFFER[:4] + b"\x01" * (len(OFFER) - 4)


def test_syn_is_repeated_until_the_replica_answers() -> None:
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> After(0.021) << "kernel [S] -1 wnd 64240" << "query"
        t >> After(0.041) << "kernel [S] -1 wnd 64240"
        t >> server(-1, ack=0, flags="R.") << SILENT << Opened(1, False, 0, "")  # no listener yet
        t >> After(0.081) << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> After(0.2)


def test_opening_that_is_repeated_is_answered_again() -> None:
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> opening()
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> opening() << Opened(1, True, client_seq(5000))


@pytest.mark.parametrize("grant", [{"wscale": None}, {"ts": None}, {"sack": False}], ids=str)
def test_replica_that_grants_other_options_cannot_continue(grant: dict[str, Any]) -> None:
    reason = "the hosts grant different TCP options"
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer(**grant) << SILENT
        t << "log error: connection lost its replica" << Unprotected(1, reason)
        t >> opening() << Opened(1, False, 0, reason)
        t >> UnprotectedSeen(1)


def test_clients_syn_reaches_no_one() -> None:
    with Shadowing() as t:
        t >> client(-1, ack=None, flags="S", options=OFFER) << "drop syn-of-shadow"


def test_acks_before_the_replica_has_answered_wait_and_are_told_later() -> None:
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(0, 100) << "drop replica-opening"
        t >> answer() << SILENT << "kernel [.] 0 ack 0 wnd 501 ts 1000/7000000" << Opened(1, True, client_seq(5000))
        t << confirmed(100, 5000)
        t >> After(0.07) << "kernel [P.] 0:100 ack 0 wnd 501 ts 1000/7000000" << "query"


def test_handshake_that_the_tap_lost_is_completed_by_the_primary() -> None:
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> Progress(1, client_seq(0), False) << confirmed(0, 5000, established=False)
        t >> Progress(1, client_seq(0), True) << "kernel [.] 0 ack 0 wnd 501 ts 1000/7000000" << confirmed(0, 5000)


def test_replica_that_missed_the_ack_gets_it_again_when_it_repeats_its_syn_ack() -> None:
    with Shadowing() as t:
        t >> answer() << SILENT << "kernel [.] 0 ack 0 wnd 500 ts 1001/7000000"


def test_full_table_is_refused_with_the_reason() -> None:
    with BackupTranscript(max_connections=0) as t:
        t >> opening() << Opened(1, False, 0, "the backup's table is full")


def test_port_reuse_resets_the_old_connection_and_opens_the_new_one() -> None:
    with Shadowing() as t:
        t >> opening(2, irs=IRS + 300, iss=ISS + 300)
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "kernel [S] 299 wnd 64240"
        assert list(t.side.numbers) == [2]


def test_opening_that_was_overtaken_by_a_later_one_is_ignored() -> None:
    with Shadowing() as t:
        t >> opening(2, irs=IRS + 300, iss=ISS + 300)
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "kernel [S] 299 wnd 64240"
        t >> opening(1)
        assert list(t.side.numbers) == [2]


# ---------------------------------------------------------------------------------------------- the log


def test_data_is_logged_translated_delivered_and_confirmed_at_once() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        assert t.shadow.journal.read(0, 2000) == client_bytes(0, 1000)
        t >> replica(ack=1000) << SILENT
        assert t.shadow.journal.size == 0


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
        t >> After(0.061)
        t.now += 0.006
        t >> replica(ack=EDGE, edge=EDGE + 8000) << SILENT
        t << f"kernel [P.] {EDGE}:{EDGE + 1000} ack 0 wnd 500 ts 1001/7000000" << confirmed(EDGE + 1000, EDGE + 8000)


# ---------------------------------------------------------------------------------------------- translation


def test_replicas_output_is_kept_and_goes_nowhere() -> None:
    with Shadowing() as t:
        t >> replica(0, 1000) << SILENT
        assert t.shadow.output.size == 1000
        t >> from_client(0, 0, ack=600) << "pass [.] 0 ack 600 wnd 500 ts 1001/7000000"
        assert t.shadow.output.size == 400


def test_ack_beyond_what_the_replica_has_produced_is_clamped_and_told_when_it_has() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=900) << "drop ack-clamped"
        t >> from_client(0, 10, ack=900) << "pass [.] 0:10 ack 0 wnd 500 ts 1001/7000000" << confirmed(10, EDGE)
        t >> replica(0, 600, ack=10) << SILENT << "kernel [.] 10 ack 600 wnd 500 ts 1001/7000000"
        t >> replica(600, 600, ack=10) << SILENT << "kernel [.] 10 ack 900 wnd 500 ts 1001/7000000"
        t >> from_client(10, 0, ack=1200) << "pass [.] 10 ack 1200 wnd 500 ts 1001/7000000"
        assert t.shadow.output.size == 0


def test_retransmission_of_what_the_client_has_is_acknowledged_locally() -> None:
    with Shadowing() as t:
        t >> replica(0, 600) << SILENT
        t >> from_client(0, 0, ack=600) << "pass [.] 0 ack 600 wnd 500 ts 1001/7000000"
        t >> replica(0, 600) << SILENT << "kernel [.] 0 ack 600 wnd 500 ts 1001/7000000"


def test_window_update_passes_even_if_its_ack_is_clamped() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=900, wnd=0) << "pass [.] 0 ack 0 wnd 0 ts 1001/7000000"
        t >> from_client(0, 0, ack=900, wnd=700) << "pass [.] 0 ack 0 wnd 700 ts 1001/7000000"


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


def test_packet_that_is_not_whole_cannot_be_translated() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, ack=0, wnd=501, complete=False) << "drop incomplete-packet"


# ---------------------------------------------------------------------------------------------- the end


def test_clients_reset_is_delivered_in_the_replicas_numbers() -> None:
    with Shadowing() as t:
        t >> replica(0, 100) << SILENT
        t >> from_client(0, 0, ack=100, flags="R.") << "pass [R.] 0 ack 100 wnd 500 ts 1001/7000000"


def test_clients_reset_waits_until_the_replica_has_taken_what_came_before() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-held"
        t >> replica(ack=100) << SILENT << "kernel [R.] 100 ack 0 wnd 500 ts 1001/7000000"


def test_connection_that_the_client_has_reset_is_not_lost_but_over() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-held"
        t >> replica(ack=100) << SILENT << "kernel [R.] 100 ack 0 wnd 500 ts 1001/7000000"
        t.now += 3
        t >> FlowsGone([FLOW])
        t >> "takeover"
        assert not t.side.flows


def test_reset_that_does_not_fit_exactly_proves_nothing() -> None:
    with Shadowing() as t:  # RFC 5961 section 3.2: our TCP asks back
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> replica(ack=100) << SILENT
        t >> from_client(50, flags="R", ack=None, ts=None) << "pass [R] 50 wnd 500"
        assert not t.shadow.reset_by_client


def test_replica_that_resets_loses_the_protection_and_says_so_until_heard() -> None:
    reason = "the replica reset the connection"
    with Shadowing() as t:
        t >> replica(0, flags="R.") << "drop replica-reset" << "log error: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Unprotected(1, reason)
        t >> from_client(0, 10) << "drop connection-dead"
        t >> Progress(1, client_seq(10), True) << Unprotected(1, reason)
        t >> After(0.1) << Unprotected(1, reason)
        t >> UnprotectedSeen(1)
        t >> After(1.0)


def test_socket_of_an_earlier_connection_is_reset_at_its_own_byte() -> None:
    with BackupTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        # Not a SYN-ACK: the replica's TCP still has an older connection from this port, and challenges the SYN.
        t >> server(0, ack=5000, irs=IRS + 100) << SILENT << "kernel [R] 5100 wnd 0"
        t >> After(0.021) << "kernel [S] -1 wnd 64240" << "query"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))


def test_replica_of_a_dead_connection_is_reset_when_it_speaks() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000" << confirmed(1000, EDGE)
        t >> Unprotected(1, "let go") << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << UnprotectedSeen(1)
        t >> replica(ack=1000) << SILENT << "kernel [R] 1000 wnd 0"  # the first one came before its delayed ACK


def test_connection_that_the_primary_let_go_is_not_continued_and_its_replica_is_told() -> None:
    with Shadowing() as t:
        t >> Unprotected(1, "bytes that the backup misses were not retained")
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << UnprotectedSeen(1)
        assert (t.shadow.state, t.shadow.reason) == (Shadow.DEAD, "bytes that the backup misses were not retained")
        t >> Unprotected(1, "again") << UnprotectedSeen(1)


def test_unknown_connection_is_called_unprotected() -> None:
    with BackupTranscript() as t:
        t >> Progress(9, 5, True) << Unprotected(9, "unknown to the backup")
        t >> Close(9, "closed") << Closed(9)
        t >> Unprotected(9, "whatever") << UnprotectedSeen(9)
        t >> Data(9, 5, b"x")


def test_close_resets_a_replica_that_still_runs_and_forgets_it() -> None:
    with Shadowing() as t:
        t >> Close(1, "reset by the server") << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Closed(1)
        t >> Close(1, "reset by the server") << Closed(1)
        t >> replica(0, flags="R.") << "drop replica-reset"
        t.effects.clear()
        t >> After(1.1)
        assert not t.side.flows and not t.side.numbers


def test_connection_that_ended_by_itself_is_not_reset_by_the_close() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, flags="F.") << "pass [F.] 0 ack 0 wnd 500 ts 1001/7000000" << confirmed(1, EDGE)
        t >> replica(0, ack=1, flags="F.") << SILENT
        t >> from_client(1, 0, ack=1) << "pass [.] 1 ack 1 wnd 500 ts 1001/7000000"
        assert t.shadow.ended
        t >> Close(1, "closed") << Closed(1)
        t >> FlowsGone([FLOW])
        t.now += 3
        t >> FlowsGone([FLOW])
        assert not t.side.flows


def test_replica_whose_socket_is_gone_loses_the_protection() -> None:
    with Shadowing() as t:
        t.now += 3
        t >> FlowsGone([FLOW]) << "log error: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"
        t << Unprotected(1, "the replica has closed the connection")
        t >> UnprotectedSeen(1)


def test_new_generation_starts_with_nothing_and_resets_the_replicas() -> None:
    with Shadowing() as t:
        t.side.clear("a new generation of connections begins")
        t.drain()
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "log info: shadow connections dropped"
        assert not t.side.flows and t.side.poll_timeout() is None
