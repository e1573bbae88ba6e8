"""Captures made by hand: segments in, a pcap file out, with Ethernet and IPv4 headers and a snap length."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SERVICE = "10.77.0.100"
CLIENT = "10.77.0.1"


@dataclass(frozen=True)
class Segment:
    """One segment as it stands on the wire: raw sequence numbers, `time` in seconds after the start."""

    time: float
    from_service: bool
    flags: int
    seq: int
    ack: int = 0
    length: int = 0
    window: int = 1000
    tsval: int | None = None
    client_port: int = 40_000


def write_pcap(path: Path, segments: Sequence[Segment], snap: int = 128, start: float = 1_700_000_000.0) -> None:
    """Writes a classic pcap file (microseconds, little endian, Ethernet)."""
    out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snap, 1))
    for segment in segments:
        frame = _frame(segment)
        micros = round((start + segment.time) * 1_000_000)
        out += struct.pack("<IIII", micros // 1_000_000, micros % 1_000_000, min(snap, len(frame)), len(frame))
        out += frame[:snap]
    path.write_bytes(out)


def _frame(segment: Segment) -> bytes:
    source, target = (SERVICE, CLIENT) if segment.from_service else (CLIENT, SERVICE)
    ports = (80, segment.client_port) if segment.from_service else (segment.client_port, 80)
    options = b"" if segment.tsval is None else struct.pack(">BBBBII", 1, 1, 8, 10, segment.tsval, 0)
    offset = (5 + len(options) // 4) << 4
    tcp = struct.pack(
        ">HHIIBBHHH", *ports, segment.seq % 2**32, segment.ack % 2**32, offset, segment.flags, segment.window, 0, 0
    )
    payload = tcp + options + bytes(segment.length)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, 6, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    return bytes(12) + b"\x08\x00" + header + payload
