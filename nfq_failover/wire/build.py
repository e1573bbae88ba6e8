"""Building a whole, sealed TCP packet."""

from __future__ import annotations

from struct import Struct

from nfq_failover.constants import IPPROTO_TCP, OPT_NOP, OPT_SACK, OPT_TIMESTAMPS
from nfq_failover.wire.checksum import ipv4_header_checksum, tcp_sum

_IPV4 = Struct("!BBHHHBBH4s4s")
_TCP = Struct("!HHIIBBHHH")
_TS = Struct("!BBBBII")
_2U32 = Struct("!II")
_U16 = Struct("!H")
_DONT_FRAGMENT = 0x4000
_TTL = 64


def ack_options(timestamps: tuple[int, int] | None, sack: list[tuple[int, int]]) -> bytes:
    """Timestamps (TSval, TSecr) and SACK blocks, padded as RFC 7323 appendix A recommends."""
    out = b""
    if timestamps is not None:
        out = _TS.pack(OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10, *timestamps)
    if sack:
        sack = sack[: (40 - len(out) - 4) // 8]
        out += bytes((OPT_NOP, OPT_NOP, OPT_SACK, 2 + 8 * len(sack)))
        out += b"".join(_2U32.pack(left, right) for left, right in sack)
    return out


def build_segment(
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    seq: int,
    ack: int,
    flags: int,
    wnd: int,
    options: bytes = b"",
    payload: bytes = b"",
) -> bytearray:
    """An IPv4 packet with right checksums. `source` and `destination` are (packed address, port); `options` must be a
    multiple of four bytes long."""
    total = 40 + len(options) + len(payload)
    packet = bytearray(40)
    _IPV4.pack_into(packet, 0, 0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, IPPROTO_TCP, 0, source[0], destination[0])
    _U16.pack_into(packet, 10, ipv4_header_checksum(packet[:20]))
    offset = (20 + len(options)) << 2
    _TCP.pack_into(packet, 20, source[1], destination[1], seq, ack, offset, flags, wnd, 0, 0)
    packet += options
    packet += payload
    _U16.pack_into(packet, 36, ~tcp_sum(packet, source[0] + destination[0], 20, total) & 0xFFFF)
    return packet
