"""Keeps the host's firewall rules at the profile that the node wants, without ever blocking the packet loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import ApplyRules, Event, Profile, RulesApplied, RulesLost
from nfq_failover.core.ports import Ports
from nfq_failover.shell.firewall.script import RulesError
from nfq_failover.shell.host.allowance import Allowance
from nfq_failover.shell.loop import Loop
from nfq_failover.wire.segment import FlowKey

CHECK_EVERY_S = 2.0
CHANGED_S = 0.05  # after a change somebody's next one is waited for
CHECKS_APART_S = 1.0  # on a host whose rules change all the time
OTHERS_AT_ONCE, OTHERS_APART_S = 3, 10.0
RETRY_S = 1.0
STUCK_S = 60.0

log = structlog.get_logger()


class Script(Protocol):
    """A run of the rules script, under way."""

    def pidfd(self) -> int:
        """A descriptor that polls readable when the script has ended."""

    def wait(self) -> tuple[int, str]:
        """Wait for the end. Returns the exit code and what the script said."""

    def finish(self) -> str:
        """Returns the warnings ('' for none) of a run that succeeded. Raises `RulesError` for one that did not."""

    def finish_check(self) -> str | None:
        """For `start_check`: returns None if all rules are as installed, else what is missing or changed."""


class Runner(Protocol):
    """What runs the script: firewall/script.py itself, or the privileged helper. All of it raises `RulesError`."""

    def start_apply(self, profile: Profile, inherited: tuple[FlowKey, ...] = (), ports: Ports | None = None) -> Script:
        """Begin to install a profile. `ports`: of the service; None: those of the start."""

    def apply(self, profile: Profile, inherited: tuple[FlowKey, ...] = (), ports: Ports | None = None) -> str:
        """Install a profile and wait for it. Returns warnings."""

    def start_check(self) -> Script:
        """Begin to compare the rules with what was installed."""

    def remove(self) -> str:
        """Take all rules out, and wait for it."""


class Changes(Protocol):
    """Says when rules have changed, whosever they are."""

    def fileno(self) -> int | None:
        """Readable when there was a change."""

    def came(self) -> bool:
        """Whether there was one since the last call."""

    def close(self) -> None:
        """Nobody asks any more."""


class RulesKeeper:
    """Runs one script at a time: for the profile that was wanted last, otherwise a check, from time to time and when
    rules have changed."""

    def __init__(
        self,
        runner: Runner,
        loop: Loop,
        changes: Changes | None = None,
        others_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`others_changed` is called when somebody else may have changed rules, but not all the time."""
        self._runner = runner
        self._others_changed = others_changed
        self._may_call = Allowance(OTHERS_AT_ONCE, OTHERS_APART_S)
        self._loop = loop
        self._changes = changes
        if changes is not None and (fd := changes.fileno()) is not None:
            loop.watch(fd, self._heard)
        self._changed = False
        self._wanted = ApplyRules(Profile.BACKUP)
        self._was_told = False
        self._pending = False
        self._running: tuple[Script, ApplyRules | None] | None = None
        self._events: list[Event] = []
        self._next_check = self._checked_at = 0.0
        self._stuck_at: float | None = None
        self._runs_since = 0.0
        self._retry_at: float | None = None
        self._installed: Profile | None = None
        self._wrong: dict[str, str] = {}  # what is known to be wrong with the rules, by its code

    def silence(self) -> None:
        """Install the silent profile, and wait for it. Raises `RulesError`."""
        warnings = self._runner.apply(Profile.BACKUP)
        self._installed = Profile.BACKUP
        if warnings:
            log.warning("firewall rules", said=warnings)

    def apply(self, wanted: ApplyRules) -> None:
        """Bring the rules to a profile; the outcome is an event of a later `tick`."""
        self._wanted, self._pending, self._retry_at, self._was_told = wanted, True, None, True
        self._next()

    def _heard(self) -> None:
        """Rules have changed. What happens while we change ours is our own, or found by the next periodic check."""
        ours = self._running is not None and self._running[1] is not None
        self._changed = (self._changes is not None and self._changes.came() and not ours) or self._changed

    def _next(self) -> None:
        if self._running is not None or not self._pending:
            return
        self._pending = False
        wanted = self._wanted
        try:
            self._run(self._runner.start_apply(wanted.profile, wanted.inherited, wanted.ports), wanted)
        except RulesError as error:
            self._failed(wanted, str(error))

    def _run(self, script: Script, wanted: ApplyRules | None) -> None:
        self._running = (script, wanted)
        self._stuck_at = None
        self._loop.watch(script.pidfd(), self._ended)

    def _ended(self) -> None:
        if self._running is None:
            return
        (script, wanted), self._running = self._running, None
        self._loop.unwatch(script.pidfd())
        try:
            if wanted is None:
                self._checked(script.finish_check())
            else:
                warnings = script.finish()
                self._installed = wanted.profile
                self._wrong.clear()
                if warnings:
                    log.warning("firewall rules", profile=wanted.profile.value, said=warnings)
                self._events.append(RulesApplied(wanted.profile, True, ports=wanted.ports))
        except RulesError as error:
            if wanted is not None:
                self._failed(wanted, str(error))
            else:
                self._unchecked(error)
        self._next()

    def _failed(self, wanted: ApplyRules, detail: str) -> None:
        self._events.append(RulesApplied(wanted.profile, False, detail, wanted.ports))
        self._wrong["rules-not-applied"] = f"the rules '{wanted.profile.value}' could not be installed: {detail}"
        self._retry_at = 0.0

    def _checked(self, problem: str | None) -> None:
        self._wrong.pop("rules-unchecked", None)
        if problem is None:
            self._wrong.pop("rules-lost", None)
        elif not self._pending:
            self._events.append(RulesLost(problem))
            self._wrong["rules-lost"] = f"firewall rules are missing or changed: {problem}"
            self._pending = True  # put them back

    def _unchecked(self, error: RulesError) -> None:
        log.error("firewall rules can't be checked", error=str(error))
        self._wrong["rules-unchecked"] = f"the firewall rules can't be checked: {error}"

    def concerns(self, now: float) -> list[Concern]:
        """What is wrong with the rules, until it is mended."""
        cure = "see what else changes the firewall (nfq-failover-rules check), and that it leaves ours in place"
        found = [Concern(code, Weight.UNPROTECTED, what, cure) for code, what in self._wrong.items()]
        if self._running is not None and self._stuck_at is not None and now - self._runs_since >= STUCK_S / 2:
            what = f"the rules script has not ended for {STUCK_S / 2:.0f} s"
            found.append(Concern("rules-stuck", Weight.UNPROTECTED, what, "see what holds the script or the helper"))
        return found

    def tick(self, now: float) -> list[Event]:
        """Begin a check if it is time. Returns what has come to an end."""
        if self._retry_at is not None:
            if self._retry_at == 0.0:
                self._retry_at = now + RETRY_S
            elif now >= self._retry_at:
                self._retry_at, self._pending = None, True
                self._next()
        if self._running is not None:
            if self._stuck_at is None:
                self._stuck_at, self._runs_since = now + STUCK_S, now
            elif now >= self._stuck_at:
                self._stuck_at = now + STUCK_S
                log.error("the firewall rules are neither done nor refused: see what holds the script or the helper")
        if self._changed:
            self._changed = False
            if self._may_call.take(now):
                self._others_changed()
            self._next_check = min(self._next_check, max(now + CHANGED_S, self._checked_at + CHECKS_APART_S))
        if now >= self._next_check and self._running is None:
            self._checked_at = now
            self._next_check = now + CHECK_EVERY_S
            try:
                self._run(self._runner.start_check(), None)
            except RulesError as error:
                self._unchecked(error)
        events, self._events = self._events, []
        return events

    def describe(self) -> dict[str, object]:
        """Returns the rules' row in the status."""
        return {
            "wanted": self._wanted.profile.value,
            "installed": self._installed.value if self._installed else None,
            "pending": self._pending or self._running is not None,
        }

    @property
    def in_force(self) -> Profile | None:
        """The profile that the host has; None while that changes, or is not known."""
        return None if self.busy or self._wrong else self._installed

    @property
    def busy(self) -> bool:
        """Whether rules that were asked for are on their way."""
        return self._pending or (self._running is not None and self._running[1] is not None)

    def close(self, stay: bool = False) -> None:
        """Take all rules out again, unless the service address stays: then the host stays silent.

        `stay`: the host goes on serving without the daemon, by the rules that were wanted last.
        """
        if self._running is not None:
            (script, wanted), self._running = self._running, None
            self._loop.unwatch(script.pidfd())
            status, _ = script.wait()
            if not status and wanted is not None:
                self._installed = wanted.profile
        self._ignore_changes()
        try:
            if stay:
                late = self._pending or self._retry_at is not None or self._installed is not self._wanted.profile
                if late and self._was_told:
                    self._runner.apply(self._wanted.profile, self._wanted.inherited, self._wanted.ports)
                return
            self._runner.remove()
        except RulesError as error:
            log.error("firewall rules stay in force", why=str(error))

    def _ignore_changes(self) -> None:
        if self._changes is None:
            return
        if (fd := self._changes.fileno()) is not None:
            self._loop.unwatch(fd)
        self._changes.close()
        self._changes = None
