"""What went wrong lately: kept for people who look when the connection that it was about is gone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from nfq_failover.wire.segment import FlowKey

MOST = 20


@dataclass(frozen=True, slots=True)
class Mishap:
    """One kind of thing that went wrong, for one reason: `count` times, at last at `at` with the connection `flow`
    (None: it is about no single one)."""

    what: str
    reason: str
    at: float
    flow: FlowKey | None
    count: int = 1


class Mishaps:
    """The latest mishaps, each of what and why once; the oldest is forgotten."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Mishap] = OrderedDict()

    def note(self, what: str, reason: str, flow: FlowKey | None, now: float) -> None:
        """Something went wrong just now."""
        key = what, reason
        before = self._kept.pop(key, None)
        count = 1 if before is None else before.count + 1
        self._kept[key] = replace(Mishap(what, reason, now, flow), count=count)
        if len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def latest(self) -> list[Mishap]:
        """All that are kept, the latest first."""
        return list(reversed(self._kept.values()))
