"""The end of a connection, as the backup sees it."""

from __future__ import annotations

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.vanished import DEAD_ASK_S
from nfq_failover.wire.records import (
    Close,
    Closed,
    Data,
    EndAsked,
    EndKind,
    Opened,
    PaceAsked,
    Progress,
    Unprotected,
    UnprotectedSeen,
)
from nfq_failover.wire.segment import Segment
from tests.support.shadow import EDGE, SILENT, Shadowing, answer, from_client, replica
from tests.support.transcript import (
    FLOW,
    IRS,
    After,
    ShadowTranscript,
    client_bytes,
    client_seq,
    confirmed,
    opening,
    replica_end,
    server,
    server_seq,
)


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


def test_primary_that_waits_for_a_replica_which_the_client_has_reset_hears_of_it_before_long() -> None:
    """Its own TCP has not got the reset."""
    with Shadowing() as t:
        t >> After(0.1)
        t.effects.clear()
        t >> from_client(0, 0, flags="R", ack=None, ts=None)
        t.effects.clear()
        found: list[object] = []
        for _ in range(40):  # 4 s, and not the 5 s between two looks
            for each in (PaceAsked(1, 1), After(0.1)):
                t >> each
                asked = "query" in t.effects
                found += t.effects
                t.effects.clear()
            if asked:
                t >> FlowsGone([FLOW])
                found += t.effects
                t.effects.clear()
        assert Unprotected(1, "the replica has closed the connection") in found


def test_reset_that_does_not_fit_exactly_proves_nothing() -> None:
    with Shadowing() as t:  # RFC 5961 section 3.2: our TCP asks back
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> replica(ack=100) << SILENT
        t >> from_client(50, flags="R", ack=None, ts=None) << "pass [R] 50 wnd 500"
        assert not t.shadow.inward.reset_by_client


def test_reset_elsewhere_in_the_window_is_the_primarys_affair() -> None:
    with Shadowing() as t:  # its TCP asks back, and goes on; ours, which is behind, might take it at its word
        t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-elsewhere"
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> from_client(0, flags="R", ack=None, ts=None) << "drop rst-elsewhere"
        t >> replica(ack=100) << SILENT
        assert not t.shadow.inward.reset_by_client


def test_reset_that_answers_an_old_segment_waits_for_what_the_tap_has_lost() -> None:
    """A client that is gone answers what was sent before the server had its bytes; the primary's TCP ignores that."""
    for known in ("by an acknowledgement", "by another reset", "by the primary"):
        with Shadowing() as t:
            if known == "by an acknowledgement":
                t >> from_client(100, 0) << "pass [.] 100 ack 0 wnd 500 ts 1001/7000000"
            elif known == "by another reset":
                t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-elsewhere"
            else:
                t >> Progress(1, client_seq(100), True) << confirmed(0, EDGE)
            t >> from_client(0, flags="R", ack=None, ts=None) << "drop rst-elsewhere"
            t.side.repair.fill(t.shadow, Data(1, client_seq(0), client_bytes(0, 100), False), t.now)
            t.drain()
            t.effects.clear()
            assert t.shadow.inward.held == 100 and not t.shadow.inward.reset_by_client
            t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-held"
            t >> replica(ack=100) << SILENT << "kernel [R.] 100 ack 0 wnd 500 ts 1001/7000000"


def test_reset_that_waits_is_void_when_the_client_goes_on() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> from_client(100, flags="R", ack=None, ts=None) << "drop rst-held"
        t >> from_client(100, 10) << "pass [.] 100:110 ack 0 wnd 500 ts 1001/7000000" << confirmed(110, EDGE)
        t >> replica(ack=110) << SILENT
        assert not t.shadow.inward.reset_by_client


def test_replica_that_answers_late_to_a_connection_that_the_client_has_reset_has_not_failed() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, flags="R", ack=None, ts=None) << "pass [R] 0 wnd 500"
        t >> replica(0, flags="R.") << "drop replica-reset"


