"""The application's health, as this host's checks have found it."""

from __future__ import annotations

from nfq_failover.core.settings import Settings

UNCHECKED_REST_S = 5.0
"""After a failure: how long an application that nobody checks is left alone before it is taken to be well."""
CHECKED_REST_S = 1.0
"""After a failure: from when on a good check counts. What is about to die may pass another one."""


class Health:
    """What the checks say. Without checks, the application counts as well."""

    def __init__(self, settings: Settings) -> None:
        self._checked = settings.health_checked
        self._failures = settings.health_failures
        self.failed = 0  # in a row
        self.detail = ""
        self._well_at: float | None = None
        self._yielded_at = 0.0

    @property
    def well(self) -> bool:
        """Not so many failed checks in a row that the application counts as failed."""
        return self.failed < self._failures

    @property
    def reason(self) -> str:
        """Why it counts as failed."""
        return f"the application has failed {self.failed} health checks: {self.detail}"

    def checked(self, ok: bool, detail: str, now: float) -> bool:
        """A check has come to an end. Returns whether the verdict has changed."""
        before = self.well
        self.failed = 0 if ok else self.failed + 1
        self.detail = detail
        if ok:
            self._well_at = now
        return self.well is not before

    def yielded(self, now: float) -> None:
        """The service has been given away: from now on only later checks count."""
        self._yielded_at = now

    def recovered(self, now: float) -> bool:
        """Whether the application is well again after the service was given away."""
        if not self._checked:
            return now - self._yielded_at >= UNCHECKED_REST_S
        return self.failed == 0 and self._well_at is not None and self._well_at > self._yielded_at + CHECKED_REST_S

    def row(self) -> dict[str, object]:
        """For the status."""
        return {"checked": self._checked, "well": self.well, "failed_checks": self.failed, "detail": self.detail}
