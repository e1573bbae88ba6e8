"""A client that can't go on hears of it: where it must believe it, and again until it can be taken to know."""

from __future__ import annotations

from itertools import pairwise

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.resets import WAITS_S, places
from nfq_failover.wire.records import Close, Closed, Opened, Served, Unprotected
from nfq_failover.wire.segment import Segment
from tests.support.shadow import SILENT, Shadowing, answer, from_client, replica
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    SEEN_TS,
    ShadowTranscript,
    client,
    client_seq,
    opening,
    server_seq,
)

OTHER = (FLOW[0], 41000, *FLOW[2:])


def quiet(t: ShadowTranscript, seconds: float = 0.0) -> list[str]:
    """Time passes; the resets that the client was sent."""
    for _ in range(round(seconds / 0.1)):
        t.now += 0.1
        t.side.on_timer(t.now)
    t.drain()
    found = [str(effect) for effect in t.effects if "client [R" in str(effect)]
    t.effects.clear()
    return found


def dead() -> Shadowing:
    """The replica is gone; the client has acknowledged 500 bytes, with a window of 64000."""
    t = Shadowing()
    t >> Unprotected(1, "the replica reset the connection")
    quiet(t)
    t >> from_client(0, 10, ack=500)
    quiet(t)
    return t


def test_places_are_within_what_a_client_can_expect() -> None:
    assert places(100, 100, 1100) == [100, 1099, 1100]
    assert places(100, 500, 1100) == [100, 500, 1099, 1100]
    assert places(100, 1100, 1100) == [100, 1100, 1099]  # the server has filled the window
    assert places(100, 90, 100) == [100]  # the window is closed
    assert places(2**32 - 10, 20, 100) == [2**32 - 10, 20, 99, 100]


def test_one_place_is_inside_of_the_window_and_one_is_where_a_client_is_that_has_filled_it() -> None:
    """The former is what the client has to answer; all of the others may lie before it."""
    with dead() as t:
        t.shadow.acceptance.primary_has_sent(700)
        t >> "takeover"
        assert quiet(t) == [f"client [R.] {at} ack 0 wnd 0" for at in (500, 700, 64499, 64500)]


def test_reset_is_repeated_ever_more_rarely_and_not_for_ever() -> None:
    with dead() as t:
        t >> "takeover"
        first = quiet(t)
        times = []
        for step in range(400):
            if quiet(t, 0.1):
                times.append(round(step * 0.1, 1))
        assert len(times) == len(WAITS_S)
        assert all(later - before >= 0.2 for before, later in pairwise(times))
        assert len(first) == 3 and t.side.resets.size == 0


def test_client_that_says_where_it_is_hears_it_there() -> None:
    with dead() as t:
        t >> "takeover"
        quiet(t)
        t >> from_client(0, 0, ack=1234)
        assert quiet(t) == ["client [R.] 1234 ack 0 wnd 0"]
        again = quiet(t, 0.3)  # what has told it may have been lost
        assert again == [f"client [R.] {at} ack 0 wnd 0" for at in (1234, 64499, 64500)]
        t >> from_client(0, 0, flags="R.")
        assert not quiet(t, 10.0)


def asked(t: ShadowTranscript, seconds: float) -> list[str]:
    """Time passes; what the client was sent that is no reset."""
    for _ in range(round(seconds / 0.1)):
        t.now += 0.1
        t.side.on_timer(t.now)
    t.drain()
    found = [str(effect) for effect in t.effects if "client [.]" in str(effect)]
    t.effects.clear()
    return found


