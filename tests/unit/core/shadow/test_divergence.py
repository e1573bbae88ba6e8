"""Comparing the two servers' output in the shadow: what is counted, what ends the protection, what is taken over."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

import pytest

from nfq_failover.core.events import Effect, Inject, Queue, Verdict
from nfq_failover.core.shadow.checkpoint import pack, unpack
from nfq_failover.core.shadow.comparison import AGREE_BYTES, Comparison, differing_runs
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.tcp.hashes import block_hashes, cut, make_marks
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    EDGE_BYTES,
    MAX_MARKS,
    BytesAsked,
    BytesSent,
    Fed,
)
from nfq_failover.wire.segment import Segment
from tests.support.gate import digest, seen
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import (
    After,
    server_bytes,
    server_seq,
    settings,
)


def changed(start: int, length: int, *places: int) -> bytes:
    """The replica's bytes, but for some places."""
    data = bytearray(server_bytes(start, length))
    for place in places:
        data[place - start] ^= 0x55
    return bytes(data)


class Comparing(Shadowing):
    """A connection in the shadow whose output is compared."""

    def __init__(self, policy: str = "default", **changes: object) -> None:
        self.raw: list[Effect] = []
        super().__init__(divergence=policy, **changes)

    def drain(self) -> None:
        self.raw += self.out.effects
        super().drain()

    def differ(self, start: int, data: bytes) -> None:
        """The primary has sent other bytes, of one block."""
        end = start + len(data)
        self >> digest(start, len(data), data) << BytesAsked(1, server_seq(start), server_seq(end))
        self >> BytesSent(1, server_seq(start), data)


def lost(t: Comparing, reason: str) -> None:
    """The connection is given up, loudly; its replica goes on getting input, and is told that its output is there."""
    assert t.effects.popleft() == "log warning: connection lost its replica"
    assert f"kernel [.] {t.shadow.inward.rcv_nxt} ack {t.shadow.output.snd_nxt} wnd 65535" in str(t.effects.popleft())
    record = t.effects.popleft()
    assert isinstance(record, Fed) and reason in record.reason, record
    assert t.shadow.state is Shadow.FED


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


@pytest.mark.parametrize("sizes", [(1,), (700, 1, 900), (DIGEST_BLOCK,) * 3, tuple(range(1, 50))])
def test_marks_have_all_bytes_and_are_not_too_many(sizes: tuple[int, ...]) -> None:
    data, cuts = server_bytes(0, sum(sizes)), [0, *accumulate(sizes)]
    pieces = [data[a:b] for a, b in pairwise(cuts)]
    marks = make_marks(pieces, 7)
    assert len(marks) <= MAX_MARKS and sum(mark.length for mark in marks) == len(data)
    assert len(sizes) > MAX_MARKS or tuple(mark.length for mark in marks) == sizes
    assert marks[0].head == make_marks([data[: min(EDGE_BYTES, marks[0].length)]], 7)[0].whole
    for size in (1, 600, len(data), len(data) + 1):
        parts = list(cut(pieces, size))
        assert b"".join(b"".join(part) for part in parts) == data
        assert {sum(map(len, part)) for part in parts[:-1]} <= {size} and all(all(map(len, part)) for part in parts)


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
        t << "log debug: output differs" << seen(200, 1)
        assert t.out.counters["difference"] == 1
        t >> from_client(ack=200) << "pass [.] 0 ack 200 wnd 500 ts 1001/7000000"
        t >> "takeover"
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.output.compare is None
        t.effects.clear()


def theirs(t: Comparing, start: int, data: bytes) -> list[tuple[int, int]]:
    """Take the effects; what was sent to the client: (offset, end), which have to be those of `data`."""
    sent = []
    for effect in t.raw:
        packet = effect.packet if isinstance(effect, Inject) and not effect.inward else None
        packet = effect.packet if isinstance(effect, Verdict) and effect.queue is Queue.OUT else packet
        if packet is not None:
            seg = Segment(bytearray(packet))
            assert seg.checksum_ok()
            at = t.shadow.mapping.seen.offset(seg.seq)
            assert seg.payload() == data[at - start : at - start + seg.payload_len], effect
            if seg.payload_len:
                sent.append((at, at + seg.payload_len))
    t.raw.clear()
    t.effects.clear()
    return sent


