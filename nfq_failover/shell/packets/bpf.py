"""A small assembler for classic BPF socket filters (linux/filter.h), and the one filter we need.

A program is a list of instructions and labels; jumps name labels. It is assembled to `struct sock_filter` and attached
to a socket. The kernel runs it on each packet: A is the accumulator, X the index register; a load beyond the packet's
end refuses the packet; the value of `RET` is how many bytes are passed on.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from nfq_failover.constants import FIN, IPPROTO_TCP, RST

SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; not in Python's socket
SO_ATTACH_REUSEPORT_CBPF: Final = 51  # Linux 4.5
_INSTRUCTION = Struct("=HBBI")  # code, jump if true, jump if false, k
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_PROGRAM = Struct("HP")  # struct sock_fprog, native alignment

# Loads below SKF_AD_OFF read what the kernel knows about the packet instead of its bytes.
_ANCILLARY: Final = -0x1000
PACKET_TYPE: Final = _ANCILLARY + 4  # SKF_AD_PKTTYPE
WHOLE_PACKET: Final = 0x100000  # above the longest super-segment: GSO_MAX_SIZE, 8 * 65536 (Linux 5.19)


class Op(IntEnum):
    """The instructions in use, by their codes."""

    LOAD_WORD = 0x20  # A = 32 bits at k
    LOAD_HALF = 0x28  # A = 16 bits at k
    LOAD_BYTE = 0x30  # A = 8 bits at k
    LOAD_HALF_X = 0x48  # A = 16 bits at X + k
    LOAD_BYTE_X = 0x50  # A = 8 bits at X + k
    LOAD_X_HEADER = 0xB1  # X = 4 * (byte at k & 15): the length of an IPv4 header
    AND = 0x54  # A &= k
    SHIFT_RIGHT = 0x74  # A >>= k
    ADD_X = 0x0C  # A += X
    TO_X = 0x07  # X = A
    JUMP = 0x05
    IF_EQUAL = 0x15  # A == k
    IF_ABOVE = 0x25  # A > k
    IF_AT_LEAST = 0x35  # A >= k
    IF_BITS = 0x45  # A & k
    IF_ABOVE_X = 0x2D  # A > X
    RETURN = 0x06


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `yes` and `no` are labels, "" is the next instruction; `JUMP` goes to `yes`."""

    op: Op
    k: int = 0
    yes: str = ""
    no: str = ""


Line = Instruction | str
"""An instruction, or the label of the one after it."""


def assemble(program: Sequence[Line]) -> bytes:
    """`struct sock_filter[]`. Raises ValueError: label unknown or repeated, jump too far or backwards."""
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    for line in program:
        if isinstance(line, Instruction):
            code.append(line)
        elif line in labels:
            raise ValueError(f"label {line} is there twice")
        else:
            labels[line] = len(code)
    if not 0 < len(code) <= _MAX_INSTRUCTIONS:
        raise ValueError(f"{len(code)} instructions: the kernel takes 1 to {_MAX_INSTRUCTIONS}")

    def distance(position: int, label: str, limit: int) -> int:
        if not label:
            return 0
        if label not in labels:
            raise ValueError(f"no label {label}")
        jump = labels[label] - position - 1
        if not 0 <= jump <= limit or labels[label] >= len(code):
            raise ValueError(f"label {label} is out of reach of instruction {position}")
        return jump

    raw = bytearray()
    for position, it in enumerate(code):
        if it.op is Op.JUMP:
            raw += _INSTRUCTION.pack(it.op, 0, 0, distance(position, it.yes, _MAX_INSTRUCTIONS))
        else:
            yes, no = distance(position, it.yes, 255), distance(position, it.no, 255)
            raw += _INSTRUCTION.pack(it.op, yes, no, it.k & 0xFFFFFFFF)
    return bytes(raw)


def attach(sock: socket.socket, filter_: bytes, option: int = SO_ATTACH_FILTER) -> None:
    """Give a socket its filter, or its group the program that picks a socket. Raises OSError if the kernel refuses."""
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = _PROGRAM.pack(len(filter_) // _INSTRUCTION.size, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, option, program)


def inbound_data_filter(service: bytes, ports: Sequence[tuple[int, int]]) -> bytes:
    """Passes what carries a client's bytes or its end: IPv4 TCP to the service, with payload, FIN or RST.

    For packet sockets of type SOCK_DGRAM, where offset 0 is the IP header. Not passed: what leaves this host or is for
    another one (packet types above PACKET_MULTICAST), fragments, pure acknowledgements, SYNs.
    `service`: packed IPv4 address; `ports`: inclusive ranges.
    """
    if len(service) != 4:
        raise ValueError("the service address is not IPv4")
    program: list[Line] = [
        Instruction(Op.LOAD_BYTE, PACKET_TYPE),
        Instruction(Op.IF_ABOVE, socket.PACKET_MULTICAST, yes="refuse"),
        Instruction(Op.LOAD_BYTE, 0),
        Instruction(Op.AND, 0xF0),
        Instruction(Op.IF_EQUAL, 0x40, no="refuse"),
        Instruction(Op.LOAD_BYTE, 9),
        Instruction(Op.IF_EQUAL, IPPROTO_TCP, no="refuse"),
        Instruction(Op.LOAD_HALF, 6),
        Instruction(Op.IF_BITS, 0x3FFF, yes="refuse"),  # more fragments, or an offset
        Instruction(Op.LOAD_WORD, 16),
        Instruction(Op.IF_EQUAL, int.from_bytes(service, "big"), no="refuse"),
        Instruction(Op.LOAD_X_HEADER, 0),
        Instruction(Op.LOAD_BYTE_X, 13),
        Instruction(Op.IF_BITS, FIN | RST, yes="ports"),
        # Payload: the IP header's length, not the frame's, which may be padded, against both headers.
        Instruction(Op.LOAD_BYTE_X, 12),
        Instruction(Op.AND, 0xF0),
        Instruction(Op.SHIFT_RIGHT, 2),
        Instruction(Op.ADD_X),
        Instruction(Op.TO_X),
        Instruction(Op.LOAD_HALF, 2),
        Instruction(Op.IF_EQUAL, 0, yes="ports"),  # more than the field can say
        Instruction(Op.IF_ABOVE_X, yes="ports"),
        "refuse",
        Instruction(Op.RETURN, 0),
        "ports",
        Instruction(Op.LOAD_X_HEADER, 0),
        Instruction(Op.LOAD_HALF_X, 2),
    ]
    for number, (low, high) in enumerate(ports):
        following = f"after{number}"
        program += [
            Instruction(Op.IF_AT_LEAST, low, no=following),
            Instruction(Op.IF_ABOVE, high, yes=following),
            Instruction(Op.JUMP, yes="pass"),
            following,
        ]
    program += [Instruction(Op.RETURN, 0), "pass", Instruction(Op.RETURN, WHOLE_PACKET)]
    return assemble(program)
