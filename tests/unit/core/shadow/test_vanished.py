"""A replica whose TCP may give a connection up by itself: it is answered where we can, and asked for where we can't."""

from __future__ import annotations

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.vanished import GIVEN_UP
from nfq_failover.wire.records import Unprotected
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import FLOW, After

LOST, RESET = "log warning: connection lost its replica", "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"


def test_a_keep_alive_is_answered_and_no_reason_to_ask_the_kernel() -> None:
    with Shadowing() as t:
        t >> replica(0, 10) << SILENT
        t >> from_client(0, 0, ack=10) << "pass [.] 0 ack 10 wnd 500 ts 1001/7000000"
        for _ in range(3):
            t >> replica(9) << SILENT << "kernel [.] 0 ack 10 wnd 500 ts 1001/7000000"
            t >> After(1.2)


def test_a_probe_of_a_closed_window_is_answered_with_what_the_client_has_said() -> None:
    """A client answers the primary's probes, whose pauses grow; our TCP may wait less long (tcp_retries2)."""
    with Shadowing() as t:
        t >> replica(0, 10) << SILENT
        t >> from_client(0, 0, ack=10, wnd=0) << "pass [.] 0 ack 10 wnd 0 ts 1001/7000000"
        for _ in range(2):
            t >> replica(9) << SILENT << "kernel [.] 0 ack 10 wnd 0 ts 1001/7000000"
            t >> After(1.1) << "query"
        assert t.side.out.counters["probe-answered"] == 2


def test_no_probe_is_answered_once_the_client_hears_us() -> None:
    with Shadowing() as t:
        t >> replica(0, 10) << SILENT
        t >> from_client(0, 0, ack=10) << "pass [.] 0 ack 10 wnd 500 ts 1001/7000000"
        t.side.take_over(t.now)
        t.effects.clear()
        (
            t
            >> replica(9)
            << "client [.] 10 ack 0 wnd 10000 ts 2001060/1001"
            << "pass [.] 9 ack 0 wnd 10000 ts 2001060/1001"
        )


def test_a_replica_that_repeats_itself_is_asked_for_every_second_until_it_goes_on() -> None:
    with Shadowing() as t:
        t >> replica(0, 10) << SILENT
        t >> After(0.1)
        t >> replica(0, 10) << SILENT
        t >> After(1.1) << "query"
        t >> After(1.0) << "query"
        t >> from_client(0, 0, ack=10) << "pass [.] 0 ack 10 wnd 500 ts 1001/7000000"
        t >> After(1.0)


def test_what_it_has_given_up_is_lost_within_a_second() -> None:
    with Shadowing() as t:
        t >> After(1.2)
        t >> replica(0, 10) << SILENT
        t >> replica(0, 10) << SILENT
        t >> After(1.1) << "query"
        t.side.flows_gone([FLOW], t.now)
        assert t.shadow.state is Shadow.DEAD and t.shadow.reason == GIVEN_UP
        t >> After(0.0) << LOST << RESET << Unprotected(1, GIVEN_UP)
