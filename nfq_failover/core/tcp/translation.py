"""Translation between what the client sees (the primary's numbers) and the replica's own TCP.

Outward SEQ, TSval and window are mapped; inward ACK, SACK edges and TSecr. The client's own sequence space is common to
both hosts. Stream offsets of the server's direction are the same in both spaces, only their base differs.
"""

from __future__ import annotations

from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S, SeqSpace
from nfq_failover.core.tcp.window import window_field
from nfq_failover.wire.seqnum import MASK, diff

TS_SLACK_MS = 1000
"""Added once, at the takeover. The offset is known from two SYN-ACKs of which ours came later, by as much as a busy
host took; a TSval that jumps ahead harms nobody, one that falls is refused by the client (RFC 7323 section 5.3)."""
Blocks = list[tuple[int, int]]
Clock = tuple[int, int, int, float]  # offset, first and last TSval of the replica, when the last one was sent


class Translation:
    """The mapping of one connection, complete once the replica's SYN-ACK is known.

    `seen` is the server's stream as the client numbers it, `own` as the replica's TCP numbers it; `wscale` and
    `own_wscale` are the window shifts likewise. `told_edge`: the right window edge (offset in the client's stream) that
    the client has been promised.
    """

    __slots__ = (
        "_ts_first",
        "_ts_last",
        "_ts_last_at",
        "_ts_offset",
        "_ts_sent",
        "own",
        "own_wscale",
        "seen",
        "timestamps",
        "told_edge",
        "wscale",
    )

    def __init__(
        self, iss_seen: int, iss_own: int, wscale: int, own_wscale: int, ts: tuple[int, int] | None, now: float
    ) -> None:
        """`ts`: TSval of the primary's and of the replica's SYN-ACK, or None without timestamps."""
        self.seen = SeqSpace(iss_seen)
        self.own = SeqSpace(iss_own)
        self.wscale = wscale
        self.own_wscale = own_wscale
        self.timestamps = ts is not None
        seen_ts, own_ts = ts or (0, 0)
        self._ts_offset = (seen_ts - own_ts) & MASK
        self._ts_first = self._ts_last = own_ts
        self._ts_last_at = now
        self._ts_sent: int | None = None
        self.told_edge = 0

    # ------------------------------------------------------------------------------------ timestamps

    def note_own_tsval(self, tsval: int, now: float) -> None:
        """The replica's TCP has sent this TSval."""
        if diff(tsval, self._ts_last) >= 0 or now - self._ts_last_at > PAWS_IDLE_S:
            self._ts_last, self._ts_last_at = tsval, now

    def note_seen_tsecr(self, tsecr: int, now: float) -> None:
        """The client echoes a TSval of the primary: our mapped clock must not be behind it."""
        behind = diff(tsecr, (self.own_clock(now) + self._ts_offset) & MASK)
        if behind > 0 and self._ts_sent is None:
            self._ts_offset = (self._ts_offset + behind) & MASK

    def own_tsecr(self, tsecr: int) -> int:
        """TSecr for the replica, clamped to TSvals that it has sent (others are rejected)."""
        own = (tsecr - self._ts_offset) & MASK
        if diff(own, self._ts_first) < 0:
            return self._ts_first
        return self._ts_last if diff(own, self._ts_last) > 0 else own

    def seen_tsval(self, tsval: int) -> int:
        """TSval for the client; never falls."""
        seen = (tsval + self._ts_offset) & MASK
        if self._ts_sent is not None and diff(seen, self._ts_sent) < 0:
            return self._ts_sent
        self._ts_sent = seen
        return seen

    def newest_tsval(self, tsval: int) -> int:
        """The newest TSval that the client was sent; `tsval`, which it was sent, too, if that is not known."""
        return tsval if self._ts_sent is None else self._ts_sent

    def take_over(self, told_edge: int) -> None:
        """From now on the client hears us: cover what the estimate may lack. `told_edge`: see the class."""
        self._ts_offset = (self._ts_offset + TS_SLACK_MS) & MASK
        self.told_edge = told_edge

    @property
    def clock(self) -> Clock:
        """What the timestamps are mapped by, for `restore`."""
        return self._ts_offset, self._ts_first, self._ts_last, self._ts_last_at

    def restore(self, clock: Clock, told_edge: int, now: float) -> None:
        """Go on with what `clock` was on the same host: its clock has run on. What the client was sent last is not
        known, so from now on it is sent nothing older than the present. `told_edge`: see the class."""
        self.told_edge = told_edge
        self._ts_offset, self._ts_first, self._ts_last, self._ts_last_at = clock
        self._ts_last, self._ts_last_at = self.own_clock(now), now
        self._ts_sent = (self._ts_last + self._ts_offset) & MASK

    def own_clock(self, now: float) -> int:
        """The replica's TSval clock, which ticks in milliseconds (RFC 7323 section 5.4; Linux: 1 ms)."""
        return (self._ts_last + int((now - self._ts_last_at) * 1000)) & MASK

    # ------------------------------------------------------------------------------------ sequence, window

    def own_sack(self, blocks: Blocks, snd_nxt: int) -> Blocks:
        """The client's SACK blocks for the replica, cut to what it has sent (an offset)."""
        mapped: Blocks = []
        for left_seq, right_seq in blocks:
            left, right = self.seen.offset(left_seq), min(self.seen.offset(right_seq), snd_nxt)
            if left < right:
                mapped.append((self.own.seq(left), self.own.seq(right)))
        return mapped

    def seen_window(self, ack: int, edge: int) -> int:
        """The window field to send with `ack` for a right edge of `edge`; the edge sent never moves left."""
        window = window_field(ack, edge, self.told_edge, self.wscale)
        self.told_edge = max(self.told_edge, ack + (window << self.wscale))
        return window
