"""What is copied of the client's stream: how long it is kept, and what the backup gets of it."""

from __future__ import annotations

import pytest

from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.copies import UNREAD_BYTES, UNREAD_WINDOW
from nfq_failover.core.gate.own_tcp import SETTLE_S
from nfq_failover.core.tcp.claims import PAWS_SLACK, TWO_VERSIONS, URGENT
from nfq_failover.wire.records import (
    Data,
    HeardBefore,
    Missing,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import HELD, TS, Gated, ack
from tests.support.transcript import (
    After,
    Copy,
    Urgent,
    client,
    client_bytes,
    client_seq,
    confirmed,
    server,
    server_seq,
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


# ------------------------------------------------------------------------------------ two versions

OTHER = bytes(100)


def unprotected(t: Gated, reason: str = TWO_VERSIONS) -> None:
    t << "log warning: connection unprotected" << Unprotected(1, reason)
    assert (t.gate.state, t.gate.reason) == (Gate.UNPROTECTED, reason)


def test_two_versions_in_the_copies_end_the_protection() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> Copy(client(500, 100))
        t >> Copy(client(500, 100, payload=OTHER))
        unprotected(t)


def test_version_that_the_backup_has_confirmed_and_our_tcp_has_not_taken_still_counts() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)  # our TCP has refused it, for a reason of its own
        t >> Copy(client(0, 100, payload=OTHER))
        unprotected(t)


def test_copies_that_are_read_late_still_count() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t.now += SETTLE_S / 2
        t >> Copy(client(0, 1000))
        t >> Copy(client(900, 100, payload=OTHER))
        unprotected(t)


def test_what_our_tcp_took_long_ago_is_settled() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        t.now += SETTLE_S + 0.01
        t >> Copy(client(999, 1, payload=b"\0"))  # a keep-alive probe
        t >> Copy(client(900, 100, payload=OTHER))
        assert t.gate.state is Gate.PROTECTED


def test_settled_bytes_follow_an_upload() -> None:
    with Gated() as t:
        for at in range(0, 10_000, 1000):
            t.now += 0.06
            t >> Copy(client(at, 1000))
            t >> confirmed(at + 1000, 40000)
            t >> ack(at + 1000) << "pass"
        assert 1_000 <= t.gate.own.settled(t.now) <= 8_000
        assert t.gate.retained.inbound.size <= 9_000


@pytest.mark.parametrize(("start", "size", "flags"), [(0, 9, "F."), (0, 12, "F."), (10, 5, ".")])
def test_two_ends_in_the_copies_end_the_protection(start: int, size: int, flags: str) -> None:
    with Gated() as t:
        t >> Copy(client(0, 10, flags="F."))
        t >> Copy(client(start, size, flags=flags))
        unprotected(t)


def test_end_in_the_middle_of_the_copies_ends_the_protection() -> None:
    with Gated() as t:
        t >> Copy(client(0, 1000))
        t >> Copy(client(0, 10, flags="F."))
        unprotected(t)


def test_urgent_data_in_the_copies_ends_the_protection() -> None:
    with Gated() as t:
        t >> Copy(Urgent("client", 0, 10))
        unprotected(t, URGENT)


@pytest.mark.parametrize("start", [-1000, 40_000 + UNREAD_WINDOW + 1])
def test_urgent_data_outside_the_window_is_nobodys(start: int) -> None:
    with Gated() as t:
        t.now += 1
        t >> Copy(Urgent("client", start, 10))
        assert t.gate.state is Gate.PROTECTED


def test_copies_that_our_tcp_must_refuse_are_not_kept() -> None:
    with Gated() as t:
        t >> ack(0) << "pass"  # the newest timestamp that our TCP has taken is 1010
        t >> Copy(client(0, 100, ack=UNREAD_BYTES + 1, payload=OTHER))
        t >> Copy(client(0, 100, flags="", ack=None, payload=OTHER))
        t >> Copy(client(0, 100, ts=((1010 - PAWS_SLACK - 1) % 2**32, 0), payload=OTHER))
        assert t.gate.retained.inbound.size == 0
        counters = t.out.counters
        assert [counters[f"copy-{why}"] for why in ("ack-of-unsent", "no-ack-flag", "old-timestamp")] == [1, 1, 1]
        t >> Copy(client(0, 1000, ts=((1010 - PAWS_SLACK) % 2**32, 0)))
        assert t.gate.state is Gate.PROTECTED
        assert t.gate.retained.inbound.size == 1000


def test_copy_with_an_old_ack_may_have_been_taken() -> None:
    """Linux's fast path takes it; the backup has refused it."""
    with Gated() as t:
        t >> Copy(client(0, 100, ack=-(1 << 30), payload=OTHER))
        t >> Copy(client(0, 1000))
        unprotected(t)


def test_with_missing_bytes_goes_what_the_client_had_heard_before_it_sent_them() -> None:
    with Gated() as t:
        t >> server(0, 900, wnd=10000, ts=TS) << "pass"
        t >> Copy(client(0, 100))
        t >> Copy(client(100, 100, ack=600))
        t >> Copy(client(0, 100, ack=600))  # sent again: it was sent before all the same
        t >> Copy(client(200, 100, ack=900))
        t >> ack(300, start=900) << HELD
        t >> Missing(1, client_seq(0), client_seq(100)) << Data(1, client_seq(0), client_bytes(0, 100))
        t >> Missing(1, client_seq(150), client_seq(300))
        t << HeardBefore(1, client_seq(100), server_seq(600)) << HeardBefore(1, client_seq(200), server_seq(900))
        t << Data(1, client_seq(150), client_bytes(150, 150))


def test_what_was_overtaken_on_its_way_was_sent_before() -> None:
    with Gated() as t:
        t >> server(0, 900, wnd=10000, ts=TS) << "pass"
        t >> Copy(client(100, 100, ack=900))
        t >> Copy(client(0, 100, ack=300))
        t >> ack(200, start=900) << HELD
        t >> Missing(1, client_seq(0), client_seq(200))
        t << HeardBefore(1, client_seq(0), server_seq(300)) << HeardBefore(1, client_seq(100), server_seq(900))
        t << Data(1, client_seq(0), client_bytes(0, 200))
