"""Bytes of the primary that differ from the replica's, and that nobody can tell any more: the crash has swallowed them.

Two things are known all the same. The digest's marks say where in a block they differ, up to the ends of the segments
that the server had sent: what agrees at either end of one shows that no difference goes on there, so both streams are
equally long. And the client knows what it has: all of the primary's bytes, so that it needs none of the replica's, or
nothing of them, so that it gets all from the replica. It is asked by a byte that it has; the answer is known by the
selective acknowledgement of just this byte (RFC 2883), or by the time that has passed since the takeover.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.connection import ShadowConnection
from nfq_failover.core.tcp.hashes import short_hash
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.wire.records import EDGE_BYTES, Mark
from nfq_failover.wire.segment import Segment

Run = tuple[int, int]


def differing(output: Journal, first: int, marks: tuple[Mark, ...], block: Run, seed: int) -> list[Run]:
    """Where a block differs, which is known to: runs of it, at least one. `marks` begin at the offset `first`."""
    start, end = block
    runs: list[Run] = []
    at = start
    for left, right in _agreeing(output, first, marks, block, seed):
        if left > at:
            runs.append((at, min(left, end)))
        at = max(at, right)
    if at < end:
        runs.append((at, end))
    return runs or [block]  # by chance


def _agreeing(output: Journal, first: int, marks: tuple[Mark, ...], block: Run, seed: int) -> Iterator[Run]:
    """The parts of the marks that reach into a block and agree, in order."""
    at = first
    for mark in marks:
        left, right = at, at + mark.length
        at = right
        if right <= block[0] or left >= block[1]:
            continue
        edge = min(EDGE_BYTES, mark.length)
        if _hash(output, left, right, seed) == mark.whole:
            yield left, right
            continue
        if _hash(output, left, left + edge, seed) == mark.head:
            yield left, left + edge
        if _hash(output, right - edge, right, seed) == mark.tail:
            yield right - edge, right


def _hash(output: Journal, start: int, end: int, seed: int) -> int | None:
    """The hash of the replica's bytes; None if they are not all there."""
    data = output.read(start, end - start)
    return short_hash(data, seed) if len(data) == end - start else None


def ask(connection: ShadowConnection, compare: Comparison, out: Outbox, now: float) -> None:
    """Ask the client what it has, if nothing can be sent before that is known."""
    snd_una = connection.output.snd_una
    if connection.heard and compare.doubts and compare.trusted <= snd_una and compare.ask_client(snd_una, now):
        connection.resending.probe(connection.mapping, out, now)


def hear(
    connection: ShadowConnection, compare: Comparison, seg: Segment, ack: int, patience_s: float, now: float
) -> bool:
    """The client acknowledges everything before `ack`. Returns whether it thereby says that it has nothing beyond."""
    asked_at = compare.asked_at
    if asked_at is None or not compare.doubts or not connection.open.sack_permitted:
        return False  # without selective acknowledgements nobody knows what it has beyond a hole
    offset = connection.seen.offset
    blocks = [(offset(left), offset(right)) for left, right in seg.sack]
    if any(right > ack for _, right in blocks):
        return False  # it has something of the primary's there
    return (asked_at - 1, asked_at) in blocks or now - compare.asked_since >= patience_s
