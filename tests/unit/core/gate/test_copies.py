"""What is copied of the client's stream: how long it is kept, and what the backup gets of it."""

from __future__ import annotations

from nfq_failover.core.gate.connection import Gate
from nfq_failover.wire.records import (
    Data,
    Missing,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import HELD, Gated, ack
from tests.support.transcript import (
    After,
    Copy,
    client,
    client_bytes,
    client_seq,
    confirmed,
)


def test_missing_bytes_are_served_only_as_far_as_our_tcp_has_taken_them() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> Copy(client(1000, 1000))
        t >> Missing(1, client_seq(0), client_seq(2000))
        t >> ack(1500) << HELD
        t >> Missing(1, client_seq(0), client_seq(2000))
        t << Data(1, client_seq(0), client_bytes(0, 1300)) << Data(1, client_seq(1300), client_bytes(1300, 200))


def test_missing_fin_is_served() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100, flags="F."))
        t >> ack(101) << HELD
        t >> Missing(1, client_seq(0), client_seq(101)) << Data(1, client_seq(0), client_bytes(0, 100), True)
        t >> Missing(1, client_seq(100), client_seq(101)) << Data(1, client_seq(100), b"", True)


def test_fin_that_our_tcp_has_not_taken_is_not_served() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100, flags="F."))
        t >> ack(100) << HELD
        t >> Missing(1, client_seq(0), client_seq(101)) << Data(1, client_seq(0), client_bytes(0, 100))


def test_missing_bytes_come_in_bounded_bursts() -> None:
    with Gated(edge=80_000) as t:
        for at in range(0, 60000, 1000):
            t >> Copy(client(at, 1000))
        t >> ack(60000, edge=80000) << HELD
        t >> Missing(1, client_seq(0), client_seq(60000))
        assert len(t.effects) == 32
        t.effects.clear()


def test_bytes_that_were_not_retained_end_the_protection_loudly() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))
        t.now += 1.5
        t >> Missing(1, client_seq(0), client_seq(1000))
        t << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010" << "log warning: connection unprotected"
        reason = "bytes that the backup misses were not retained"
        t << Unprotected(1, reason)
        t >> After(0.004) << Unprotected(1, reason)
        t >> UnprotectedSeen(1)
        t >> After(0.05)
        assert t.gate.reason == reason


def test_copy_that_comes_late_saves_the_connection() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))
        t >> Copy(client(0, 1000))
        t.now += 0.9
        t >> Missing(1, client_seq(0), client_seq(1000)) << Data(1, client_seq(0), client_bytes(0, 1000))
        assert t.gate.state is Gate.PROTECTED


def test_two_holes_at_different_times_are_not_one_that_lasts() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> Missing(1, client_seq(0), client_seq(1000))  # the backup gets it from its tap after all
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)
        t.effects.clear()
        t.now += 5
        t >> ack(2000, edge=41000) << HELD
        t >> Missing(1, client_seq(1000), client_seq(2000))
        assert t.gate.state is Gate.PROTECTED
        t.now += 0.9
        t >> Missing(1, client_seq(1000), client_seq(2000))
        assert t.gate.state is Gate.PROTECTED


def test_a_hole_that_lasts_is_found_also_beside_another_one() -> None:
    with Gated() as t:
        t >> Copy(client(1000, 1000))
        t >> ack(3000) << HELD
        for _ in range(12):
            for at in (0, 2000):
                if t.gate.state is Gate.PROTECTED:
                    t >> Missing(1, client_seq(at), client_seq(at + 1000))
            t.now += 0.1
        assert t.gate.reason == "bytes that the backup misses were not retained"
        t.effects.clear()


def test_confirmed_bytes_are_not_retained_for_long() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(600, 40000)
        assert (
            t.gate.retained.inbound.size == 1000
        )  # our TCP has not taken them: another version of them may still come
        t >> ack(600) << "pass"
        t >> After(0.3)
        t >> confirmed(600, 40000)
        assert t.gate.retained.inbound.size == 400


def test_what_is_retained_is_dropped_on_a_connection_that_says_no_more() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        t >> After(6) << "query"
        assert t.gate.retained.inbound.size == 0


def test_rest_of_a_merged_packet_is_retained_when_its_beginning_is_confirmed() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(600, 40000) << "client [.] 0 ack 600 wnd 9850 ts 2000010/1010"
        t >> Copy(client(0, 1000))
        t >> Missing(1, client_seq(600), client_seq(1000)) << Data(1, client_seq(600), client_bytes(600, 400))
