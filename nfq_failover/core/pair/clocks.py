"""How far the two hosts' times of day are apart. Nothing of the protection rests on them; whoever reads both logs does.

The peer tells its time of day once a second. What comes late makes its clock seem behind, and while one of the clocks
is being set they differ for a moment; so it takes some readings, and of these the one counts that came soonest.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from nfq_failover.core.concerns import Concern, Concerns, Weight
from nfq_failover.core.pair.told import Telling, Told

DIFFER_S: Final = 3.0
WELL_S: Final = 2.0
READINGS: Final = 4
SOURCE: Final = "clocks"
CODE: Final = "clocks-differ"


def differs(name: str, peer: str, ahead_s: float) -> Concern:
    """The concern of a peer whose clock is `ahead_s` ahead of that of `name`; both hosts say it in the same words."""
    fast, slow = (peer, name) if ahead_s > 0 else (name, peer)
    what = f"the clock of {fast} is {abs(ahead_s):.0f} s ahead of that of {slow}: the logs of both do not line up"
    return Concern(CODE, Weight.WARNING, what, "have NTP set both clocks: timedatectl, chronyc tracking")


class Clocks:
    """The comparison with one peer."""

    def __init__(self, name: str, told: Told, telling: Telling, concerns: Concerns) -> None:
        """`name` is this host's; `told` what the peer tells, `telling` what this host does."""
        self._name = name
        self._told = told
        self._telling = telling
        self._concerns = concerns
        self._seen: tuple[int, float] | None = None
        self._ahead: deque[float] = deque(maxlen=READINGS)
        self._said_s = 0.0

    def review(self, now: float) -> None:
        """Compare, if the peer has told its time again."""
        told = self._told.clock
        if told is self._seen:
            return
        self._seen = told
        own = None if told is None else self._telling.wall_clock(told[1])
        if told is None or own is None:
            self._ahead.clear()
            self._concerns.replace(SOURCE, (), now)
            return
        self._ahead.append((told[0] - own.ms) / 1000)
        if len(self._ahead) < READINGS:
            return
        least_s, ahead_s = min(self._ahead), max(self._ahead)
        if any(abs(each) < WELL_S for each in self._ahead):
            self._concerns.replace(SOURCE, (), now)
        elif least_s < DIFFER_S and ahead_s > -DIFFER_S:
            return
        elif CODE not in self._concerns.codes() or abs(ahead_s - self._said_s) >= 1:
            self._said_s = ahead_s
            self._concerns.raised(SOURCE, differs(self._name, self._told.peer, ahead_s), now)
