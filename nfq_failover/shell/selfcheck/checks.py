"""How the checks of this host are run: each in its own rhythm, and none of them may end or hold the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import HostChecked

CHEAP_S = 1.0
"""How often a check that costs a few system calls is run."""
DEAR_S = 60.0
"""How often one is run that starts a program or asks another machine."""

log = structlog.get_logger()


class Check(Protocol):
    """Looks at one subject."""

    @property
    def name(self) -> str:
        """What is looked at, in one word."""

    @property
    def every_s(self) -> float:
        """How long after an answer the next look begins."""

    def run(self, now: float) -> Sequence[Concern] | None:
        """Look, without waiting for anything. Returns all that is wrong, or None while the answer is not there: then
        it is asked again at the next tick. `now` is seconds of the monotonic clock."""


class SelfChecks:
    """All checks of a host. What they find is handed out as one event whenever it has changed."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._due = [0.0] * len(checks)
        self._found: list[tuple[Concern, ...]] = [()] * len(checks)
        self._under_way: set[int] = set()
        self._again: set[int] = set()

    def tick(self, now: float) -> HostChecked | None:
        """Run what is due. Returns what is wrong with this host, if that has changed."""
        changed = False
        for number, check in enumerate(self._checks):
            if now < self._due[number]:
                continue
            found = self._run(check, now)
            if found is None:
                self._under_way.add(number)
                continue
            self._under_way.discard(number)
            self._due[number] = 0.0 if number in self._again else now + check.every_s
            self._again.discard(number)
            changed = changed or found != self._found[number]
            self._found[number] = found
        return HostChecked(tuple(each for found in self._found for each in found)) if changed else None

    def look_again(self, name: str) -> None:
        """Run the check of that name at the next tick; and once more if it is under way: it may have looked before."""
        for number, check in enumerate(self._checks):
            if check.name == name:
                self._due[number] = 0.0
                if number in self._under_way:
                    self._again.add(number)

    def _run(self, check: Check, now: float) -> tuple[Concern, ...] | None:
        try:
            found = check.run(now)
        except Exception as error:  # it must not take the daemon with it, nor look like an answer
            log.debug("a self-check has failed", check=check.name, error=repr(error))
            what = f"the self-check of '{check.name}' can't be done: {error}"
            return (Concern(f"check-failed-{check.name}", Weight.WARNING, what),)
        return None if found is None else tuple(found)
