"""Sequence number arithmetic modulo 2^32 (RFC 9293 section 3.4, RFC 1982).

Sequence numbers are never compared as ints.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000


def add(seq: int, n: int) -> int:
    """`seq + n` (n may be negative) modulo 2^32."""
    return (seq + n) & MASK


def diff(a: int, b: int) -> int:
    """Signed distance from `b` to `a`, in [-2^31, 2^31)."""
    return ((a - b + HALF) & MASK) - HALF


def lt(a: int, b: int) -> bool:
    """`a` is before `b`."""
    return ((a - b) & MASK) >= HALF


def le(a: int, b: int) -> bool:
    """`a` is before or at `b`."""
    return a == b or ((a - b) & MASK) >= HALF


def later(a: int, b: int) -> int:
    """The later of two sequence numbers."""
    return b if lt(a, b) else a


def earlier(a: int, b: int) -> int:
    """The earlier of two sequence numbers."""
    return a if le(a, b) else b


def unwrap(seq: int, near: int) -> int:
    """The unbounded integer congruent to `seq` modulo 2^32 that is closest to `near` (which is unbounded itself)."""
    return near + diff(seq, near & MASK)
