"""Where the two servers differ, and the primary can't tell the bytes any more: a replica that was late."""

from __future__ import annotations

from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.records import DIGEST_BLOCK, BytesAsked, BytesSent
from tests.support.gate import digest, seen
from tests.support.shadow import SILENT, from_client, replica
from tests.support.transcript import server_seq
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


def test_two_blocks_that_are_not_known_are_a_reason() -> None:
    with Comparing() as t:
        t >> replica(0, 2 * DIGEST_BLOCK) << SILENT
        data = changed(0, 2 * DIGEST_BLOCK, 50, DIGEST_BLOCK + 50)
        t >> digest(0, 2 * DIGEST_BLOCK, data) << BytesAsked(1, server_seq(0), server_seq(1280))
        t >> BytesSent(1, server_seq(0), b"") << "log debug: output differs"
        t << BytesAsked(1, server_seq(1280), server_seq(2560)) << seen(1280, 1, True)
        t >> BytesSent(1, server_seq(1280), b"")
        lost(t, "differs from byte 0 to 2496 (encrypted or random?)")


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
