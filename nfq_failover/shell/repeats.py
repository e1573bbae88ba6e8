"""Sums up what the log would say again and again: the first of a kind is said at once, the rest once a minute, counted.

A service whose 4,000 connections lose their protection for the same reason has one thing to say, not 4,000 lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

PERIOD_S: Final = 60.0
SINGLE: Final = frozenset({"state", "takeover", "operator"})
"""Events in a host's life: each matters, whatever its level."""

SINGLE_LINES: Final = 20  # of one kind in a period, of those and of what is only information
MAX_KINDS: Final = 8  # of one event; further ones are counted together
MAX_SINGLE_KINDS: Final = 64
_NUMBERS: Final = re.compile(r"\d+")
_NO_KIND: Final = ("level", "event", "packet")

Kind = tuple[str, ...]


@dataclass(slots=True)
class _Counted:
    """One kind in its period. `left`: lines that it may still have; `more`: how many were not said, `last` of them."""

    until: float
    left: int
    more: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class Repeats:
    """Decides which events are said. Two are of one kind if level, event and texts are the same but for numbers."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], dict[Kind, _Counted]] = {}

    def admit(self, event: dict[str, Any], now: float) -> bool:
        """Whether an event is said now; else it is counted. `event` has "level" and "event" among its fields."""
        name = str(event["level"]), str(event["event"])
        single = name[1] in SINGLE
        kinds = self._kinds.setdefault(name, {})
        kind = _kind(event)
        if kind not in kinds and len(kinds) >= (MAX_SINGLE_KINDS if single else MAX_KINDS):
            kind = ()
        counted = kinds.get(kind)
        if counted is None or (now >= counted.until and not counted.more):
            once = name[0] in ("warning", "error") and not single
            counted = kinds[kind] = _Counted(now + PERIOD_S, 1 if once else SINGLE_LINES)
        if counted.left:
            counted.left -= 1
            return True
        counted.more += 1
        counted.last = event
        return False

    def due(self, now: float, *, at_once: bool = False) -> Iterator[dict[str, Any]]:
        """The lines that sum up the periods that are over, or (`at_once`) all of them: the last event of each kind,
        with how many there were `more`, in how many `seconds`."""
        for name, kinds in list(self._kinds.items()):
            for kind, counted in list(kinds.items()):
                if now < counted.until and not at_once:
                    continue
                if counted.more:
                    seconds = round(PERIOD_S - max(counted.until - now, 0.0))
                    yield {**counted.last, "more": counted.more, "seconds": seconds}
                    kinds[kind] = _Counted(now + PERIOD_S, 0)  # what goes on has a line a period
                else:
                    del kinds[kind]
            if not kinds:
                del self._kinds[name]


def _kind(event: dict[str, Any]) -> Kind:
    texts = (f"{key}={value}" for key, value in event.items() if isinstance(value, str) and key not in _NO_KIND)
    return tuple(sorted(_NUMBERS.sub("0", text) for text in texts))
