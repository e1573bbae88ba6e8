"""The application's health, as this host's checks have found it."""

from __future__ import annotations

from dataclasses import dataclass

from nfq_failover.core.settings import Settings

UNCHECKED_REST_S = 5.0
"""After a failure: how long an application that nobody checks is left alone before it is taken to be well."""
CHECKED_REST_S = 1.0
"""After a failure: from when on a good check counts. What is about to die may pass another one."""


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """The application's health, for people. `checked`: it is checked at all; `detail`: what was wrong last."""

    checked: bool
    well: bool
    failed_checks: int
    detail: str


class Health:
    """What the checks have found. Without checks, the application counts as well."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.failed = 0  # in a row
        self.detail = ""
        self._well_at: float | None = None
        self._yielded_at = 0.0

    @property
    def well(self) -> bool:
        """Whether too few checks in a row have failed for the application to count as failed."""
        return self.failed < self._settings.health_failures

    @property
    def reason(self) -> str:
        """Why it counts as failed."""
        return f"the application has failed {self.failed} health checks: {self.detail}"

    def checked(self, ok: bool, detail: str, now: float) -> bool:
        """Take the outcome of a check. Returns whether the verdict has changed."""
        before = self.well
        self.failed = 0 if ok else self.failed + 1
        self.detail = detail
        if ok:
            self._well_at = now
        return self.well is not before

    def yielded(self, now: float) -> None:
        """Note that the service has been given away: only checks from now on count."""
        self._yielded_at = now

    def recovered(self, now: float) -> bool:
        """Whether the application is well again after the service was given away."""
        if not self._settings.health_checked:
            return now - self._yielded_at >= UNCHECKED_REST_S
        return self.failed == 0 and self._well_at is not None and self._well_at > self._yielded_at + CHECKED_REST_S

    def status(self) -> HealthStatus:
        """What the checks say, for people."""
        return HealthStatus(self._settings.health_checked, self.well, self.failed, self.detail)
