"""A client whose replica is late is slowed: what the server sends waits for the replica."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nfq_failover.core.concerns import Weight
from nfq_failover.core.gate import held_data, slowing
from nfq_failover.core.gate.connection import BEHIND, GIVEN_UP, Gate
from nfq_failover.core.gate.slowing import LASTING_S
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.status import PaceStatus, connections_of, pace_status
from nfq_failover.wire.records import EndKind, PaceTold, Unprotected, UnprotectedSeen
from tests.support.gate import TS, Gated
from tests.support.transcript import (
    After,
    Copy,
    client,
    client_seq,
    confirmed,
    replica_end,
    server,
    server_seq,
    settings,
)

STEP_S = 0.05
HELD = "drop data-held"


class Slowed(Gated):
    """A protected connection whose backup has not confirmed the client's first 100 bytes for 0.3 s."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self >> Copy(client(0, 100))
        self >> server(0, 10, ack=100, wnd=10000, ts=TS) << "pass [.] 0:10 ack 0 wnd 10000 ts 2000010/1010"
        self.passes(0.35, told(10))
        assert self.gate.distance.slow and self.out.counters["pace-slowed"] == 1

    def passes(self, seconds: float, *answers: object) -> None:
        """Time passes, and the backup gives these answers every 50 ms; the effects are other tests' business."""
        for _ in range(round(seconds / STEP_S)):
            for given in (After(STEP_S), *answers):
                self >> given
                self.effects.clear()

    def clients(self) -> list[object]:
        """What has left for the client since the last input."""
        sent: list[object] = [each for each in self.effects if str(each).startswith("client")]
        self.effects.clear()
        return sent


def told(sent: int) -> PaceTold:
    """Where the replica is: it has taken nothing, and has sent so much."""
    return PaceTold(1, 0, client_seq(0), client_seq(40000), server_seq(sent))


def test_data_waits_until_what_it_acknowledges_is_confirmed() -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> confirmed(50, 40000)
        t.effects.clear()
        t >> confirmed(100, 40000)
        assert t.clients() == ["client [P.] 10:30 ack 100 wnd 9976 ts 2000010/1010"]
        t >> server(30, 20, ack=100, wnd=10000, ts=TS) << HELD  # the replica has not sent what precedes it
        t >> told(30)
        assert t.clients() == ["client [P.] 30:50 ack 100 wnd 9976 ts 2000010/1010"]


def test_nothing_waits_for_a_replica_that_is_in_time() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100))
        t >> server(0, 10, ack=100, wnd=10000, ts=TS) << "pass [.] 0:10 ack 0 wnd 10000 ts 2000010/1010"
        t >> server(10, 10, ack=100, wnd=10000, ts=TS) << "pass [.] 10:20 ack 0 wnd 10000 ts 2000010/1010"


def test_data_that_waits_goes_in_order_and_in_segments() -> None:
    with Slowed() as t:
        t >> server(10, 3000, ack=100, wnd=10000, ts=TS, gso=True) << HELD
        t >> server(3010, 10, ack=100, wnd=10000, ts=TS) << HELD
        t >> told(3010)
        assert not t.clients()
        t >> confirmed(100, 40000)
        pieces = [str(each).split()[2] for each in t.clients()]
        assert pieces == ["10:1458", "1458:2906", "2906:3010", "3010:3020"]


def test_no_segment_is_longer_than_our_own_interface_takes() -> None:
    """The client would take 1460 bytes; the SYN-ACK has said what fits here."""
    with Slowed() as t:
        t.gate.held_data = held_data.HeldData(replace(t.gate.open, mss=1300), t.gate.acks)
        t >> server(10, 2000, ack=100, wnd=10000, ts=TS, gso=True) << HELD
        t >> told(2010)
        t >> confirmed(100, 40000)
        assert [str(each).split()[2] for each in t.clients()] == ["10:1298", "1298:2010"]


def test_segment_that_our_tcp_repeats_is_kept_once() -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> server(20, 30, ack=100, wnd=10000, ts=TS) << HELD  # cut elsewhere, with new bytes
        t >> server(0, 10, ack=100, wnd=10000, ts=TS)  # what the client should have: it may have been lost
        assert str(t.effects.popleft()).startswith("pass [.] 0:10")
        t >> told(1000)
        t.effects.clear()
        t >> confirmed(100, 40000)
        assert [str(each).split()[2] for each in t.clients()] == ["10:30", "30:50"]


