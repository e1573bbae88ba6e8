"""Rules of other programs that don't go with ours: they lead the service elsewhere, or change packet marks.

The rules script looks, as it does before it installs; it takes some tens of milliseconds, beside the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.selfcheck.checks import CHEAP_S, DEAR_S

LATE_S: Final = 40.0  # the script gets 30 s
_WEIGHTS: Final = {weight.label: weight for weight in Weight}


_UNGUARDED: Final = "unguarded"  # the code by which the script says that there is no silence guard
_HINT: Final = "hint"
_PATH: Final = "path-"


@dataclass(frozen=True, slots=True)
class Hint:
    """A rule that may drop the service's packets on one of their ways: out, in, lo. Whether it does, a probe shows."""

    way: str
    rule: str
    cure: str


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
        self.hints: tuple[Hint, ...] | None = None  # None: nobody has looked yet
        self.guarded = False
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
        said = look.finish_check() or ""
        self.hints = hints(said)
        self.guarded = not any(code == _UNGUARDED for code, *_ in _lines(said))
        return findings(said)


def findings(said: str) -> tuple[Concern, ...]:
    """What the rules script has found, in its lines of code, weight, what it is and the cure."""
    return tuple(
        Concern(code, _WEIGHTS[weight], what, cure) for code, weight, what, cure in _lines(said) if weight in _WEIGHTS
    )


def hints(said: str) -> tuple[Hint, ...]:
    """The rules that may drop the service's packets, in the same lines."""
    return tuple(
        Hint(code.removeprefix(_PATH), what, cure)
        for code, weight, what, cure in _lines(said)
        if weight == _HINT and code.startswith(_PATH)
    )


def _lines(said: str) -> list[list[str]]:
    return [parts for line in said.splitlines() if len(parts := line.split("\t")) == 4]


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
