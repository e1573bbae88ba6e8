"""Where the two servers differ, and the primary can't tell the bytes any more: a replica that was late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.records import DIGEST_BLOCK, EDGE_BYTES, BytesAsked, BytesSent
from tests.support.gate import digest, seen
from tests.support.shadow import SILENT, from_client, replica
from tests.support.transcript import SEEN_TS, After, server_bytes, server_seq
from tests.unit.core.shadow.test_divergence import Comparing, changed, lost


def test_block_that_is_not_known_is_no_reason_if_the_next_one_agrees() -> None:
    """A replica that is far behind finds a different date, and nobody can say any more that it is only that."""
    with Comparing() as t:
        t >> replica(0, 5 * DIGEST_BLOCK) << SILENT
        (
            t
            >> digest(0, 5 * DIGEST_BLOCK, changed(0, 5 * DIGEST_BLOCK, 50))
            << BytesAsked(1, server_seq(0), server_seq(1280))
        )
        t >> BytesSent(1, server_seq(0), b"") << "log debug: output differs" << seen(5 * DIGEST_BLOCK, 1)
        assert t.shadow.output.compare is not None and t.shadow.output.compare.in_step
        assert t.shadow.state is Shadow.SHADOW


def test_three_blocks_that_are_not_known_are_a_reason() -> None:
    """A few bytes may lie in two of them."""
    with Comparing() as t:
        t >> replica(0, 3 * DIGEST_BLOCK) << SILENT
        data = changed(0, 3 * DIGEST_BLOCK, 50, DIGEST_BLOCK + 50, 2 * DIGEST_BLOCK + 50)
        t >> digest(0, 3 * DIGEST_BLOCK, data) << BytesAsked(1, server_seq(0), server_seq(1280))
        t >> BytesSent(1, server_seq(0), b"") << "log debug: output differs"
        t << BytesAsked(1, server_seq(1280), server_seq(2560)) << seen(1280, 1, True)
        t >> BytesSent(1, server_seq(1280), b"")
        t << BytesAsked(1, server_seq(2560), server_seq(3840)) << seen(2560, 1, True)
        t >> BytesSent(1, server_seq(2560), b"")
        lost(t, "differs from byte 32 to 3808 (encrypted or random?)")


def test_digests_beyond_what_was_kept_come_to_an_end_at_a_takeover() -> None:
    """The replica has sent more than there was room for, and the client has it from the primary. The digests of it are
    lost with the primary; those that are there begin beyond."""
    with Comparing(max_unacked_bytes=2 * DIGEST_BLOCK) as t:
        t >> digest(0, DIGEST_BLOCK)
        for at in range(0, 8 * DIGEST_BLOCK, DIGEST_BLOCK):
            t >> replica(at, DIGEST_BLOCK)
            t.effects.clear()
        for at in (10 * DIGEST_BLOCK, 11 * DIGEST_BLOCK):
            t >> digest(at, DIGEST_BLOCK)
        t >> from_client(ack=8 * DIGEST_BLOCK)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        compare = t.shadow.output.compare
        assert compare is not None and compare.compared == 10 * DIGEST_BLOCK
        for at in range(8 * DIGEST_BLOCK, 12 * DIGEST_BLOCK, DIGEST_BLOCK):
            t >> replica(at, DIGEST_BLOCK)
            t.effects.clear()
            t >> from_client(ack=at + DIGEST_BLOCK)
            t.effects.clear()
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.output.compare is None


def test_what_was_compared_never_goes_back() -> None:
    compare = Comparison()
    compare.skip(100)
    compare.skip(50)
    compare.advance(70)
    assert compare.compared == 100


# ---------------------------------------------------------------------------------------------- after a takeover

ANSWER = 839  # bytes of an answer, which has a date in it
DATE = 70  # where


def does(t: Comparing, *inputs: object) -> str:
    """What comes of inputs, one after the other."""
    found = []
    for each in inputs:
        t >> each
        found += list(map(str, t.effects))
        t.effects.clear()
    return "\n".join(found)


def dates(count: int) -> tuple[bytes, tuple[int, ...]]:
    """Answers of another second, and where the segments begin that they were sent in."""
    cuts = tuple(at * ANSWER for at in range(1, count))
    return changed(0, count * ANSWER, *(at * ANSWER + DATE for at in range(count))), cuts


def crashed(t: Comparing, count: int, ack: int, together: int = 2) -> str:
    """The primary has sent that many answers, has told of several of them together, and died. The client tells that it
    has the bytes before `ack`, and then the replica, which was late, gives its answers: what comes of them."""
    data, cuts = dates(count)
    for at in range(0, count, together):
        left, right = at * ANSWER, min(at + together, count) * ANSWER
        t >> digest(left, right - left, data[left:right], cuts=tuple(cut for cut in cuts if left < cut < right))
    does(t, "takeover")
    if ack:
        does(t, from_client(ack=ack))
    return does(t, *(replica(at * ANSWER, ANSWER) for at in range(count)))


@pytest.mark.parametrize("together", [1, 2, 4, 40])
def test_replica_that_is_many_answers_late_goes_on_for_a_client_that_has_them(together: int) -> None:
    """Each answer has another date, and nobody can be asked: but all that is around the dates agrees."""
    with Comparing() as t:
        crashed(t, 40, 40 * ANSWER, together)
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.output.compare is None


def test_client_that_has_nothing_of_an_answer_gets_all_of_it_from_the_replica() -> None:
    """It is asked by a byte that it has, and answers with that byte's selective acknowledgement."""
    with Comparing(hole_deadline_ms=500) as t:
        at = 2 * ANSWER + EDGE_BYTES  # what agrees at the beginning of the answer is sent without a question
        assert f" {2 * ANSWER}:{at} " in crashed(t, 4, 2 * ANSWER)
        assert f"client [.] {at - 1}:{at} " in does(t, from_client(ack=at))
        assert "client" not in does(t, from_client(ack=at, ts=(1002, SEEN_TS)))  # from before the question
        assert f" {at}:{at + 1448} " in does(t, from_client(ack=at, sack=((at - 1, at),)))
        assert t.shadow.output.compare is None
        does(t, After(0.6))
        assert t.shadow.state is Shadow.ACTIVE