def test_client_beyond_the_edge_that_is_known_is_made_to_say_where_it_is() -> None:
    """Our tap has not brought its last acknowledgements: every reset lies before what it expects, and it ignores them.
    The one question is for kernels that drop old timestamps in silence, the other for those that want timestamps."""
    with dead() as t:
        t >> "takeover"
        assert not asked(t, 0.1)
        question = ["client [.] 499 ack 0 wnd 65535", f"client [.] 499 ack 0 wnd 65535 ts {SEEN_TS}/1001"]
        assert asked(t, 0.2) == question
        assert asked(t, 20.0) == question * (len(WAITS_S) - 1)
        t.side.resets.tell(t.shadow, t.now)
        quiet(t)
        t >> from_client(0, 0, ack=1_000_000)
        assert quiet(t) == ["client [R.] 1000000 ack 0 wnd 0"]
        assert quiet(t, 0.3) == ["client [R.] 1000000 ack 0 wnd 0"]
        t >> from_client(0, 0, ack=None, flags="R")
        assert not quiet(t, 20.0) and not t.side.resets.size


def test_client_is_asked_before_what_it_has_acknowledged_whatever_the_newest_segment_of_it_says() -> None:
    with ShadowTranscript() as t:
        t >> served()
        heard(t, 300, at=70)
        heard(t, 200, at=60)
        t >> "takeover"
        assert asked(t, 0.3) == ["client [.] 299 ack 70 wnd 65535"]


def test_older_segment_that_is_late_does_not_hide_where_the_client_is() -> None:
    """A reset before its window it ignores: one must still be within."""
    with dead() as t:
        t >> from_client(0, 0, ack=2000)
        quiet(t)
        t >> "takeover"
        quiet(t)
        t >> from_client(0, 0, ack=700)
        assert quiet(t) == ["client [R.] 700 ack 0 wnd 0"]
        assert [line.split()[2] for line in quiet(t, 0.3)] == ["700", "2000", "65999", "66000"]


def test_new_connection_from_the_port_ends_it() -> None:
    with dead() as t:
        t >> "takeover"
        quiet(t)
        syn = Segment(client(-1, ack=None, flags="S", irs=IRS + 70000).packet(ISS))
        assert t.side.gives_way(t.shadow, syn)
        t.side.resets.forget(FLOW)
        assert not quiet(t, 10.0) and FLOW not in t.side.flows


def test_new_connection_waits_while_our_tcp_may_have_one_from_an_earlier_life() -> None:
    with dead() as t:
        t >> "takeover"
        quiet(t)
        t.shadow.restore(t.shadow.map, 0)
        assert not t.side.gives_way(t.shadow, Segment(client(-1, ack=None, flags="S", irs=IRS + 70000).packet(ISS)))
        quiet(t, 15.0)


def test_syn_of_the_connection_itself_ends_nothing() -> None:
    with dead() as t:
        t >> "takeover"
        quiet(t)
        assert not t.side.gives_way(t.shadow, Segment(client(-1, ack=None, flags="S").packet(ISS)))
        assert quiet(t, 1.0)


# ------------------------------------------------------------------------------------ connections without a replica


def served(seq: int = 100, ack: int = 50, conn: int = 5) -> Served:
    return Served(conn, FLOW, server_seq(seq), client_seq(ack), 7)


def heard(t: ShadowTranscript, ack: int, wnd: int = 500, at: int = 50) -> None:
    """The tap has brought a segment of the client."""
    t.side.strays.heard(FLOW, Segment(client(at, ack=ack, wnd=wnd).packet(ISS)))


def test_client_of_a_connection_without_a_replica_is_told() -> None:
    with ShadowTranscript() as t:
        t >> served() >> "takeover"
        assert quiet(t) == [f"client [R.] {at} ack 50 wnd 0" for at in (100, 4195, 16483, 65634)]
        assert len(quiet(t, 20.0)) == 4 * len(WAITS_S)


def test_tap_knows_better_where_it_is() -> None:
    with ShadowTranscript() as t:
        t >> served()
        heard(t, 300, at=70)
        heard(t, 200, at=60)  # an older one
        t >> served(250, 65) >> "takeover"
        assert quiet(t) == [f"client [R.] {at} ack 70 wnd 0" for at in (300, 64299, 64300)]