def test_client_goes_on_seeing_the_primarys_bytes() -> None:
    """They are resent, sent again by us, and by our TCP, whatever pieces it makes: never the replica's."""
    data = changed(0, 400, 50, 380)
    with Comparing() as t:
        t >> replica(0, 400) << SILENT
        t.differ(0, data)
        t << "log debug: output differs" << seen(400, 2)
        t >> from_client(ack=30) << "pass [.] 0 ack 30 wnd 500 ts 1001/7000000"
        t.raw.clear()
        t >> "takeover"
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.output.compare is None
        assert theirs(t, 0, data) == [(30, 400)]
        t >> After(0.4)
        assert theirs(t, 0, data) == [(30, 400)]
        for start, length in ((0, 400), (40, 20), (300, 100), (20, 100)):
            t >> replica(start, length)
            assert theirs(t, 0, data) == [(max(start, 30), start + length)]
        t >> from_client(ack=200)
        t.effects.clear()
        t >> replica(100, 300)
        assert theirs(t, 0, data) == [(200, 400)]
        after_restart = unpack(pack(t.shadow), settings(), t.now)  # nobody else has those bytes
        assert after_restart.state is Shadow.DEAD and "of the other server" in after_restart.reason
        t >> from_client(ack=400)
        t.effects.clear()
        assert unpack(pack(t.shadow), settings(), t.now).state is Shadow.ACTIVE


def test_strict_heals_nothing() -> None:
    with Comparing("strict") as t:
        t >> replica(0, 200) << SILENT
        t.differ(0, changed(0, 200, 50))
        t.effects.clear()
        assert not t.shadow.output.healed_to


def test_difference_that_does_not_end_is_not_taken_over() -> None:
    with Comparing() as t:
        t >> replica(0, 40) << SILENT
        t.differ(0, changed(0, 40, *range(40)))
        t << "log debug: output differs" << seen(40, 1, True)
        t >> from_client(ack=40) << "pass [.] 0 ack 40 wnd 500 ts 1001/7000000"
        t >> "takeover"
        assert t.shadow.state is Shadow.FED and "encrypted or random" in t.shadow.reason
        t.effects.clear()


def test_noise_is_given_up_at_once() -> None:
    with Comparing() as t:
        t >> replica(0, 1200) << SILENT
        t.differ(0, changed(0, 1200, *range(1200)))
        t << "log debug: output differs"
        lost(t, "differs from byte 0 to 1200 (encrypted or random?)")


def test_bytes_that_the_primary_no_longer_has_count_as_different() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 200, changed(0, 200, 50)) << BytesAsked(1, server_seq(0), server_seq(200))
        t >> BytesSent(1, server_seq(0), b"") << "log debug: output differs" << seen(200, 1)
        compare = t.shadow.output.compare  # nobody can say where, but for the tail
        assert compare is not None and compare.in_step and compare.last == (EDGE_BYTES, 200 - EDGE_BYTES)
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 200, changed(0, 200, 50, 190)) << BytesAsked(1, server_seq(0), server_seq(200))
        t >> BytesSent(1, server_seq(0), b"") << "log debug: output differs" << seen(200, 1, True)
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
        t << "log debug: output differs" << seen(100, 1, True)
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
        t >> BytesSent(1, server_seq(0), changed(0, 130, *range(130))) << "log debug: output differs"
        lost(t, "differs from byte 0 on (encrypted or random?)")


def test_what_the_primary_has_sent_is_withheld_until_it_was_compared() -> None:
    with Comparing() as t:
        t >> digest(0, 2000)
        t >> replica(0, 500) << SILENT
        t >> "takeover"
        t << "client [.] 0 ack 0 wnd 10000 ts 2001060/1001"
        t << "client [.] -1 ack 0 wnd 10000 ts 2001060/1001"  # what does the client have?
        t >> replica(500, 500) << "drop not-compared"
        t >> replica(1000, 280)
        assert str(t.effects.popleft()).startswith("client [P.] 0:1280") or t.effects
        t.effects.clear()
        t >> replica(1280, 800)
        assert t.shadow.output.compare is None
        t.effects.clear()


