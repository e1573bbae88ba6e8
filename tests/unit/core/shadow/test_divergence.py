"""Comparing the two servers' output: what is counted, what ends the protection, what a takeover makes of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from nfq_failover.core.gate.digests import (
    FLUSH_AT_ONCE,
    FLUSH_S,
    KEEP_BYTES,
    REPEAT_AT_ONCE,
    REPEAT_FIRST_S,
    SentStream,
)
from nfq_failover.core.shadow.comparison import AGREE_BYTES, Comparison, differing_runs
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.tcp.hashes import block_hashes, hash_seed
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    BytesAsked,
    BytesSent,
    Digest,
    DigestSeen,
    Opened,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import (
    After,
    GateTranscript,
    client_seq,
    confirmed,
    opening,
    server,
    server_bytes,
    server_seq,
    settings,
    syn,
    syn_ack,
)

SEED = hash_seed(settings().key)
TS = (2_000_010, 1_010)


def digest(start: int, length: int, data: bytes | None = None) -> Digest:
    """What the primary says of its output; by default that is the replica's, too."""
    data = server_bytes(start, length) if data is None else data
    return Digest(1, server_seq(start), length, tuple(block_hashes([data], SEED)))


def seen(upto: int, differences: int = 0) -> DigestSeen:
    return DigestSeen(1, server_seq(upto), differences)


def changed(start: int, length: int, *places: int) -> bytes:
    """The replica's bytes, but for some places."""
    data = bytearray(server_bytes(start, length))
    for place in places:
        data[place - start] ^= 0x55
    return bytes(data)


class Comparing(Shadowing):
    """A connection in the shadow whose output is compared."""

    def __init__(self, policy: str = "default", **changes: object) -> None:
        super().__init__(divergence=policy, **changes)

    def differ(self, start: int, data: bytes) -> None:
        """The primary has sent other bytes, of one block."""
        end = start + len(data)
        self >> digest(start, len(data), data) << BytesAsked(1, server_seq(start), server_seq(end))
        self >> BytesSent(1, server_seq(start), data)


def lost(t: Comparing, reason: str) -> None:
    """The connection is given up, loudly."""
    assert t.effects.popleft() == "log error: connection lost its replica"
    assert "[R.]" in str(t.effects.popleft())
    record = t.effects.popleft()
    assert isinstance(record, Unprotected) and reason in record.reason, record
    assert t.shadow.state is Shadow.DEAD


# ---------------------------------------------------------------------------------------------- hashes


