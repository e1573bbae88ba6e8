"""The client's newest header: its window and its timestamps, which the segments that we build need."""

from __future__ import annotations

from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff
from nfq_failover.wire.tcp_options import SynOptions


class ClientHeader:
    """The newest header fields of one client, and what it said of itself in its SYN.

    `wnd` is the window field, `wscale` its shift, `widest` the largest window in bytes that the client has granted so
    far. `tsval` and `tsecr` are its newest timestamps, seen at `tsval_at`. `mss` is what fits into one segment to it.
    """

    __slots__ = ("_options", "mss", "tsecr", "tsval", "tsval_at", "widest", "wnd", "wscale")

    def __init__(self, opening: Open, now: float) -> None:
        offered = SynOptions.parse(opening.syn_options)
        self.wscale = (offered.wscale or 0) if opening.wscale is not None else 0
        self._options = 12 if opening.tsval is not None else 0
        self.mss = offered.mss - self._options
        self.wnd = opening.syn_wnd >> self.wscale  # a SYN's window is not scaled (RFC 7323 section 2.2)
        self.widest = max(opening.syn_wnd, 65535)
        self.tsval = offered.tsval or 0
        self.tsecr = opening.tsval or 0
        self.tsval_at = now

    def fit(self, mss: int) -> None:
        """Our own interface takes no longer segments than with this MSS, which does not count options (RFC 6691)."""
        self.mss = min(self.mss, mss - self._options)

    def note(self, seg: Segment, newest: bool, now: float) -> None:
        """Learn from a segment of the client. `newest`: it acknowledges no less than those before it."""
        if newest:
            self.wnd = wnd = seg.wnd
            if wnd << self.wscale > self.widest:
                self.widest = wnd << self.wscale
        if seg.ts_off and (diff(seg.tsval, self.tsval) >= 0 or now - self.tsval_at > PAWS_IDLE_S):
            self.tsval, self.tsecr, self.tsval_at = seg.tsval, seg.tsecr, now  # an older one would fail PAWS

    def window_from(self, told: int, ack: int, window: int) -> int:
        """The window field for a TCP of ours that is told `told` instead of the client's `ack`: the same right edge.

        Without it a replica that is behind would stand still at a client's closed window, though the client has all of
        what the replica has still to send.
        """
        unit = 1 << self.wscale
        return min(window + ((ack - told + unit - 1) >> self.wscale), 0xFFFF) if told < ack else window

    # ------------------------------------------------------------------------------------ after a restart

    @property
    def saved(self) -> tuple[int, int, int]:
        """What the checkpoint keeps, for `restore`."""
        return self.wnd, self.tsval, self.tsecr

    def restore(self, wnd: int, tsval: int, tsecr: int) -> None:
        """Go on with what was `saved`."""
        self.wnd, self.tsval, self.tsecr = wnd, tsval, tsecr
        self.widest = max(self.widest, wnd << self.wscale)

    def echoed(self, tsval: int) -> None:
        """Our TCP has echoed `tsval`: it is the newest of the client's that our TCP has taken."""
        self.tsval = tsval
