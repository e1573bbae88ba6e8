"""What this host has been lately, and how its last takeover went: for people, for hooks and for monitoring."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nfq_failover.core.pair.roles import Change, Role, State

MOST: Final = 10  # happenings that are kept
_MOST_PHASES: Final = 16  # of a takeover that is tried again and again


@dataclass(frozen=True, slots=True)
class Happening:
    """From `at` (monotonic seconds) on this host was in `role` and in `state`, the one that people are shown.

    `number` counts them from 1, over the daemon's life.
    """

    number: int
    at: float
    role: str
    state: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of a takeover: what had been reached, and how long after the peer was heard for the last time, in
    milliseconds (None: it had never been heard, or leaves in order)."""

    reached: str
    after_ms: float | None


@dataclass(frozen=True, slots=True)
class Takeover:
    """The last takeover of this host. `going` connections went on, `reset` were reset. Phases in the order of time."""

    at: float
    epoch: int
    going: int
    reset: int
    phases: tuple[Phase, ...]


class History:
    """The latest happenings, and the last takeover. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.happenings: deque[Happening] = deque(maxlen=MOST)
        self.takeover: Takeover | None = None
        self._number = 0
        self._heard: float | None = None
        self._phases: list[Phase] = []

    def observe(self, role: Role, state: str, epoch: int, reason: str, now: float) -> None:
        """This is what people are shown now; it is kept if it is something else than before."""
        name = role.name.lower()
        if self.happenings:
            last = self.happenings[-1]
            if (last.role, last.state, last.epoch) == (name, state, epoch):
                return
        self._number += 1
        self.happenings.append(Happening(self._number, now, name, state, epoch, reason))

    def since(self, number: int) -> list[Happening]:
        """Those that came after the one with this number, the oldest first; of many the latest."""
        return [each for each in self.happenings if each.number > number]

    def changed(self, change: Change, last_heard: float | None, now: float) -> None:
        """Note a step on the way to a takeover, or away from it. `last_heard`: when the peer was, for the last time."""
        if change.before is State.SHADOWING:
            self._phases.clear()
            self._heard = last_heard
        if change.after.role is Role.BACKUP and change.after is not State.SHADOWING:
            self._reach(change.after.label, now)

    def took_over(self, epoch: int, going: int, reset: int, now: float) -> None:
        """This host is heard in the primary's place from now on."""
        self._reach("heard by the clients", now)
        self.takeover = Takeover(now, epoch, going, reset, tuple(self._phases))
        self._phases.clear()

    def _reach(self, what: str, now: float) -> None:
        if len(self._phases) == _MOST_PHASES:
            self._phases.pop()  # the first ones tell how it began
        after_ms = None if self._heard is None else round((now - self._heard) * 1000, 1)
        self._phases.append(Phase(what, after_ms))
