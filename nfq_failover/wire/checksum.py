"""The Internet checksum (RFC 1071) over whole packets.

numpy sums super-segments, where it is installed: 64 KiB in 6 us instead of 64 (docs/results/install.md). Packets of the
wire's size cost the same without.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import IPPROTO_TCP

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview

_NUMPY_BYTES: Final = 1536  # from here on numpy is the faster one
_CHUNK_BYTES: Final = 512  # even; integers of this size are summed fastest


def ones_sum(data: Buffer) -> int:
    """One's complement sum of big-endian 16-bit words, folded to 16 bits; an odd last byte is padded with zero."""
    if np is not None and len(data) >= _NUMPY_BYTES:
        return _numpy_sum(data)
    return _integer_sum(data)


def _integer_sum(data: Buffer) -> int:
    n = len(data)
    if n & 1:
        data = bytes(data) + b"\0"
    if n <= _CHUNK_BYTES:
        total = int.from_bytes(data, "big")
    else:
        total = 0
        for i in range(0, n, _CHUNK_BYTES):
            total += int.from_bytes(data[i : i + _CHUNK_BYTES], "big")
    # 2^16 = 1 (mod 65535): the number itself modulo 65535 is the folded sum (0 and 65535 are the same value, but only
    # the all-zero input sums to 0).
    return (total % 65535) or (65535 if total else 0)


def _numpy_sum(data: Buffer) -> int:
    words = len(data) >> 2
    total = int(np.frombuffer(data, dtype="<u4", count=words).sum(dtype=np.uint64))
    total = (total & 0xFFFFFFFF) + (total >> 32)
    total = (total & 0xFFFF) + ((total >> 16) & 0xFFFF) + (total >> 32)
    tail = bytes(data[words << 2 :])
    if tail:
        tail += b"\0" * (-len(tail) & 1)
        total += sum(int.from_bytes(tail[i : i + 2], "little") for i in range(0, len(tail), 2))
    # Ends: what is folded gets smaller.
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ((total & 0xFF) << 8) | (total >> 8)


def tcp_sum(packet: Buffer, addresses: Buffer, tcp_offset: int, end: int) -> int:
    """Folded sum of pseudo header (RFC 9293 section 3.1; RFC 8200 section 8.1 has the same sum) and segment."""
    with memoryview(packet) as view, view[tcp_offset:end] as segment:
        total = ones_sum(segment) + ones_sum(addresses) + IPPROTO_TCP + (end - tcp_offset)
    # Ends: what is folded gets smaller.
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4_header_checksum(header: Buffer) -> int:
    """The checksum to store in a header whose checksum field is zero."""
    return ~ones_sum(header) & 0xFFFF
