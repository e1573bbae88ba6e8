"""When a host that has refused to take over tries again."""

from __future__ import annotations

from nfq_failover.core.settings import Settings


class Retries:
    """The time of the next attempt; each attempt makes the wait for the next one longer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._at: float | None = None
        self._wait_s = 0.0

    def begin_anew(self) -> None:
        """Forget earlier refusals: there has been a primary to follow since."""
        self._wait_s = 0.0

    def refused(self, now: float, useful: bool, attempted: bool) -> None:
        """Note a refusal. `useful`: another attempt might succeed, and is allowed; `attempted`: one has just failed."""
        settings = self.settings
        if not useful or not settings.fence_retry_ms or not (settings.has_fence or settings.split_brain_accepted):
            self._at = None
        elif attempted or self._at is None:
            self._wait_s = min(self._wait_s * 2 or settings.fence_retry_ms / 1000, settings.fence_retry_max_ms / 1000)
            self._at = now + self._wait_s

    def due(self, now: float) -> bool:
        """Whether it is time for another attempt."""
        return self._at is not None and now >= self._at
