"""Sets of TCP ports, as sorted inclusive ranges of which none overlaps or touches another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2s
from typing import Final

Ports = tuple[tuple[int, int], ...]
_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def union(*sets: Iterable[tuple[int, int]]) -> Ports:
    """The ports that are in any of them, whose ranges may stand in any order, and overlap."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(each for ports in sets for each in ports):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def minus(ports: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> Ports:
    """The ports of the first set that are not in the second."""
    left = list(union(ports))
    for low, high in union(others):
        left = [
            part
            for begin, end in left
            for part in ((begin, min(end, low - 1)), (max(begin, high + 1), end))
            if part[0] <= part[1]
        ]
    return union(left)


def both(ports: Ports, others: Ports) -> Ports:
    """The ports that are in both."""
    return minus(ports, minus(ports, others))


def covers(ports: Ports, others: Ports) -> bool:
    """Whether the first set has all of the second."""
    return not minus(others, ports)


def has(ports: Ports, port: int) -> bool:
    """Whether a port is in the set."""
    return any(low <= port <= high for low, high in ports)


def text(ports: Ports) -> str:
    """How people read it: "80, 7000-7099"."""
    return ", ".join(f"{low}-{high}" if low < high else f"{low}" for low, high in ports)


def read(said: str) -> Ports | None:
    """What `text` has written; None if it is something else, as of a list that was cut short."""
    if not said:
        return ()
    ranges = []
    for part in said.split(", "):
        found = _RANGE.fullmatch(part)
        if found is None:
            return None
        low, high = int(found[1]), int(found[2] or found[1])
        if not 0 < low <= high < 65536:
            return None
        ranges.append((low, high))
    return union(ranges)


def digest(ports: Ports) -> str:
    """The same for equal sets, and short."""
    return blake2s(text(union(ports)).encode(), digest_size=8).hexdigest()