@pytest.mark.parametrize(
    "cuts", [(), (1,), (DIGEST_BLOCK,), (700, 1400, 4000), (DIGEST_BLOCK * 3, DIGEST_BLOCK * 3 + 1)]
)
def test_hashes_do_not_depend_on_the_segments(cuts: tuple[int, ...]) -> None:
    data = server_bytes(0, 5000)
    at = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in pairwise(at)]
    assert block_hashes(pieces, 7) == block_hashes([data], 7)
    assert len(block_hashes([data], 7)) == -(-5000 // DIGEST_BLOCK)
    assert block_hashes([data], 8) != block_hashes([data], 7)
    assert not block_hashes([], 7)


def test_runs_that_are_near_are_one() -> None:
    base = bytes(100)
    other = bytearray(base)
    for place in (3, 3 + AGREE_BYTES, 60):
        other[place] = 1
    assert differing_runs(base, bytes(other)) == [(3, 4 + AGREE_BYTES), (60, 61)]
    other[2 * AGREE_BYTES + 4] = 1
    assert differing_runs(base, bytes(other))[0] == (3, 4 + AGREE_BYTES)
    assert differing_runs(base, base) == []


def test_agreement_has_to_last() -> None:
    compare = Comparison()
    assert compare.in_step
    assert compare.differs(10, 20)
    compare.compared = 20 + AGREE_BYTES - 1
    assert not compare.in_step
    assert not compare.differs(compare.compared, 50)  # the same difference goes on
    assert (compare.last, compare.differences) == ((10, 50), 1)
    compare.compared = 50 + AGREE_BYTES
    assert compare.in_step
    assert compare.differs(100, 101)
    compare.skip(5000)  # what can't be compared ends no difference
    assert not compare.in_step


# ---------------------------------------------------------------------------------------------- backup


def test_equal_output_is_confirmed_whoever_is_first() -> None:
    with Comparing() as t:
        t >> replica(0, 100) << SILENT
        t >> digest(0, 100) << seen(100)
        t >> digest(100, 3000)
        t >> replica(100, 1400) << SILENT
        t >> replica(1500, 1600) << SILENT << seen(3100)
        assert t.shadow.output.compare is not None and not t.shadow.output.compare.pending


def test_digest_that_is_repeated_or_out_of_order_does_no_harm() -> None:
    with Comparing() as t:
        t >> replica(0, 3000) << SILENT
        t >> digest(1000, 2000)
        t >> digest(1000, 2000)
        t >> digest(0, 1000) << seen(3000)
        t >> digest(1000, 2000) << seen(3000)


def test_output_is_kept_until_it_was_compared() -> None:
    with Comparing() as t:
        t >> replica(0, 2000) << SILENT
        t >> from_client(ack=2000) << "pass [.] 0 ack 2000 wnd 500 ts 1001/7000000"
        assert t.shadow.output.outbound.start == 0
        t >> digest(0, 2000) << seen(2000)
        assert t.shadow.output.outbound.start == t.shadow.output.outbound.end == 2000


def test_date_is_counted_only() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t.differ(0, changed(0, 200, 50, 52))
        t << "log warning: output differs" << seen(200, 1)
        assert t.out.counters["difference"] == 1
        t >> from_client(ack=200) << "pass [.] 0 ack 200 wnd 500 ts 1001/7000000"
        t >> "takeover"
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.output.compare is None
        t.effects.clear()


def test_unacknowledged_difference_is_not_taken_over() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t.differ(0, changed(0, 200, 50))
        t << "log warning: output differs" << seen(200, 1)
        t >> from_client(ack=50) << "pass [.] 0 ack 50 wnd 500 ts 1001/7000000"
        t >> "takeover"
        assert t.shadow.state is Shadow.DEAD and "not acknowledged" in t.shadow.reason
        t << "kernel [R.] 0 ack 50 wnd 500 ts 1001/7000000"
        t << "client [R.] 50 ack 0 wnd 0" << "client [R.] 200 ack 0 wnd 0"  # wherever the client is


def test_difference_that_does_not_end_is_not_taken_over() -> None:
    with Comparing() as t:
        t >> replica(0, 40) << SILENT
        t.differ(0, changed(0, 40, *range(40)))
        t << "log warning: output differs" << seen(40, 1)
        t >> from_client(ack=40) << "pass [.] 0 ack 40 wnd 500 ts 1001/7000000"
        t >> "takeover"
        assert t.shadow.state is Shadow.DEAD and "encrypted or random" in t.shadow.reason
        t.effects.clear()


def test_noise_is_given_up_at_once() -> None:
    with Comparing() as t:
        t >> replica(0, 1200) << SILENT
        t.differ(0, changed(0, 1200, *range(1200)))
        t << "log warning: output differs"
        lost(t, "differs from byte 0 to 1200 (encrypted or random?)")


def test_bytes_that_the_primary_no_longer_has_count_as_different() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 200, changed(0, 200, 50)) << BytesAsked(1, server_seq(0), server_seq(200))
        t >> BytesSent(1, server_seq(0), b"") << "log warning: output differs" << seen(200, 1)
        assert t.shadow.output.compare is not None and not t.shadow.output.compare.in_step


def test_question_is_repeated_with_the_digest() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        question = BytesAsked(1, server_seq(0), server_seq(200))
        t >> digest(0, 200, changed(0, 200, 50)) << question
        t >> digest(0, 200, changed(0, 200, 50)) << question
        t >> BytesSent(1, server_seq(7), b"x" * 200)  # not what was asked for


@pytest.mark.parametrize(("ours", "theirs", "said"), [(130, 100, "30 bytes more"), (100, 130, "30 bytes less")])
def test_lengths_that_stay_different(ours: int, theirs: int, said: str) -> None:
    with Comparing(out_of_step_ms=1000) as t:
        t >> replica(0, ours) << SILENT
        t >> digest(0, theirs)
        t.effects.clear()
        t >> from_client(ack=theirs)
        t.effects.clear()
        t >> After(0.9)
        t.effects.clear()
        t >> After(0.2)
        lost(t, said)


def test_lengths_count_only_while_nothing_moves_and_the_client_has_it_all() -> None:
    with Comparing(out_of_step_ms=1000) as t:
        t >> replica(0, 130) << SILENT
        t >> digest(0, 100) << seen(100)
        for _ in range(3):  # the client has not acknowledged
            t >> After(1.1)
            t.effects.clear()
        t >> from_client(ack=100) << "pass [.] 0 ack 100 wnd 500 ts 1001/7000000"
        t >> After(0.5)
        t.effects.clear()
        t >> digest(100, 30) << seen(130)
        t >> After(2.0)
        t.effects.clear()
        assert t.shadow.state is Shadow.SHADOW