def test_replica_that_resets_loses_the_protection_and_says_so_until_heard() -> None:
    reason = "the replica reset the connection"
    with Shadowing() as t:
        t >> replica(0, flags="R.") << "drop replica-reset" << "log warning: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Unprotected(1, reason)
        t >> from_client(0, 10) << "drop connection-dead"
        t >> Progress(1, client_seq(10), True) << Unprotected(1, reason)
        t >> After(0.1) << Unprotected(1, reason)
        t >> UnprotectedSeen(1)
        t >> After(1.0)


def test_what_the_replica_has_answered_with_its_reset_is_confirmed_before_the_loss_is_told() -> None:
    with Shadowing() as t:
        event = t.event(from_client(0, 10))  # both packets are read in one go
        t.side.segments.inbound(event, Segment(event.packet), t.shadow, t.now)
        t.feed(replica(0, ack=10, flags="R."))
        t.drain()
        told = [effect for effect in t.effects if not isinstance(effect, str)]
        assert told == [confirmed(10, EDGE), Unprotected(1, "the replica reset the connection")]
        t.effects.clear()
        t >> UnprotectedSeen(1)
        t >> After(1.0)


def test_connection_without_a_replica_is_kept_for_its_reset_until_the_primary_knows_it_no_more() -> None:
    """A client that only listens would wait for ever, if the host that takes over knew nothing of it."""
    reason = "the replica reset the connection"
    with Shadowing() as t:
        t >> replica(0, flags="R.")
        t.effects.clear()
        t >> UnprotectedSeen(1)
        t.now += 5.0
        t >> FlowsGone([FLOW])
        assert t.shadow.inward.inbound.size == t.shadow.output.outbound.size == 0
        t >> After(DEAD_ASK_S + 0.1) << "query" << Unprotected(1, reason)
        t >> UnprotectedSeen(1)
        t >> from_client(0, 0, ack=0) << "drop connection-dead"
        t >> FlowsGone([FLOW])
        assert FLOW in t.side.flows
        t >> Close(1, "over") << Closed(1)
        t >> After(1.1)
        assert FLOW not in t.side.flows


def test_connection_that_lost_its_replica_long_ago_is_reset_at_the_takeover() -> None:
    with Shadowing() as t:
        t >> replica(0, flags="R.")
        t.effects.clear()
        t >> UnprotectedSeen(1)
        t.now += 5.0
        t >> FlowsGone([FLOW])
        t >> "takeover"
        assert str(t.effects.popleft()).startswith("client [R.] 0 ")
        t.effects.clear()
        t >> FlowsGone([FLOW])
        assert FLOW not in t.side.flows


def test_end_that_the_primary_has_to_judge_is_not_told_as_something_else() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000)  # our TCP has not taken it: a timer
        t.effects.clear()
        t >> EndAsked(1, server_seq(0), EndKind.RST)
        t.effects.clear()
        t >> replica(0, flags="R.")
        t.effects.clear()
        assert t.shadow.state is Shadow.DEAD
        t >> After(1.0)
        t.now += 5.0
        t >> FlowsGone([FLOW])
        assert FLOW not in t.side.flows


def test_connection_whose_options_differ_is_reset_where_the_client_is() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer(wscale=None)
        t.effects.clear()
        t >> UnprotectedSeen(1)
        t >> from_client(0, 0, ack=5000) << "drop connection-dead"
        t >> "takeover"
        assert str(t.effects.popleft()).startswith("client [R.] 5000 ")
        t.effects.clear()


def test_socket_of_an_earlier_connection_is_reset_at_its_own_byte() -> None:
    with ShadowTranscript() as t:
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
    with ShadowTranscript() as t:
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
        t >> replica(0, ack=1, flags="F.") << SILENT << replica_end(0, taken=1)
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
        t >> FlowsGone([FLOW]) << "log warning: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"
        t << Unprotected(1, "the replica has closed the connection")
        t >> UnprotectedSeen(1)


def test_new_generation_starts_with_nothing_and_resets_the_replicas() -> None:
    with Shadowing() as t:
        t.side.clear("a new generation of connections begins")
        t.drain()
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "log info: shadow connections dropped"
        assert not t.side.flows and t.side.poll_timeout() is None
