"""A classic BPF interpreter, for the instructions that the assembler knows; written from linux/filter.h."""

from __future__ import annotations

import struct

from nfq_failover.shell.packets.bpf import PACKET_TYPE


def run(program: bytes, packet: bytes, packet_type: int = 0) -> int:
    """What the filter returns; 0 when a load lies beyond the packet, as in the kernel."""
    code = list(struct.iter_unpack("=HBBI", program))
    a = x = position = 0

    def load(offset: int, size: int) -> int:
        if offset == PACKET_TYPE & 0xFFFFFFFF:
            return packet_type
        if offset + size > len(packet):
            raise IndexError
        return int.from_bytes(packet[offset : offset + size], "big")

    try:
        while True:
            op, yes, no, k = code[position]
            position += 1
            match op:
                case 0x20:
                    a = load(k, 4)
                case 0x28:
                    a = load(k, 2)
                case 0x30:
                    a = load(k, 1)
                case 0x48:
                    a = load(x + k, 2)
                case 0x50:
                    a = load(x + k, 1)
                case 0xB1:
                    x = 4 * (load(k, 1) & 15)
                case 0x54:
                    a &= k
                case 0x74:
                    a >>= k
                case 0x0C:
                    a = (a + x) & 0xFFFFFFFF
                case 0x07:
                    x = a
                case 0x05:
                    position += k
                case 0x15:
                    position += yes if a == k else no
                case 0x25:
                    position += yes if a > k else no
                case 0x35:
                    position += yes if a >= k else no
                case 0x45:
                    position += yes if a & k else no
                case 0x2D:
                    position += yes if a > x else no
                case 0x06:
                    return int(k)
                case _:
                    raise ValueError(f"instruction {op:#x}")
    except IndexError:
        return 0
