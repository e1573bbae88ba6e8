"""One direction of a connection as unbounded stream offsets instead of 32-bit sequence numbers."""

from __future__ import annotations

from typing import Final

from nfq_failover.wire.seqnum import HALF, MASK

_WRAP: Final = 1 << 32
PAWS_IDLE_S: Final = 2147.0
"""An older timestamp than this tells nothing about a segment (RFC 7323 section 5.5): a clock in microseconds may have
gone half its way round. One in milliseconds does in 24 days, so does Linux before 6.7 (TCP_PAWS_WRAP)."""


class SeqSpace:
    """Converts between sequence numbers and stream offsets.

    Offset 0 is the first data byte (initial sequence number + 1); the SYN is at -1. `near` is the offset around which
    incoming sequence numbers are unwrapped: the owner calls `follow`, and anything within 2^31 of it converts exactly.
    Offsets are plain integers and may be compared as such.
    """

    __slots__ = ("base", "near")

    def __init__(self, initial_seq: int) -> None:
        self.base = (initial_seq + 1) & MASK
        self.near = 0

    def follow(self, offset: int) -> None:
        """The stream has come to `offset`: numbers are unwrapped around it from now on."""
        self.near = offset

    def offset(self, seq: int) -> int:
        """The offset of `seq`."""
        d = (seq - self.base - self.near) & MASK
        return self.near + (d if d < HALF else d - _WRAP)

    def seq(self, offset: int) -> int:
        """The sequence number at `offset`."""
        return (self.base + offset) & MASK
