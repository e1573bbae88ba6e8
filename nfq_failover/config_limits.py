"""The part of the configuration that says how much the kernel may keep for the daemon; see docs/operate/limits.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nfq_failover.constants import DEFAULT_QUEUE_BUFFER, DEFAULT_QUEUE_PACKETS, DEFAULT_SYNC_BUFFER

SETTINGS: Final = ("queue_max_packets", "queue_buffer_bytes", "sync_buffer_bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """Packets that may wait in each queue, and the receive buffers' sizes."""

    queue_max_packets: int = DEFAULT_QUEUE_PACKETS
    queue_buffer_bytes: int = DEFAULT_QUEUE_BUFFER
    sync_buffer_bytes: int = DEFAULT_SYNC_BUFFER


def read(number: Callable[[str, int, int, int], int]) -> Limits:
    """`number(setting, low, high, default)` reads a setting. Raises what it raises."""
    return Limits(
        queue_max_packets=number("queue_max_packets", 16, 1 << 20, DEFAULT_QUEUE_PACKETS),
        queue_buffer_bytes=number("queue_buffer_bytes", 1 << 16, 1 << 30, DEFAULT_QUEUE_BUFFER),
        sync_buffer_bytes=number("sync_buffer_bytes", 1 << 16, 1 << 30, DEFAULT_SYNC_BUFFER),
    )
