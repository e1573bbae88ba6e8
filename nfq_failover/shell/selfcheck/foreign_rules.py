"""Rules of other programs that don't go with ours: they lead the service elsewhere, or change packet marks.

The rules script looks, as it does before it installs; it takes some tens of milliseconds, beside the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.selfcheck.checks import CHEAP_S, DEAR_S

LATE_S: Final = 40.0  # the script gets 30 s
_WEIGHTS: Final = {weight.label: weight for weight in Weight}


class Look(Protocol):
    """A run of the rules script that looks at the host."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    def finish_check(self) -> str | None:
        """Returns what was found, None for nothing. Raises `RulesError`."""

    def close(self) -> None:
        """Wait for it no more."""


class ForeignRules:
    """Looks once a minute."""

    name = "foreign-rules"
    every_s = DEAR_S

    def __init__(self, start: Callable[[], Look]) -> None:
        """`start` begins a look; it raises `RulesError`."""
        self._start = start
        self._look: Look | None = None
        self._late = 0.0

    def run(self, now: float) -> tuple[Concern, ...] | None:
        """See `Check`. Raises `RulesError`, and `TimeoutError` if the look does not end."""
        if self._look is None:
            self._look, self._late = self._start(), now + LATE_S
        if not self._look.done:
            if now < self._late:
                return None
            self._look.close()
            self._look = None
            raise TimeoutError("the rules script does not end")
        look, self._look = self._look, None
        return findings(look.finish_check() or "")


def findings(said: str) -> tuple[Concern, ...]:
    """What the rules script has found, in its lines of code, weight, what it is and the cure."""
    found = []
    for line in said.splitlines():
        parts = line.split("\t")
        if len(parts) == 4 and parts[1] in _WEIGHTS:
            found.append(Concern(parts[0], _WEIGHTS[parts[1]], parts[2], parts[3]))
    return tuple(found)


class TakenMark:
    """Our bit in the mark of what our own TCP says: put there by another rule, or by the program's own socket."""

    name = "taken-mark"
    every_s = CHEAP_S
    quiet_s: Final = 60.0

    def __init__(self, mark: int, seen: Callable[[], int]) -> None:
        """`seen` counts such packets."""
        self._seen = seen
        self._count = 0
        self._last: float | None = None
        self._concern = Concern(
            "mark-taken",
            Weight.DEGRADED,
            f"packets of the service carry the daemon's mark, {mark:#x}, before the daemon has seen them: the silence "
            "guard would let a replica be heard if the rules were lost",
            "find what sets this bit (a rule, SO_MARK in the program, or sysctl net.ipv4.tcp_fwmark_accept), or give "
            "the daemon another with 'mark'",
        )

    def run(self, now: float) -> tuple[Concern, ...]:
        """See `Check`."""
        count = self._seen()
        if count != self._count:
            self._count, self._last = count, now
        return (self._concern,) if self._last is not None and now - self._last < self.quiet_s else ()