def test_end_is_not_told_before_a_difference_is_understood() -> None:
    from tests.support.transcript import asked

    with Comparing() as t:
        t >> replica(0, 130, flags="F.") << SILENT
        t >> digest(0, 100, changed(0, 100, *range(60, 100))) << BytesAsked(1, server_seq(0), server_seq(100))
        t >> asked(100)
        t >> BytesSent(1, server_seq(0), changed(0, 100, *range(60, 100)))
        t << "log warning: output differs" << seen(100, 1)
        t >> asked(100)
        lost(t, "differs from byte 60 on")


def test_end_that_is_not_compared_yet_is_told_later() -> None:
    from tests.support.transcript import replica_end

    with Comparing() as t:
        t >> replica(0, 130, flags="F.") << SILENT
        t >> After(0.051) << replica_end(130)
    with Comparing() as t:
        t >> replica(0, 130) << SILENT
        t >> digest(0, 130) << seen(130)
        t >> replica(130, flags="F.") << SILENT << replica_end(130)


def test_early_end_comes_of_the_difference_before_it() -> None:
    with Comparing() as t:
        t >> replica(0, 130, flags="F.") << SILENT
        t >> digest(0, 300, changed(0, 300, *range(300))) << BytesAsked(1, server_seq(0), server_seq(130))
        t >> BytesSent(1, server_seq(0), changed(0, 130, *range(130))) << "log warning: output differs"
        lost(t, "differs from byte 0 on (encrypted or random?)")


def test_what_the_primary_has_sent_is_withheld_until_it_was_compared() -> None:
    with Comparing() as t:
        t >> digest(0, 2000)
        t >> replica(0, 500) << SILENT
        t >> "takeover"
        assert [str(e) for e in t.effects] == ["client [.] 0 ack 0 wnd 10000 ts 2001060/1001"]
        t.effects.clear()
        t >> replica(500, 500) << "drop not-compared"
        t >> replica(1000, 280)
        assert str(t.effects.popleft()).startswith("client [P.] 0:1280") or t.effects
        t.effects.clear()
        t >> replica(1280, 800)
        assert t.shadow.output.compare is None
        t.effects.clear()


def test_other_bytes_than_the_primarys_never_follow_them() -> None:
    with Comparing() as t:
        t >> digest(0, 1000, changed(0, 1000, 900))
        t >> "takeover"
        t.effects.clear()
        t >> replica(0, 1000)
        t << "log warning: output differs" << "log error: connection lost its replica"
        assert not any(":" in str(effect) and "client" in str(effect) for effect in t.effects)
        assert t.shadow.state is Shadow.DEAD
        t.effects.clear()


def test_replica_that_never_completes_it_is_given_up() -> None:
    with Comparing(hole_deadline_ms=500) as t:
        t >> digest(0, 1000)
        t >> "takeover"
        t.effects.clear()
        t >> replica(0, 900)
        t.effects.clear()
        t >> After(0.6)
        t.effects.clear()
        t >> After(0.6)
        assert t.shadow.state is Shadow.DEAD and "does not complete" in t.shadow.reason
        t.effects.clear()


def test_strict_accepts_no_difference() -> None:
    with Comparing("strict") as t:
        t >> replica(0, 200) << SILENT
        t.differ(0, changed(0, 200, 50))
        t << "log warning: output differs"
        lost(t, "policy: strict")


def test_off_compares_nothing_and_stops_the_repeating() -> None:
    with Comparing("off") as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 300, bytes(300)) << seen(300)


# ---------------------------------------------------------------------------------------------- primary


class Digesting(GateTranscript):
    """A protected connection whose output is digested."""

    def __init__(self, policy: str = "default", **changes: Any) -> None:
        super().__init__(divergence=policy, **changes)
        self >> syn() << "pass"
        self >> syn_ack() << "drop syn-ack-held" << opening()
        self >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
        self >> confirmed(0, 40000)

    def flush(self) -> None:
        """The timer of the digests."""
        self >> After(FLUSH_S + 0.0001)
        if "query" in self.effects:
            self.effects.remove("query")


def test_segments_are_digested_together_after_a_moment() -> None:
    with Digesting() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        t >> server(100, 2000, wnd=10000, ts=TS) << "pass"
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"  # a retransmission
        t.flush()
        t << digest(0, 2100)
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
        t.side.stop_protecting("no backup")
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
            found = [e for e in t.effects if isinstance(e, Unprotected)]
            t.effects.clear()
            if found:
                assert "policy: strict" in found[0].reason
                return
        raise AssertionError("it has waited for ever")
