"""How often something may be done: a few times at once, and then once in a while."""

from __future__ import annotations


class Allowance:
    """`burst` times at once, one more every `every_s` seconds. Full at first."""

    def __init__(self, burst: int, every_s: float) -> None:
        self._burst, self._every_s = float(burst), every_s
        self._left, self._credited_at = self._burst, 0.0

    def take(self, now: float) -> bool:
        """Whether it may be done now; then it counts as done."""
        gained = max(now - self._credited_at, 0.0) / self._every_s
        self._left, self._credited_at = min(self._left + gained, self._burst), now
        if self._left < 1:
            return False
        self._left -= 1
        return True
