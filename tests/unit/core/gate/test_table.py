"""How connections leave the gate's table, and what the backup is told of it."""

from __future__ import annotations

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.table import LAST_WORDS_S
from nfq_failover.wire.records import (
    AckAsked,
    Close,
    Closed,
    EndKind,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import HELD, TS, Gated, ack
from tests.support.transcript import (
    FLOW,
    After,
    Copy,
    asked,
    client,
    confirmed,
    replica_end,
    server,
    server_seq,
)


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


def gone_twice(t: Gated) -> None:
    """Our TCP is known to have forgotten the connection, and all that it had said was seen."""
    t.now += 2.0
    t >> FlowsGone([FLOW])
    t.now += 2 * LAST_WORDS_S
    t >> FlowsGone([FLOW])


def test_connection_that_our_tcp_has_forgotten_is_closed() -> None:
    with Gated() as t:
        t >> server(0, ack=0, wnd=1)
        t.effects.clear()
        t >> FlowsGone([FLOW])
        assert FLOW in t.side.flows  # its last words may still wait in the queue
        t >> After(0.25)
        t.effects.remove("query")  # so the kernel is asked again, soon
        t.effects.clear()
        t >> FlowsGone([FLOW]) << Close(1, "closed")
        t >> Closed(1)
        t >> server(0, ack=5, wnd=1) << "pass"
        t >> After(0.05)


def test_half_open_connection_of_which_our_tcp_has_nothing_yet_is_kept() -> None:
    """Our TCP answers SYNs with cookies."""
    with Gated() as t:
        t.gate.own.established = False
        for _ in range(4):
            t >> FlowsGone([FLOW]) >> After(0.2)
            t.effects.clear()
        assert FLOW in t.side.flows
        t.now += 1.0
        gone_twice(t)
        t << Close(1, "closed")
        t >> Closed(1)


def test_connection_that_was_let_go_unready_is_closed_at_the_backup_too() -> None:
    with Gated() as t:
        t.gate.unprotect("replica not ready", t.out)
        t.drain()
        gone_twice(t)
        t << Close(1, "closed")
        t >> Closed(1)


def test_unprotected_connection_is_none_of_the_backups_business() -> None:
    with Gated() as t:
        t.gate.unprotect("TCP-MD5 or TCP-AO signs the header", t.out)
        t.drain()
        gone_twice(t)
        assert not t.side.flows


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


def test_client_is_made_to_repeat_its_acknowledgement() -> None:
    """A keep-alive probe (RFC 9293 section 3.8.4): the last byte that it has acknowledged already, without the byte."""
    with Gated() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t >> AckAsked(1, server_seq(100)) << "client [.] 99 ack 0 wnd 10000 ts 2000010/1010"
        t >> AckAsked(1, server_seq(0)) << "client [.] -1 ack 0 wnd 10000 ts 2000010/1010"
        t >> AckAsked(1, server_seq(101))  # never sent
        t >> AckAsked(2, server_seq(100))  # of no connection
        t.side.stop_protecting("no backup", t.now)
        t.drain()
        t.effects.clear()
        t >> AckAsked(1, server_seq(100))
