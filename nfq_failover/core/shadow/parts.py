"""The policy `strict` within a block of hashes.

The client gets only what both servers have sent, and a replica whose congestion window is full, or that waits for the
acknowledgement of a small segment (Nagle), goes on only if the client has got that. So the hashes of whole blocks are
not enough: what there is of a block is asked for, and told.
"""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.core.shadow.comparison import Comparison, differing_runs
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import DIGEST_BLOCK, BytesSent

PART_S = 0.02  # how long a part of a block waits for the rest of it


class Parts:
    """Compares parts of blocks. `numbers` are the connections by number; `ask` and `seen` tell the primary what is
    missing and what agrees, `diverged` gives a connection up."""

    def __init__(
        self,
        numbers: dict[int, ShadowConnection],
        ask: Callable[[ShadowConnection, tuple[int, int]], None],
        seen: Callable[[ShadowConnection, Comparison], None],
        diverged: Callable[[ShadowConnection, str, float], None],
    ) -> None:
        self._numbers = numbers
        self._ask = ask
        self._seen = seen
        self._diverged = diverged
        self._timers: TimerQueue[int] = TimerQueue()

    @staticmethod
    def _part(connection: ShadowConnection, compare: Comparison) -> tuple[int, int] | None:
        """What the replica has sent of the next block, and the primary does not know of."""
        if (
            compare.after
            or compare.asked is not None
            or not compare.pending
            or compare.pending[0][0] > compare.compared
        ):
            return None
        stop = min(connection.output.end, connection.output.outbound.end, compare.pending[0][1])
        start = max(compare.compared, compare.told)
        return (start, min(stop, start + DIGEST_BLOCK)) if stop > start else None

    def watch(self, connection: ShadowConnection, compare: Comparison, now: float) -> None:
        """Something was sent: if the rest of its block does not follow, ask for the part."""
        if self._part(connection, compare) is not None:
            self._timers.set_earlier(connection.conn, now + PART_S)

    def on_bytes(self, connection: ShadowConnection, compare: Comparison, record: BytesSent, now: float) -> None:
        """The bytes of a part have come."""
        start = connection.mapping.seen.offset(record.seq)
        end = start + len(record.data)
        known = max(compare.compared, compare.told)
        if compare.after or start > known or end <= known:
            return
        mine, theirs = connection.output.outbound.read(known, end - known), record.data[known - start :]
        if mine == theirs:
            compare.agrees_to(end)
            self._seen(connection, compare)
        elif len(mine) == len(theirs):
            at = known + differing_runs(mine, theirs)[0][0]
            self._diverged(connection, f"the replica's output differs at byte {at} (policy: strict)", now)

    def on_timer(self, now: float) -> None:
        """Ask for parts that have waited."""
        for conn in self._timers.pop_due(now):
            connection = self._numbers.get(conn)
            compare = None if connection is None else connection.output.compare
            if connection is None or compare is None or connection.state is not Shadow.SHADOW:
                continue
            if (part := self._part(connection, compare)) is not None:
                self._ask(connection, part)
                self._timers.set(conn, now + PART_S)

    def clear(self) -> None:
        """No more deadlines."""
        self._timers.clear()

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()