def test_primary_may_have_sent_more_than_the_client_has_acknowledged() -> None:
    with ShadowTranscript() as t:
        t >> served()
        heard(t, 100)
        t >> served(1000) >> "takeover"
        assert [line.split()[2] for line in quiet(t)] == ["100", "1000", "64099", "64100"]


def test_connection_that_has_ended_is_forgotten_and_stays_so() -> None:
    with ShadowTranscript() as t:
        t >> served() >> Close(5, "closed") << Closed(5)
        t >> served() >> "takeover"
        assert not quiet(t, 5.0)


def test_port_that_is_used_again_is_another_connection() -> None:
    with ShadowTranscript() as t:
        t >> served() >> served(2000, conn=6) >> Close(5, "closed") << Closed(5)
        t >> "takeover"
        assert quiet(t)[0] == "client [R.] 2000 ack 50 wnd 0"


def test_connection_from_the_port_of_one_that_has_ended_is_told_like_any_other() -> None:
    """The earlier one had a replica, and is remembered for a client that repeats its FIN."""
    with Shadowing() as t:
        t >> from_client(0, 0, flags="F.")
        t.effects.clear()
        t >> replica(0, ack=1, flags="F.")
        t.effects.clear()
        t >> from_client(1, 0, ack=1)
        t.effects.clear()
        assert t.shadow.ended
        t >> served(2000, conn=5) >> "takeover"
        assert quiet(t)[0] == "client [R.] 2000 ack 50 wnd 0"


def test_what_was_told_of_an_earlier_connection_does_no_harm_to_a_later_one() -> None:
    with Shadowing() as t:
        t.shadow.conn = 7
        t >> served(2000, conn=5) >> "takeover"
        assert not any("[R" in line for line in quiet(t)) and t.shadow.state is Shadow.ACTIVE


def test_table_has_a_limit() -> None:
    with ShadowTranscript(max_connections=2) as t:
        for conn in range(4):
            t >> Served(conn, (FLOW[0], 1000 + conn, *FLOW[2:]), 1, 1, 0)
        assert len(t.side.strays.flows) == 2
        assert t.out.counters["stray-not-kept"] == 2
        t.side.clear("a new generation")
        assert not t.side.strays.flows
        t.effects.clear()
        t.out.effects.clear()


def test_replica_that_was_not_ready_is_no_reason_for_silence() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(0, 30, ack=20) << "drop replica-opening"
        t >> served(100, 50, conn=1)
        t >> "takeover"
        assert quiet(t) == [f"client [R.] {at} ack 30 wnd 0" for at in (20, 100, 64019, 64020)]
        assert t.side.flows[FLOW].state is Shadow.DEAD


def test_client_that_has_its_syn_ack_is_told_though_the_primary_had_no_time_to_say_so() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client() << "drop replica-opening"
        t >> "takeover"
        assert quiet(t)[0] == "client [R.] 0 ack 0 wnd 0"


def test_client_that_may_have_its_syn_ack_is_told_so_that_one_without_takes_no_notice() -> None:
    """The primary has ceased to wait for the replica, and was dead before it, or the client, has said anything."""
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> "takeover"
        assert quiet(t) == [f"client [R] {at} wnd 0" for at in (0, 4095, 16383, 65534)]  # no ACK: RFC 9293 3.10.7.3
        assert not t.side.flows
        assert not asked(t, 1.0)
        assert len(quiet(t, 20.0)) == 4 * (len(WAITS_S) - 2)


def test_client_that_repeats_its_syn_is_told_no_more() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> "takeover"
        assert quiet(t)
        t.side.resets.forget(FLOW)
        assert not quiet(t, 20.0)


def test_replica_that_was_late_is_no_stray() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> served(100, 50, conn=1)
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        assert not t.side.strays.flows
        t >> served(100, 50, conn=1)
        assert not t.side.strays.flows
