"""After a takeover: what was resent and is not acknowledged is sent again, until all that was outstanding is."""

from __future__ import annotations

from collections import deque

import pytest

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.recovery import LONGEST_S
from nfq_failover.core.shadow.resending import BURST_SEGMENTS, WAIT_FIRST_S
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import FLOW, After
from tests.unit.core.shadow.test_takeover import shown

MSS = 1448
MOMENT = 1e-6


def sent(t: Shadowing) -> list[str]:
    """Which bytes the client has got since the last look, like "0:1448"; nothing else may be among it."""
    texts = [str(effect) for effect in t.effects if effect != "query"]
    t.effects.clear()
    assert all(text.startswith("client [") for text in texts), texts
    return [text.split()[2] for text in texts]


def taken_over(length: int, **changes: object) -> Shadowing:
    """So many bytes were outstanding; ten segments of them, at most, have been resent."""
    t = Shadowing(**changes)
    t >> replica(0, length) << SILENT
    t >> "takeover"
    assert len(sent(t)) == min(-(-length // MSS), 10)
    return t


def acknowledge(t: Shadowing, ack: int) -> list[str]:
    """The client's acknowledgement, and what is sent upon it."""
    t >> from_client(0, 0, ack=ack)
    assert str(t.effects.popleft()).startswith(f"pass [.] 0 ack {ack} ")
    return sent(t)


def test_first_segment_is_sent_again_and_then_twice_what_is_acknowledged() -> None:
    with taken_over(20_000) as t:
        assert t.side.poll_timeout() == pytest.approx(t.now + WAIT_FIRST_S)
        t >> After(WAIT_FIRST_S + MOMENT) << shown(0, MSS, 0, 360)
        assert len(acknowledge(t, MSS)) == 10  # all that was sent again has come: as at the takeover
        assert acknowledge(t, 2 * MSS) == ["15928:17376", "17376:18824"]
        assert acknowledge(t, 17_376) == ["18824:20000"]
        assert acknowledge(t, 20_000) == []
        t >> After(60.0) << "query"
        assert t.side.out.counters["recovery-timeouts"] == 1


def test_timer_doubles_and_ends_where_our_own_tcp_has_come() -> None:
    with taken_over(1000) as t:
        wait, times = WAIT_FIRST_S, 0
        while wait <= LONGEST_S:
            assert t.side.takeover.recovery.poll_timeout() == pytest.approx(t.now + wait)
            t >> After(wait)
            assert sent(t) == ["0:1000"]
            wait, times = wait * 2, times + 1
        t >> After(wait)
        assert sent(t) == []
        assert t.side.takeover.recovery.poll_timeout() is None
        assert t.side.out.counters["recovery-timeouts"] == times == 7


def test_round_trip_is_measured_once_and_each_acknowledgement_begins_anew() -> None:
    with taken_over(20_000) as t:
        t.now += 0.25
        assert len(acknowledge(t, 5 * MSS)) == 4
        assert t.side.takeover.recovery.poll_timeout() == pytest.approx(t.now + 0.5)
        t.now += 0.4
        assert acknowledge(t, 10 * MSS) == []
        assert t.side.takeover.recovery.poll_timeout() == pytest.approx(t.now + 0.5)
        t >> After(0.5 + MOMENT)
        assert sent(t) == ["14480:15928"]


def test_round_trip_is_not_taken_for_a_short_one_because_something_was_sent_twice() -> None:
    """The acknowledgement may be that of either (Karn's algorithm): of the first, for all that we know."""
    with taken_over(20_000) as t:
        t >> After(WAIT_FIRST_S + MOMENT) << shown(0, MSS, 0, 360)
        t.now += 0.3
        assert len(acknowledge(t, MSS)) == 10
        assert t.side.takeover.recovery.poll_timeout() == pytest.approx(
            t.now + 2 * (WAIT_FIRST_S + 0.3), abs=2 * MOMENT
        )


@pytest.mark.parametrize(("round_trip_s", "most"), [(0.05, 1.0), (0.25, 1.0), (0.35, 1.1), (0.6, 1.1), (1.0, 1.1)])
def test_long_round_trip_costs_little(round_trip_s: float, most: float) -> None:
    """Nothing is lost: how much more is sent than there is to send."""
    length = 200_000
    with Shadowing() as t:
        t >> from_client(0, 0, wnd=20_000)
        for offset in range(0, length, 10 * MSS):
            t.effects.clear()
            t >> replica(offset, min(10 * MSS, length - offset))
        t.effects.clear()
        t >> "takeover"
        total, have, way = 0, 0, deque[tuple[float, int, int]]()
        while have < length:
            for text in sent(t):
                if ":" in text:
                    start, end = map(int, text.split(":"))
                    total += end - start
                    way.append((t.now + round_trip_s, start, end))
            due = t.side.takeover.recovery.poll_timeout()
            if due is not None and due < way[0][0]:
                t.now = due
                t >> After(0)
                continue
            t.now, start, end = way.popleft()
            if start <= have:
                have = max(have, end)
            t >> from_client(0, 0, ack=have, wnd=20_000)
            t.effects.popleft()
        assert total <= most * length
        t.effects.clear()


def test_one_acknowledgement_of_much_makes_no_burst() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0, wnd=20_000)
        for offset in range(0, 2_000_000, 14_480):
            t.effects.clear()
            t >> replica(offset, 14_480)
        t.effects.clear()
        t >> "takeover"
        assert len(sent(t)) == 10
        t.effects.clear()
        for _ in range(5):
            acknowledged = t.shadow.resending.next
            assert acknowledged is not None
            t >> from_client(0, 0, ack=acknowledged, wnd=20_000)
            t.effects.popleft()
            assert len(sent(t)) <= BURST_SEGMENTS


def test_what_is_sent_when_the_window_opens_has_a_timer_of_its_own() -> None:
    with Shadowing() as t:
        t >> replica(0, 5000) << SILENT
        t >> from_client(0, 0, ack=1000, wnd=0)
        t.effects.clear()
        t >> "takeover"
        for _ in range(5):
            t.effects.clear()
            due = t.side.takeover.recovery.poll_timeout()
            assert due is not None
            t >> After(due - t.now + MOMENT)
            t.effects.clear()
            t >> from_client(0, 0, ack=1000, wnd=0)
        t.effects.clear()
        t >> from_client(0, 0, ack=1000, wnd=500)
        t.effects.popleft()
        assert sent(t) == ["1000:2448", "2448:3896", "3896:5000"]
        assert t.side.takeover.recovery.poll_timeout() == pytest.approx(t.now + WAIT_FIRST_S)


def test_probe_is_no_acknowledgement() -> None:
    """The client does not look at what it acknowledges."""
    with Shadowing() as t:
        t >> from_client(0, 0, wnd=0)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        t.shadow.inward.rcv_nxt = t.shadow.inward.held = 20
        told = t.shadow.resending.told_ack
        t >> After(WAIT_FIRST_S + MOMENT) << shown(-1, 0, 20, 360)
        assert t.shadow.resending.told_ack == told


def test_nothing_is_repeated_after_a_reset() -> None:
    with taken_over(1000) as t:
        t >> replica(1000, flags="R.", edge=0)
        t.effects.clear()
        t >> After(WAIT_FIRST_S + MOMENT)
    with taken_over(1000) as t:
        t >> from_client(0, 0, ack=None, flags="R", ts=None)
        t.effects.clear()
        assert t.shadow.inward.reset_by_client
        t >> After(WAIT_FIRST_S + MOMENT)


def test_what_our_tcp_adds_meanwhile_is_watched_as_well() -> None:
    with taken_over(15_000) as t:
        t >> replica(15_000, MSS) << "drop resend-pending"
        assert acknowledge(t, 10 * MSS) == ["14480:15928", "15928:16448"]
        assert acknowledge(t, 15_928) == []
        t >> After(WAIT_FIRST_S + MOMENT)
        assert sent(t) == ["15928:16448"]
        assert acknowledge(t, 16_448) == []
        assert t.side.takeover.recovery.poll_timeout() is None


def test_new_output_of_a_connection_that_has_recovered_is_our_tcps_affair() -> None:
    with taken_over(1000) as t:
        assert acknowledge(t, 1000) == []
        t >> replica(1000, 500)
        t.effects.clear()
        assert t.side.takeover.recovery.poll_timeout() is None


def test_fin_is_repeated() -> None:
    with Shadowing() as t:
        t >> replica(0, 700, flags="F.")
        t.effects.clear()
        t >> from_client(0, 0, ack=700)
        t.effects.clear()
        t >> "takeover" << shown(700, 0, 0, 60, flags="FP.")
        t >> After(WAIT_FIRST_S + MOMENT) << shown(700, 0, 0, 360, flags="FP.")
        assert acknowledge(t, 701) == []


def test_client_with_a_closed_window_is_asked_whether_it_is_open_now() -> None:
    """What it has said about that to the dead primary, nobody will repeat."""
    with Shadowing() as t:
        t >> replica(0, 5000) << SILENT
        t >> from_client(0, 0, ack=1000, wnd=0)
        t.effects.clear()
        t >> "takeover" << shown(1000, 0, 0, 60) << shown(999, 0, 0, 60)
        t >> After(WAIT_FIRST_S + MOMENT) << shown(999, 0, 0, 360)
        t >> After(2 * WAIT_FIRST_S + MOMENT) << shown(999, 0, 0, 960)
        t >> from_client(0, 0, ack=1000, wnd=500)
        assert str(t.effects.popleft()).startswith("pass [.] 0 ack 1000 wnd 500 ")
        assert sent(t) == ["1000:2448", "2448:3896", "3896:5000"]


def test_client_with_a_closed_window_and_everything_is_asked_until_it_answers() -> None:
    """Our TCP may have more for it, which it has not sent."""
    with Shadowing() as t:
        t >> replica(0, 1000) << SILENT
        t >> from_client(0, 0, ack=1000, wnd=0)
        t.effects.clear()
        t >> "takeover" << shown(1000, 0, 0, 60) << shown(999, 0, 0, 60)
        t >> After(WAIT_FIRST_S + MOMENT) << shown(999, 0, 0, 360)
        t >> from_client(0, 0, ack=1000, wnd=0)
        assert str(t.effects.popleft()).startswith("pass [.] 0 ack 1000 wnd 0 ")
        assert t.side.takeover.recovery.poll_timeout() is None  # when it opens it, we are there


def test_nothing_is_asked_of_a_client_that_has_everything() -> None:
    with Shadowing() as t:
        t >> "takeover" << shown(0, 0, 0, 60)
        assert t.side.takeover.recovery.poll_timeout() is None


@pytest.mark.parametrize("end", ["dead", "forgotten"])
def test_nothing_is_repeated_of_a_connection_that_is_over(end: str) -> None:
    with taken_over(1000) as t:
        connection = t.side.flows[FLOW]
        if end == "forgotten":
            t.side.forget(connection)
        else:
            connection.state = Shadow.DEAD
        t >> After(WAIT_FIRST_S + MOMENT)
        assert t.side.takeover.recovery.poll_timeout() is None
