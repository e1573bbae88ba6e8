"""How far the two outputs of one connection have been compared (see divergence.py for what follows from it)."""

from __future__ import annotations

import re
from bisect import bisect_left

from nfq_failover.wire.records import MAX_UNSEEN, Mark

AGREE_BYTES = 16
"""By chance 16 random bytes are equal once in 2**128; what follows an HTTP date (`GMT`, the next header) is longer."""
KEEP_BYTES = 1 << 20  # of output that the client has acknowledged and the primary has still to digest
MAX_PENDING = MAX_UNSEEN + 64

_RUNS = re.compile(rb"[^\0](?:\0{0,%d}[^\0])*" % (AGREE_BYTES - 1))


def differing_runs(one: bytes, other: bytes) -> list[tuple[int, int]]:
    """Where two byte strings of one length differ, as [start, stop); nearer than `AGREE_BYTES` to each other is one."""
    mixed = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return [match.span() for match in _RUNS.finditer(mixed.to_bytes(len(one), "big"))]


class Comparison:
    """How far one connection's two outputs have been compared; offsets of the server's stream.

    `compared`: first byte that is not, which never goes back: loops end because of that; `told`: up to where the
    primary knows that they agree, with the policy `strict` perhaps within a block; `sent`: what the primary is known to
    have sent; `pending`: digests that are not used up (start, end, hashes, marks), in order; `last`: the
    latest difference; `asked`: bytes that the primary is asked for; `doubts`: where its bytes are other ones than we
    have, or may be: a client that has the first of them must have all of them from it. `client_end`: after a takeover
    the client has said that it has nothing of the primary's from there on. `asked_at`: where the client, which then has
    everything before it, was asked for that, the first time at the time `asked_since`.
    """

    __slots__ = (
        "after",
        "asked",
        "asked_at",
        "asked_since",
        "client_end",
        "compared",
        "differences",
        "doubts",
        "last",
        "pending",
        "sent",
        "started",
        "told",
        "watched",
        "watched_at",
    )

    def __init__(self) -> None:
        self.started = False
        self.after = False  # the primary can't be asked any more
        self.compared = self.told = self.sent = 0
        self.pending: list[tuple[int, int, tuple[int, ...], tuple[Mark, ...]]] = []
        self.doubts: list[tuple[int, int]] = []
        self.client_end: int | None = None
        self.asked_at: int | None = None
        self.asked_since = 0.0
        self.last: tuple[int, int] | None = None
        self.differences = 0
        self.asked: tuple[int, int] | None = None
        self.watched: tuple[int, int] | None = None  # what both had sent when the deadline was set
        self.watched_at = 0.0

    # ------------------------------------------------------------------------------------ questions to the primary

    def ask(self, start: int, stop: int) -> tuple[int, int]:
        """The primary is asked for the bytes [start, stop), which differ; `compared` waits there. Returns them."""
        self.asked = block = start, stop
        return block

    def answered(self) -> None:
        """The bytes that were asked for have come, or will not."""
        self.asked = None

    def tell(self) -> int:
        """The primary is told that the outputs agree, up to the offset that is returned."""
        self.told = max(self.told, self.compared)
        return self.told

    def agrees_to(self, offset: int) -> None:
        """Within a block, everything before `offset` agrees."""
        self.told = offset

    def watch(self, state: tuple[int, int] | None, now: float) -> None:
        """A deadline was set, or is off (None); `state` is what is to have changed by then."""
        self.watched, self.watched_at = state, now

    def primary_is_gone(self) -> None:
        """The primary can't be asked from now on, and what has no hashes will never be compared."""
        self.after = True
        self.pending = [entry for entry in self.pending if entry[2]]

    def forget_pending(self) -> None:
        """Nothing is compared any more."""
        self.pending.clear()

    # ------------------------------------------------------------------------------------ what was compared

    def advance(self, offset: int) -> None:
        """Everything before `offset` was compared."""
        self.compared = max(self.compared, offset)

    def needed(self, snd_nxt: int) -> int:
        """The first byte of the replica's output that has to be kept."""
        if self.after and not self.pending:
            return snd_nxt
        return max(self.compared, snd_nxt - KEEP_BYTES)

    @property
    def in_step(self) -> bool:
        """The latest difference has ended."""
        return self.last is None or self.compared - self.last[1] >= AGREE_BYTES

    def add(self, start: int, end: int, hashes: tuple[int, ...], marks: tuple[Mark, ...]) -> bool:
        """A digest has come. False if there is no room for it."""
        self.started = True
        self.sent = max(self.sent, end)
        pending = self.pending
        if end <= self.compared or start < self.compared:
            return True
        at = bisect_left(pending, start, key=lambda entry: entry[0])
        if (at < len(pending) and pending[at][0] < end) or (at and pending[at - 1][1] > start):
            return True  # it is there
        if len(pending) >= MAX_PENDING:
            return False
        pending.insert(at, (start, end, hashes, marks))
        return True

    def differs(self, start: int, stop: int) -> bool:
        """These bytes differ. True if that is a new difference."""
        if self.last is not None and start - self.last[1] < AGREE_BYTES:
            self.last = self.last[0], stop
            return False
        self.last = start, stop
        self.differences += 1
        return True

    def doubt(self, start: int, stop: int) -> None:
        """The primary's bytes [start, stop) are not known, and are not the replica's."""
        if self.client_end is None or start < self.client_end:
            self.doubts.append((start, stop))

    def client_has(self, ack: int) -> None:
        """The client has everything before `ack`."""
        if self.doubts:
            self.doubts = [doubt for doubt in self.doubts if doubt[1] > ack]

    def ask_client(self, ack: int, now: float) -> bool:
        """The client has everything before `ack`, and is to be asked what it has beyond. False: it was asked there."""
        if self.asked_at is None:
            self.asked_since = now
        news, self.asked_at = ack != self.asked_at, ack
        return news

    def client_ends(self, ack: int) -> None:
        """The client has everything before `ack`, and nothing beyond: it gets all of that from us."""
        self.client_end = ack
        self.doubts = [doubt for doubt in self.doubts if doubt[0] < ack]

    @property
    def trusted(self) -> int:
        """What the client may be sent: everything before this was compared, and what differed is the primary's."""
        return min(self.doubts[0][0], self.compared) if self.doubts else self.compared

    def skip(self, stop: int) -> None:
        """The bytes up to `stop` can't be compared: they end no difference."""
        if stop <= self.compared:
            return
        if not self.in_step and self.last is not None:
            self.last = self.last[0] + stop - self.last[1], stop
        self.compared = stop
