"""One TCP segment in its IP packet: parsed once, valid or refused, and changed in place.

`Segment` is the only view of a packet that the core has. It is neutral to the address family: `parse` looks at the
version; only IPv4 is accepted today. Setters change the buffer; `seal` writes the TCP checksum afterwards.
"""

from __future__ import annotations

from struct import Struct

from nfq_failover.constants import (
    ACK,
    FIN,
    IPPROTO_TCP,
    OPT_EOL,
    OPT_NOP,
    OPT_SACK,
    OPT_TIMESTAMPS,
    PSH,
    RST,
    SYN,
)
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.checksum import ipv4_header_checksum, tcp_sum
from nfq_failover.wire.seqnum import MASK

_TCP = Struct("!HHIIBBHHH")
_U32 = Struct("!I")
_2U32 = Struct("!II")
_U16 = Struct("!H")
_NOP_NOP_TS = bytes((OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10))

MAX_LENGTH = 0xFFFF
"""What the length field can say. Linux writes 0 for a super-segment that is longer (IPv4 BIG TCP); it ends with the
buffer."""

FlowKey = tuple[bytes, int, bytes, int]
"""(client address, client port, server address, server port); addresses are packed, 4 or 16 bytes."""


class Segment:
    """A parsed TCP segment over a mutable packet buffer.

    `seq`, `ack`, `wnd` are as on the wire (`wnd` unscaled); `seg_len` counts SYN and FIN (RFC 9293 section 3.4);
    `ts_off` is the offset of TSval in the packet, 0 without timestamps; `sack` is a list of (left, right) edges.
    `changed`: somebody has made it differ from the packet in the queue, and said so (`mark_changed`).
    """

    __slots__ = (
        "ack",
        "buf",
        "changed",
        "data_off",
        "dport",
        "dst",
        "end",
        "flags",
        "payload_len",
        "sack",
        "sack_off",
        "seg_len",
        "seq",
        "sport",
        "src",
        "tcp_off",
        "ts_off",
        "tsecr",
        "tsval",
        "wnd",
    )

    def __init__(self, buf: bytearray) -> None:
        """Parse. Raises `MalformedSegment`."""
        n = len(buf)
        if n < 40:
            raise MalformedSegment("short")
        if buf[0] >> 4 != 4:
            raise MalformedSegment("not-ipv4")
        tcp_off = (buf[0] & 15) << 2
        end = (buf[2] << 8) | buf[3] or (n if n > MAX_LENGTH else 0)
        if tcp_off < 20 or end > n or end < tcp_off + 20:
            raise MalformedSegment("bad-length")
        if buf[9] != IPPROTO_TCP:
            raise MalformedSegment("not-tcp")
        if (buf[6] & 0x3F) or buf[7]:
            raise MalformedSegment("fragment")
        self.buf = buf
        self.changed = False
        self.tcp_off = tcp_off
        self.end = end
        self.src = bytes(buf[12:16])
        self.dst = bytes(buf[16:20])
        self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.wnd, _, _ = _TCP.unpack_from(buf, tcp_off)
        header = (offset >> 4) << 2
        data_off = tcp_off + header
        if header < 20 or data_off > end:
            raise MalformedSegment("bad-data-offset")
        self.data_off = data_off
        self.payload_len = end - data_off
        flags = self.flags
        self.seg_len = self.payload_len + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
        self.ts_off = 0
        self.tsval = 0
        self.tsecr = 0
        self.sack: list[tuple[int, int]] = []
        self.sack_off = 0
        if header == 32 and buf[tcp_off + 20 : tcp_off + 24] == _NOP_NOP_TS:
            self.ts_off = tcp_off + 24
            self.tsval, self.tsecr = _2U32.unpack_from(buf, tcp_off + 24)
        elif header > 20:
            self._parse_options()

    def _parse_options(self) -> None:
        buf, i, stop = self.buf, self.tcp_off + 20, self.data_off
        # Ends: an option takes at least a byte.
        while i < stop:
            kind = buf[i]
            if kind == OPT_EOL:
                return
            if kind == OPT_NOP:
                i += 1
                continue
            if i + 1 >= stop or buf[i + 1] < 2 or i + buf[i + 1] > stop:
                return  # as Linux (tcp_parse_options): what comes before counts, the rest is not looked at
            length = buf[i + 1]
            if kind == OPT_TIMESTAMPS and length == 10 and not self.ts_off:
                self.ts_off = i + 2
                self.tsval, self.tsecr = _2U32.unpack_from(buf, i + 2)
            elif kind == OPT_SACK and length >= 10 and (length - 2) % 8 == 0 and not self.sack_off:
                self.sack_off = i
                self.sack = [_2U32.unpack_from(buf, j) for j in range(i + 2, i + length, 8)]
            i += length

    @property
    def is_pure_ack(self) -> bool:
        """No payload and none of SYN, FIN, RST."""
        return not self.payload_len and self.flags & (SYN | FIN | RST | ACK) == ACK

    @property
    def ends_stream(self) -> bool:
        """Whether it carries a FIN."""
        return bool(self.flags & FIN)

    @property
    def seq_end(self) -> int:
        """The sequence number after this segment."""
        end: int = (self.seq + self.seg_len) & MASK
        return end

    def payload(self) -> bytes:
        """A copy of the payload."""
        return bytes(memoryview(self.buf)[self.data_off : self.end])

    def options(self) -> bytes:
        """A copy of the raw TCP options."""
        return bytes(self.buf[self.tcp_off + 20 : self.data_off])

    def checksum_ok(self) -> bool:
        """Whether the TCP checksum in the packet is right."""
        return tcp_sum(self.buf, self.src + self.dst, self.tcp_off, self.end) == 0xFFFF

    def mark_changed(self) -> None:
        """The segment differs from the packet in the queue."""
        self.changed = True

    def set_flags(self, flags: int) -> None:
        """The eight flag bits; `seg_len` follows."""
        self.flags = self.buf[self.tcp_off + 13] = flags
        self.seg_len = self.payload_len + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)

    def set_seq(self, seq: int) -> None:
        self.seq = seq
        _U32.pack_into(self.buf, self.tcp_off + 4, seq)

    def set_ack(self, ack: int) -> None:
        self.ack = ack
        _U32.pack_into(self.buf, self.tcp_off + 8, ack)

    def set_wnd(self, wnd: int) -> None:
        self.wnd = wnd
        _U16.pack_into(self.buf, self.tcp_off + 14, wnd)

    def set_timestamps(self, tsval: int, tsecr: int) -> None:
        """Needs `ts_off`."""
        self.tsval, self.tsecr = tsval, tsecr
        _2U32.pack_into(self.buf, self.ts_off, tsval, tsecr)

    def set_sack(self, blocks: list[tuple[int, int]]) -> None:
        """Replace the SACK blocks by at most as many; places left over become NOPs, so the length stays."""
        off = self.sack_off
        stop = off + self.buf[off + 1]
        blocks = blocks[: (stop - off - 2) >> 3]
        self.sack = blocks
        i = off
        if blocks:
            self.buf[off + 1] = 2 + 8 * len(blocks)
            i += 2
            for left, right in blocks:
                _2U32.pack_into(self.buf, i, left, right)
                i += 8
        else:
            self.sack_off = 0
        # Ends: `i` goes on by one.
        while i < stop:
            self.buf[i] = OPT_NOP
            i += 1

    def drop_payload(self) -> None:
        """Cut the packet behind the TCP header."""
        off = self.tcp_off
        del self.buf[self.data_off :]
        self.end = self.data_off
        self.seg_len -= self.payload_len
        self.payload_len = 0
        _U16.pack_into(self.buf, 2, self.end)
        _U16.pack_into(self.buf, 10, 0)
        _U16.pack_into(self.buf, 10, ipv4_header_checksum(self.buf[:off]))

    def seal(self) -> None:
        """Write the full TCP checksum (never incremental: packets from a GSO queue carry partial ones)."""
        off = self.tcp_off + 16
        self.buf[off] = self.buf[off + 1] = 0
        total = tcp_sum(self.buf, self.src + self.dst, self.tcp_off, self.end)
        _U16.pack_into(self.buf, off, ~total & 0xFFFF)

    def __repr__(self) -> str:
        names = ((SYN, "S"), (FIN, "F"), (RST, "R"), (ACK, "."))
        flags = "".join(letter for bit, letter in names if self.flags & bit)
        return (
            f"<{self.sport}>{self.dport} [{flags}] seq={self.seq} ack={self.ack} wnd={self.wnd} len={self.payload_len}>"
        )


def cut_short(packet: bytearray, gso: bool) -> None:
    """Make a TCP segment whose end is missing a shorter one, whole, as if the rest had been lost on its way: FIN and
    PSH belong to the last byte. `gso`: the kernel still writes the TCP checksum. Raises `MalformedSegment`."""
    if len(packet) < 20:
        raise MalformedSegment("short")
    _U16.pack_into(packet, 2, len(packet))
    seg = Segment(packet)
    _U16.pack_into(packet, 10, 0)
    _U16.pack_into(packet, 10, ipv4_header_checksum(packet[: seg.tcp_off]))
    seg.set_flags(seg.flags & ~(FIN | PSH))
    if not gso:
        seg.seal()
