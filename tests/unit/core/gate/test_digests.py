"""Digests of what our server has sent: when they are made, how often they are repeated, what is kept for them."""

from __future__ import annotations

from nfq_failover.core.gate.digests import (
    FLUSH_AT_ONCE,
    FLUSH_S,
    KEEP_BYTES,
    REPEAT_AT_ONCE,
    REPEAT_FIRST_S,
    SentStream,
)
from nfq_failover.wire.records import (
    BytesAsked,
    BytesSent,
    Digest,
    Fed,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import TS, Digesting, digest, seen
from tests.support.transcript import (
    After,
    server,
    server_bytes,
    server_seq,
)


def test_segments_are_digested_together_after_a_moment() -> None:
    with Digesting() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t >> server(100, 2000, wnd=10000, ts=TS) << "pass"
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"  # a retransmission
        t.flush()
        t << digest(0, 2100, cuts=(100,))
        t >> seen(2100)
        t >> After(1.0)


def test_digest_is_repeated_until_it_is_seen() -> None:
    with Digesting() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t.flush()
        t << digest(0, 100)
        t >> After(REPEAT_FIRST_S) << digest(0, 100)
        t >> After(2 * REPEAT_FIRST_S) << digest(0, 100)
        t >> seen(100, 2)
        t >> After(1.0)
        assert t.side.digests.differences(1) == 2


def test_replica_that_is_behind_is_not_told_all_the_time() -> None:
    """New digests do not begin the repeating of the old ones again; what the backup has seen does."""
    with Digesting() as t:
        told = 0
        for i in range(200):  # one second
            for given in (server(100 * i, 100, wnd=30000, ts=TS), After(0.005)):
                t >> given
                told += sum(isinstance(effect, Digest) for effect in t.effects)
                t.effects.clear()
        assert 200 <= told <= 200 + 6 * REPEAT_AT_ONCE
        for upto in range(1, 8):
            t >> seen(20_000 - 1000 + 100 * upto)
        t >> After(REPEAT_FIRST_S) << digest(20_000 - 300, 100) << digest(20_000 - 200, 100)
        t << digest(20_000 - 100, 100)


def test_many_connections_are_digested_less_often() -> None:
    with Digesting() as t:
        digests = t.side.digests
        for conn in range(2, 2 + 10 * FLUSH_AT_ONCE):
            digests._streams[conn] = SentStream(t.side.numbers[1])
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t >> After(5 * FLUSH_S) << "query"
        t >> After(5 * FLUSH_S + 0.001) << digest(0, 100)
        t >> seen(100)


def test_bytes_are_told_while_they_are_kept() -> None:
    with Digesting() as t:
        t >> server(0, 3000, wnd=10000, ts=TS, gso=True) << "pass"
        t.flush()
        t << digest(0, 3000)
        t >> BytesAsked(1, server_seq(1280), server_seq(2560))
        t << BytesSent(1, server_seq(1280), server_bytes(1280, 1280))
        t >> seen(3000)
        t >> BytesAsked(1, server_seq(1280), server_seq(2560)) << BytesSent(1, server_seq(1280), b"")
        t >> BytesAsked(1, server_seq(0), server_seq(2000)) << BytesSent(1, server_seq(0), b"")  # too many


def test_what_is_kept_is_bounded() -> None:
    with Digesting() as t:
        size = 60_000
        for i in range(30):
            t >> server(i * size, size, wnd=10000, ts=TS, gso=True)
            t.effects.clear()
        t.flush()
        t.effects.clear()
        assert t.side.digests._streams[1].outbound_bytes <= KEEP_BYTES
        assert len(t.side.digests._streams[1].unseen) <= 32
        assert t.side.digests._kept_total == t.side.digests._streams[1].outbound_bytes
        t.side.stop_protecting("no backup", t.now)
        t.drain()
        t.effects.clear()
        assert not t.side.digests._streams and t.side.digests._kept_total == 0


def test_end_comes_after_the_digest() -> None:
    from tests.support.transcript import asked

    with Digesting() as t:
        t >> server(0, 100, flags="F.", wnd=10000, ts=TS)
        t << "pass [.] 0:100 ack 0 wnd 10000 ts 2000010/1010"
        t << digest(0, 100) << asked(100)


def test_strict_holds_a_segment_until_the_backup_has_it() -> None:
    with Digesting("strict") as t:
        t >> server(0, 3000, wnd=10000, ts=TS, gso=True) << "drop strict-held" << digest(0, 3000)
        t >> server(0, 1448, wnd=10000, ts=TS) << "drop strict-held"
        t >> seen(1280) << "client [P.] 0:1280 ack 0 wnd 10000 ts 2000010/1010"
        t >> seen(3000)
        t << "client [P.] 1280:2728 ack 0 wnd 10000 ts 2000010/1010"
        t << "client [P.] 2728:3000 ack 0 wnd 10000 ts 2000010/1010"
        t >> server(0, 1448, wnd=10000, ts=TS) << "pass"  # a retransmission of what was released


def test_strict_lets_go_with_the_protection() -> None:
    with Digesting("strict") as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "drop strict-held" << digest(0, 100)
        t >> Unprotected(1, "diverged")
        t << "client [.] 100 ack 0 wnd 10000 ts 2000010/1010"
        t << "client [P.] 0:100 ack 0 wnd 10000 ts 2000010/1010" << "log warning: connection unprotected"
        t << UnprotectedSeen(1)
        t >> server(100, 100, wnd=10000, ts=TS) << "pass"


def test_strict_does_not_wait_for_ever() -> None:
    with Digesting("strict", out_of_step_ms=1000) as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "drop strict-held" << digest(0, 100)
        for _ in range(20):
            t >> After(0.1)
            found = [e for e in t.effects if isinstance(e, Fed)]
            t.effects.clear()
            if found:
                assert "policy: strict" in found[0].reason
                return
        raise AssertionError("it has waited for ever")