def test_acknowledgements_and_data_without_room_are_left_to_our_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_data, "HELD_BYTES", 30)
    monkeypatch.setattr(slowing, "MAX_HELD_TOTAL", 30)
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> server(30, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> server(50, 20, ack=100, wnd=10000, ts=TS) << HELD
        assert t.out.counters["held-data-full"] == 2 and t.gate.held_data.size == 20
        t >> server(70, ack=100, wnd=10000, ts=TS) << "drop ack-held"
        t >> told(1000)
        t >> confirmed(100, 40000)
        assert [str(each).split()[2] for each in t.clients()] == ["10:30", "70"]
        t >> server(30, 20, ack=100, wnd=10000, ts=TS)
        assert str(t.effects.popleft()).startswith("pass [.] 30:50")


def test_end_of_the_stream_comes_after_what_waits() -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, flags="F.", wnd=10000, ts=TS)
        t.effects.clear()
        t >> replica_end(30)
        assert [str(each).split()[1:3] for each in t.clients()] == [["[P.]", "10:30"], ["[F.]", "30"]]
        assert t.gate.end is not None and t.gate.end.kind is EndKind.FIN


def test_data_waits_no_more_when_the_replica_has_ended_before_our_server() -> None:
    """It has sent all that there is: nothing else would ever say so."""
    with Slowed() as t:
        t >> confirmed(100, 40000)
        t.effects.clear()
        t >> server(10, 20, ack=100, wnd=10000, ts=TS)
        t.effects.clear()
        t >> server(30, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> replica_end(60)
        assert [str(each).split()[1:3] for each in t.clients()] == [["[P.]", "30:50"]]
        t >> server(50, 10, ack=100, wnd=10000, ts=TS)
        assert str(t.effects.popleft()).startswith("pass [.] 50:60")


@pytest.mark.parametrize("flags", ["F.", "R."])
def test_end_that_the_replica_has_come_to_first_does_not_overtake_what_waits(flags: str) -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD  # the client's bytes are not confirmed
        t >> replica_end(30, EndKind.FIN if flags == "F." else EndKind.RST)
        t.effects.clear()
        t >> server(30, 0, ack=100, flags=flags, wnd=10000, ts=TS)
        sent = [str(each) for each in t.effects if str(each).startswith(("client", "pass"))]
        t.effects.clear()
        assert [each.split()[1:3] for each in sent] == [["[P.]", "10:30"], [f"[{flags}]", "30"]]


def test_everything_leaves_when_the_protection_ends() -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t >> Unprotected(1, "the replica reset the connection")
        assert [str(each).split()[2] for each in t.effects if str(each).startswith("client")] == ["10:30"]
        assert t.effects.pop() == UnprotectedSeen(1)
        t.effects.clear()
        assert not t.gate.held_data
        t >> server(30, 20, ack=100, wnd=10000, ts=TS) << "pass"


def test_nothing_waits_any_more_when_the_backup_is_gone() -> None:
    with Slowed() as t:
        t >> server(10, 20, ack=100, wnd=10000, ts=TS) << HELD
        t.side.stop_protecting("the backup's application has failed", t.now)
        t.drain()
        assert [str(each).split()[2] for each in t.clients()] == ["10:30"]
        t >> server(30, 20, ack=100, wnd=10000, ts=TS) << "pass"
        assert not t.gate.distance.slow and not t.gate.held_data


@pytest.mark.parametrize("fed", [False, True], ids=["let go", "fed"])
def test_nothing_waits_from_the_moment_that_a_connection_is_not_protected(fed: bool) -> None:
    """Not only from the next look on: what is kept until then would stay behind."""
    with Slowed() as t:
        if fed:
            t.gate.feed("the replica's output differs", t.out)
        else:
            t.gate.let_go(BEHIND, t.out, t.now)
        t.drain()
        t.effects.clear()
        t >> server(10, 20, ack=100, wnd=10000, ts=TS)
        assert str(t.effects.popleft()).startswith("pass") and not t.gate.held_data


def test_client_is_slowed_no_more_when_the_replica_is_in_time_and_that_is_told_some_seconds_later() -> None:
    with Slowed() as t:
        assert [each.code for each in t.out.concerns.own] == ["backup-slow"]
        assert "one connection is slowed" in t.out.concerns.own[0].what
        row = next(iter(connections_of(t.side, ShadowTable(settings(), t.out))))
        assert row.slowed and 200 <= row.lag_ms <= 400 and (row.lag_bytes, row.lag_out_bytes) == (100, 0)
        assert pace_status(t.side, ShadowTable(settings(), t.out)) == PaceStatus(row.lag_ms, 1, 0, 0.0, 0.0)
        t.passes(0.1, confirmed(100, 40000), told(10))
        assert not t.gate.distance.slow
        t >> server(10, 20, ack=100, wnd=9975, ts=TS)
        assert str(t.effects.popleft()).startswith("pass")
        t.passes(4, told(30))
        assert t.out.concerns.own
        t.passes(1.5)
        assert not t.out.concerns.own and t.side.pace.poll_timeout() is None


def stays_late(t: Slowed, seconds: float) -> None:
    """The replica is 0.3 s late, again and again; what comes out is of no interest."""
    start = t.gate.own.rcv_nxt
    for at in range(start, start + round(1000 * seconds), 100):
        t >> Copy(client(at, 100))
        t.effects.clear()
        t >> server(10, ack=at + 100, wnd=10000, ts=TS)
        t.effects.clear()
        t.passes(0.1, confirmed(max(at - 300, 0), 40000), told(10))


def test_hiccup_is_a_warning_and_what_lasts_degrades_the_pair() -> None:
    with Slowed() as t:
        assert [each.weight for each in t.out.concerns.own] == [Weight.WARNING]
        stays_late(t, LASTING_S - 1)
        assert [each.weight for each in t.out.concerns.own] == [Weight.WARNING]
        stays_late(t, 1.5)
        assert [each.weight for each in t.out.concerns.own] == [Weight.DEGRADED]


def test_replica_that_is_soon_let_go_degrades_the_pair_at_once() -> None:
    with Slowed(replica_patience_ms=2000) as t:
        t.passes(0.5, told(10))
        assert [each.weight for each in t.out.concerns.own] == [Weight.WARNING]
        t.passes(0.3, told(10))
        assert [each.weight for each in t.out.concerns.own] == [Weight.DEGRADED]


def test_backup_that_is_always_slow_is_waited_for_or_not_as_configured() -> None:
    for policy, state in (("wait", Gate.PROTECTED), ("unprotect", Gate.UNPROTECTED)):
        with Slowed(slow_backup=policy) as t:
            stays_late(t, 2.9)
            assert t.gate.state is state
            assert t.gate.reason == (BEHIND if state is Gate.UNPROTECTED else "")


def late(t: Slowed, seconds: float, sends: bool) -> list[object]:
    """The replica is 0.3 s late all the while, and says something or not; what comes out."""
    found: list[object] = []
    for turn in range(1, round(10 * seconds)):
        at, was = 100 * turn, max(turn - 3, 0)
        said = told(10 + 10 * was) if sends else told(10)
        segment = server(10 * turn, 10, ack=at + 100, wnd=10000, ts=TS)
        for each in (Copy(client(at, 100)), segment, *[After(STEP_S), confirmed(100 * was, 40000), said] * 2):
            t >> each
            found += t.effects
            t.effects.clear()
    return found


def test_replica_of_a_slow_backup_is_given_up_if_that_is_wanted() -> None:
    with Slowed(slow_backup="drop") as t:
        t.side.missed.start(t.now)
        found = late(t, 3.0, sends=True)
        assert (t.gate.state, t.gate.reason) == (Gate.UNPROTECTED, GIVEN_UP)
        assert Unprotected(1, GIVEN_UP) in found
        assert not t.gate.awaited and not t.gate.retained.inbound.size  # nothing is kept for it any more
        assert t.out.counters["pace-dropped"] == t.out.counters["input-missed"] == 1


def test_replica_of_a_backup_that_stands_still_is_not_given_up() -> None:
    with Slowed(slow_backup="drop") as t:
        late(t, 3.0, sends=False)
        assert (t.gate.state, t.gate.reason) == (Gate.UNPROTECTED, BEHIND)
        assert not t.out.counters["pace-dropped"]


@pytest.mark.parametrize("policy", ["wait", "unprotect", "drop"])
def test_clients_wait_for_as_long_as_it_takes_if_there_is_no_bound(policy: str) -> None:
    with Slowed(slow_backup=policy, replica_patience_ms=0) as t:
        late(t, 3.0, sends=True)
        assert t.gate.state is Gate.PROTECTED


def test_replica_that_stands_still_on_a_quiet_pair_is_found_all_the_same() -> None:
    """Nobody says anything unasked: time would stand still, too."""
    with Gated() as t:
        t >> server(0, 10, wnd=10000, ts=TS)
        t.effects.clear()
        for _ in range(round(2.5 / STEP_S)):
            before = t.gate.distance.asked_at
            t >> After(STEP_S)
            t.effects.clear()
            if t.gate.distance.asked_at != before:
                t >> told(0)
                t.effects.clear()
        assert (t.gate.state, t.gate.reason) == (Gate.UNPROTECTED, BEHIND)
