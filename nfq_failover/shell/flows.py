"""Which connections the kernel has."""

from __future__ import annotations

import sys
from pathlib import Path

from nfq_failover.wire.segment import FlowKey

_TABLE = Path("/proc/thread-self/net/tcp")


def _name(address: bytes, port: int) -> str:
    """As in /proc/net/tcp: the address as a native 32-bit number."""
    return f"{int.from_bytes(address, sys.byteorder):08X}:{port:04X}"


def gone(flows: list[FlowKey]) -> list[FlowKey]:
    """Those of `flows` that the kernel has no socket for (TIME_WAIT and half-open ones count as sockets)."""
    present = set()
    with _TABLE.open() as table:
        next(table)
        for line in table:
            fields = line.split(None, 3)
            present.add((fields[1], fields[2]))
    return [f for f in flows if (_name(f[2], f[3]), _name(f[0], f[1])) not in present]