def test_what_the_client_has_said_counts_for_what_the_replica_says_later() -> None:
    with Comparing() as t:
        data, cuts = dates(6)
        t >> digest(0, 6 * ANSWER, data, cuts=cuts)
        does(t, "takeover", *(replica(at * ANSWER, ANSWER) for at in range(2)))
        asked = does(t, from_client(ack=EDGE_BYTES))
        assert f" {EDGE_BYTES - 1}:{EDGE_BYTES} " in asked
        does(t, from_client(ack=EDGE_BYTES, sack=((EDGE_BYTES - 1, EDGE_BYTES),)))
        does(t, *(replica(at * ANSWER, ANSWER) for at in range(2, 6)))
        assert t.shadow.output.compare is None and t.shadow.state is Shadow.ACTIVE


@pytest.mark.parametrize(
    ("ack", "sack"), [(EDGE_BYTES, (200, 839)), (EDGE_BYTES, (839, 1678)), (400, (399, 400)), (50, (49, 50))]
)
def test_client_that_has_a_part_of_the_primarys_bytes_is_reset(ack: int, sack: tuple[int, int]) -> None:
    """In a difference, or beyond a hole, it has what the replica's answer does not continue."""
    with Comparing(hole_deadline_ms=500) as t:
        crashed(t, 2, ack)
        for _ in range(5):
            told = does(t, After(0.3), from_client(ack=ack, sack=((ack - 1, ack), sack)))
            assert t.shadow.state is Shadow.DEAD or f" {ack}:" not in told
        assert t.shadow.state is Shadow.DEAD and "which the client may have" in t.shadow.reason


def test_client_that_knows_no_duplicate_acknowledgements_is_believed_later() -> None:
    """By then what it had sent before the takeover has been dealt with."""
    with Comparing(hole_deadline_ms=1000) as t:
        crashed(t, 2, EDGE_BYTES)
        for _ in range(2):
            assert f" {EDGE_BYTES}:" not in does(t, After(0.2), from_client(ack=EDGE_BYTES))
        assert f" {EDGE_BYTES}:{EDGE_BYTES + 1448} " in does(t, After(0.2), from_client(ack=EDGE_BYTES))
        assert t.shadow.output.compare is None


def test_without_selective_acknowledgements_nobody_knows_what_a_client_has() -> None:
    with Comparing(hole_deadline_ms=500) as t:
        t.shadow.open = replace(t.shadow.open, sack_permitted=False)
        crashed(t, 2, EDGE_BYTES)
        does(t, *[each for _ in range(5) for each in (After(0.3), from_client(ack=EDGE_BYTES))])
        assert t.shadow.state is Shadow.DEAD


def test_answers_of_other_lengths_are_not_taken_over() -> None:
    """Where one server has written a byte more, nothing agrees any more, whatever its client has."""
    with Comparing(hole_deadline_ms=500) as t:
        data = server_bytes(0, 100) + b"x" + server_bytes(100, 5 * ANSWER)
        t >> digest(0, 5 * ANSWER, data[: 5 * ANSWER], cuts=tuple(ANSWER * at + 1 for at in range(1, 5)))
        does(t, "takeover", from_client(ack=5 * ANSWER), *(replica(at * ANSWER, ANSWER) for at in range(5)), After(0.6))
        assert t.shadow.state is not Shadow.ACTIVE and "encrypted or random" in t.shadow.reason