def late(t: Comparing, *places: int, ack: int = 0) -> None:
    """The primary has sent 1000 bytes, and died; then comes the replica's answer, which differs in some places."""
    t >> digest(0, 1000, changed(0, 1000, *places))
    t >> "takeover"
    t.effects.clear()
    if ack:
        t >> from_client(ack=ack)
        t.effects.clear()
    t >> replica(0, 1000)
    if ack < 968:
        assert not any(told(effect) for effect in t.effects)
    t.effects.clear()


def told(effect: object) -> bool:
    """Whether the client is sent bytes beyond those that agree at the beginning, or the byte that asks."""
    return re.search(r"client \S+ (?!-?\d+:(0|32|500|960) )-?\d+:", str(effect)) is not None


def test_other_bytes_than_the_primarys_never_follow_them() -> None:
    """The client has some of the primary's, or none: nobody knows."""
    for ack in (0, 500, 960):
        with Comparing(hole_deadline_ms=500) as t:
            late(t, 900, ack=ack)
            t >> replica(1000, 100) << "drop not-compared"
            for seconds in (0.3, 0.6, 0.6):
                t >> After(seconds)
                assert not any(told(effect) for effect in t.effects)
                t.effects.clear()
            assert t.shadow.state is Shadow.DEAD and "which the client may have" in t.shadow.reason


def test_client_that_has_all_of_the_primarys_bytes_goes_on() -> None:
    for ack in (968, 1000):  # the tail agrees
        with Comparing(hole_deadline_ms=500) as t:
            late(t, 100, 900, ack=ack)
            assert t.shadow.output.compare is None and t.shadow.state is Shadow.ACTIVE
            t >> replica(1000, 100)
            t.effects.clear()
            for seconds in (0.6, 0.6):
                t >> After(seconds)
                t.effects.clear()
            assert t.shadow.state is Shadow.ACTIVE


def test_client_says_later_what_it_has() -> None:
    with Comparing(hole_deadline_ms=500) as t:
        late(t, 900)
        t >> from_client(ack=1000)
        assert t.shadow.output.compare is None and t.shadow.state is Shadow.ACTIVE
        t.effects.clear()
        t >> replica(1000, 100)
        assert any("client [.] 1000:1100" in str(effect) or "1000:1100" in str(effect) for effect in t.effects)
        t.effects.clear()


def test_question_that_the_crash_has_swallowed() -> None:
    """The hashes have told that the block differs; its bytes have not come."""
    for ack, goes_on in ((200, True), (100, False)):
        with Comparing(hole_deadline_ms=500) as t:
            t >> replica(0, 200) << SILENT
            t >> digest(0, 200, changed(0, 200, 50)) << BytesAsked(1, server_seq(0), server_seq(200))
            t >> "takeover"
            t.effects.clear()
            t >> from_client(ack=ack)
            t.effects.clear()
            for seconds in (0.6, 0.6):
                t >> After(seconds)
                t.effects.clear()
            assert (t.shadow.state is Shadow.ACTIVE) is goes_on


def test_question_whose_block_differs_to_its_end_is_not_taken_over() -> None:
    with Comparing() as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 200, changed(0, 200, 199)) << BytesAsked(1, server_seq(0), server_seq(200))
        t >> from_client(ack=200)
        t.effects.clear()
        t >> "takeover"
        assert t.shadow.state is not Shadow.ACTIVE and "encrypted or random" in t.shadow.reason
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
        t << "log debug: output differs"
        lost(t, "policy: strict")


def test_off_compares_nothing_and_stops_the_repeating() -> None:
    with Comparing("off") as t:
        t >> replica(0, 200) << SILENT
        t >> digest(0, 300, bytes(300)) << seen(300)
