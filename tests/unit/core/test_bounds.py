"""Every store at its limit: what is counted, and what happens."""

from __future__ import annotations

import pytest

from nfq_failover.core import bounds
from nfq_failover.core.gate import news as gate_news
from nfq_failover.core.gate import opening as gate_opening
from nfq_failover.core.gate import table as gate_table
from nfq_failover.core.gate.ack_gate import MAX_HELD
from nfq_failover.core.pair.session import Session
from nfq_failover.core.tcp.journal import MAX_ISLANDS, MIN_PIECES, Journal
from nfq_failover.core.timers import SLACK, TimerQueue
from nfq_failover.wire.records import Close, Opened, Unprotected
from tests.support.gate import HELD, Gated, ack
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import GateTranscript, client_seq, opening, settings, syn, syn_ack

# ------------------------------------------------------------------------------------ stream logs


def test_single_bytes_with_gaps_fill_a_log_before_they_fill_the_memory() -> None:
    journal = Journal(1 << 20)
    kept = sum(journal.insert(at, b"x") for at in range(1, 4 * MAX_ISLANDS, 2))
    assert (kept, journal.islands, journal.piece_count) == (MAX_ISLANDS, MAX_ISLANDS, MAX_ISLANDS)
    assert journal.insert(0, bytes(2 * MAX_ISLANDS))  # what fills the holes always fits
    assert (journal.islands, journal.size) == (0, journal.end)


def test_single_bytes_in_order_fill_a_log_before_they_fill_the_memory() -> None:
    journal = Journal(1 << 20)
    assert journal.max_pieces == MIN_PIECES
    kept = sum(journal.insert(at, b"x") for at in range(3 * MIN_PIECES))
    assert kept == journal.end == journal.piece_count == 2 * MIN_PIECES
    journal.trim(10)
    assert journal.insert(journal.end, b"more")
    assert journal.piece_count == 2 * MIN_PIECES - 9


def test_pieces_are_counted_through_merging_and_jumping() -> None:
    journal = Journal(1000)
    for at in (10, 12, 20, 22, 11, 21, 30):
        journal.insert(at, b"x")
    assert (journal.islands, journal.piece_count) == (3, 7)
    journal.trim(11)
    assert (journal.islands, journal.piece_count, journal.size) == (2, 6, 6)
    journal.insert(13, bytes(7))
    assert (journal.islands, journal.piece_count, journal.end) == (1, 7, 23)
    journal.trim(100)
    assert (journal.islands, journal.piece_count, journal.size) == (0, 0, 0)


def test_log_that_is_full_confirms_nothing_more() -> None:
    with Shadowing(max_log_bytes=1 << 16) as t:
        t.shadow.inward.inbound.max_pieces = 1
        t >> from_client(0, 10) << "pass [.] 0:10 ack 0 wnd 500 ts 1001/7000000"
        assert t.effects.popleft().held == client_seq(10)  # type: ignore[union-attr]
        t >> from_client(20, 10) << "pass [.] 20:30 ack 0 wnd 500 ts 1001/7000000"
        assert t.effects.popleft().ranges == ()  # type: ignore[union-attr]
        row = bounds.gauges(_no_gate(), t.side, [_session()], t.out.counters)["log_pieces"]
        assert (row["now"], row["full"]) == (1, 1)


def test_output_beyond_its_limit_is_counted() -> None:
    with Shadowing(max_unacked_bytes=1 << 16) as t:
        for at in range(0, 1 << 16, 1 << 14):
            t >> replica(at, 1 << 14) << SILENT
        assert t.out.counters["output-full"] == 0
        t >> replica(1 << 16, 10) << SILENT
        assert t.out.counters["output-full"] == 1


# ------------------------------------------------------------------------------------ tables


def _no_gate() -> gate_table.GateTable:
    return GateTranscript().side


def _session() -> Session:
    made = settings()
    return Session(made, made.peers[0], lambda n: bytes(n))


def test_syn_flood_forgets_the_oldest_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_opening, "MAX_SYNS", 2)
    with GateTranscript() as t:
        t >> syn() << "pass"
        for port in (50001, 50002):
            t >> syn(port=port) << "pass"
        assert t.side.tables()["syns"] == 2
        assert t.out.counters["syn-forgotten"] == 1
        t >> syn_ack() << "log warning: connection unprotected" << "pass"


def test_full_table_is_said_aloud_and_looked_through_soon() -> None:
    with GateTranscript(max_connections=1) as t:
        t >> syn(port=50001) << "pass"
        t >> syn_ack(port=50001) << "drop syn-ack-held"
        t.effects.clear()
        for count in (1, 2):
            t >> syn(port=50001 + count) << "pass"
            t >> syn_ack(port=50001 + count)
            if count == 1:
                t << "log error: connection table full: new connections are not protected"
            t << "pass"
        assert t.out.counters["connection-not-tracked"] == 2
        assert t.side.poll_timeout() is not None
        row = bounds.gauges(t.side, Shadowing().side, [_session()], t.out.counters)["connections"]
        assert row == {"now": 1, "limit": 1, "full": 2}


def test_full_backup_refuses() -> None:
    with Shadowing(max_connections=1) as t:
        other = opening(2, flow=(bytes((10, 77, 0, 9)), 1, bytes((10, 77, 0, 100)), 80))
        t >> other << Opened(2, False, 0, "the backup's table is full")
        assert t.out.counters["connection-refused"] == 1


def test_held_acknowledgements_are_the_newest() -> None:
    with Gated() as t:
        for at in range(1, MAX_HELD + 11):
            t >> ack(at) << HELD
        assert [held[0] for held in t.gate.acks.held_acks] == list(range(11, MAX_HELD + 11))
        assert t.out.counters["held-replaced"] == 10


def test_what_ended_is_told_no_longer_but_what_is_unprotected_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_news, "MAX_TELLING", 3)
    with GateTranscript() as t:
        told: list[Close | Unprotected] = [Unprotected(1, "why"), Close(2, ""), Close(3, ""), Unprotected(4, "why")]
        for record in told:
            t.side.news.tell(record, t.now)
        t.drain()
        t.effects.clear()
        assert t.side.tables()["telling"] == 3
        assert t.out.counters["tell-dropped"] == 1
        t.side.news.tell(Unprotected(5, "why"), t.now)
        t.side.news.tell(Unprotected(6, "why"), t.now)
        t.drain()
        t.effects.clear()
        assert list(t.side.news.waiting) == [1, 4, 5, 6]


def test_timers_that_are_moved_leave_little_behind() -> None:
    timers: TimerQueue[int] = TimerQueue()
    for step in range(100_000):
        timers.set(step % 10, 1000.0 + step % 77)
    assert timers.entries <= 2 * 10 + SLACK + 1
    due = timers.pop_due(5000.0)
    assert sorted(due) == list(range(10))
    for step in range(1000):
        timers.set(step, 10.0)
        timers.cancel(step)
    assert timers.entries <= SLACK + 1
    assert timers.next() is None


def test_every_store_has_a_gauge() -> None:
    with Gated() as t:
        t >> ack(1) << HELD
        rows = bounds.gauges(t.side, Shadowing().side, [_session()], t.out.counters)
        assert rows.keys() == bounds.limits(settings()).keys()
        assert rows["held_acks"] == {"now": 1, "limit": MAX_HELD, "full": 0}
        assert all(row["now"] <= row["limit"] for row in rows.values())
