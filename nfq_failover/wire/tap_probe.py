"""The segment that tries the tap: for the service, and of no connection.

It is a reset without an ACK, from port 0, which no client has (RFC 6335 section 6): a TCP that has no such connection,
or that listens, lets it go without an answer (RFC 9293 section 3.10.7). Its TTL is `TTL`, by which the primary's rules
know it (iptables/primary.rules), so that a clone of it is never cloned again.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import RST
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.checksum import ipv4_header_checksum
from nfq_failover.wire.segment import Segment

TTL: Final = 2
PORT: Final = 0
_TTL_AT: Final = 8
_CHECKSUM = slice(10, 12)


def tap_probe(source: bytes, service: tuple[bytes, int], token: int) -> bytearray:
    """The IPv4 packet. `source` is the packed address of who sends it, `service` (packed address, port); `token`, 32
    bits, is its sequence number."""
    packet = build_segment((source, PORT), service, token, 0, RST, 0)
    packet[_TTL_AT] = TTL
    packet[_CHECKSUM] = bytes(2)
    packet[_CHECKSUM] = ipv4_header_checksum(packet[:20]).to_bytes(2)
    return packet


def is_probe(seg: Segment) -> bool:
    """Whether a segment is one."""
    return seg.sport == PORT and seg.flags == RST and not seg.payload_len
