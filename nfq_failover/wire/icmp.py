"""An ICMP error and the TCP segment that it quotes: parsed once, valid or refused, and changed in place."""

from __future__ import annotations

from struct import Struct

from nfq_failover.constants import IPPROTO_ICMP, IPPROTO_TCP
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.checksum import ipv4_header_checksum, ones_sum

_U16 = Struct("!H")
_PORTS_SEQ = Struct("!HHI")
_IPV4 = Struct("!BBHHHBBH4s4s")
_ICMP = Struct("!BBHI")
_DONT_FRAGMENT = 0x4000
_TTL = 64
UNREACHABLE = 3  # RFC 792
HOST_UNREACHABLE = 1  # its code
FRAGMENTATION_NEEDED = 4  # its code; RFC 1191 section 4


def is_icmp(packet: bytearray) -> bool:
    """Whether an IPv4 packet carries ICMP."""
    return len(packet) >= 20 and packet[0] >> 4 == 4 and packet[9] == IPPROTO_ICMP


class IcmpError:
    """A destination-unreachable message (RFC 792) about a TCP segment that one of our hosts has sent.

    `src`, `sport`, `dst`, `dport` and `seq` are the quoted segment's, `code` is the message's. A router need quote only
    8 bytes of it: ports and SEQ.
    """

    __slots__ = ("_icmp_off", "_seq_off", "buf", "code", "dport", "dst", "end", "seq", "sport", "src")

    def __init__(self, buf: bytearray) -> None:
        """Parse. Raises `MalformedSegment`."""
        if not is_icmp(buf):
            raise MalformedSegment("not-icmp")
        icmp = (buf[0] & 15) << 2
        self.end = (buf[2] << 8) | buf[3]
        quoted = icmp + 8
        if icmp < 20 or self.end > len(buf) or self.end < quoted + 28:
            raise MalformedSegment("bad-length")
        if (buf[6] & 0x3F) or buf[7]:
            raise MalformedSegment("fragment")
        if buf[icmp] != UNREACHABLE:
            raise MalformedSegment("not-unreachable")
        tcp = quoted + ((buf[quoted] & 15) << 2)
        if buf[quoted] >> 4 != 4 or buf[quoted + 9] != IPPROTO_TCP or tcp < quoted + 20 or tcp + 8 > self.end:
            raise MalformedSegment("bad-quotation")
        if (buf[quoted + 6] & 0x1F) or buf[quoted + 7]:
            raise MalformedSegment("bad-quotation")  # a later fragment: what follows is no TCP header
        self.buf = buf
        self.code = buf[icmp + 1]
        self._icmp_off, self._seq_off = icmp, tcp + 4
        self.src, self.dst = bytes(buf[quoted + 12 : quoted + 16]), bytes(buf[quoted + 16 : quoted + 20])
        self.sport, self.dport, self.seq = _PORTS_SEQ.unpack_from(buf, tcp)

    def checksum_ok(self) -> bool:
        """Whether the ICMP checksum is right."""
        return ones_sum(self.buf[self._icmp_off : self.end]) == 0xFFFF

    def set_seq(self, seq: int) -> None:
        """Exchange the quoted SEQ; the quoted checksum, which nobody looks at, stays."""
        self.seq = seq
        self.buf[self._seq_off : self._seq_off + 4] = seq.to_bytes(4, "big")
        at = self._icmp_off + 2
        self.buf[at] = self.buf[at + 1] = 0
        _U16.pack_into(self.buf, at, ~ones_sum(self.buf[self._icmp_off : self.end]) & 0xFFFF)


def build_host_unreachable(quoted: bytearray) -> bytearray:
    """A "host unreachable" (RFC 792) about an IPv4 packet, from its destination to its source; sealed."""
    body = bytearray(_ICMP.pack(UNREACHABLE, HOST_UNREACHABLE, 0, 0)) + quoted
    _U16.pack_into(body, 2, ~ones_sum(body) & 0xFFFF)
    packet = bytearray(20)
    source, destination = bytes(quoted[16:20]), bytes(quoted[12:16])
    _IPV4.pack_into(packet, 0, 0x45, 0, 20 + len(body), 0, _DONT_FRAGMENT, _TTL, IPPROTO_ICMP, 0, source, destination)
    _U16.pack_into(packet, 10, ipv4_header_checksum(packet))
    return packet + body
