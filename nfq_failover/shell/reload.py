"""A running daemon reads its configuration again: the file is checked whole first, and then what can change does.

The privileged helper reads (privileged/reread.py); the service applies what it hands over. Both take some time, so
whoever asks gets a number and comes back for the outcome.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import structlog

from nfq_failover.config.differences import Differences
from nfq_failover.errors import ConfigError, Fault
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.privileged.client import HelperClient, Pending
from nfq_failover.shell.privileged.requests import Reload

KEPT: Final = 8  # outcomes of reloads, for those who come back for them

log = structlog.get_logger()


class Reloads:
    """The reloads of one service, one at a time. `apply(changes)` carries one out; `busy()`: what it has begun, such as
    new rules, is not over."""

    def __init__(
        self, helper: HelperClient, loop: Loop, apply: Callable[[Differences], None], busy: Callable[[], bool]
    ) -> None:
        self._helper = helper
        self._loop = loop
        self._apply = apply
        self._busy = busy
        self._number = 0
        self._again = False  # the file may have changed since it was read
        self._pending: Pending | None = None
        self._outcomes: dict[int, dict[str, Any]] = {}

    def start(self) -> int:
        """Begin a reload, or have one follow that is under way. Returns its number."""
        if self._pending is not None:
            self._again = True
            return self._number + 1
        self._ask()
        return self._number

    def _ask(self) -> None:
        self._number += 1
        self._pending = self._helper.ask(Reload())
        self._loop.watch(self._pending.fileno(), self._read)

    def outcome(self, number: int) -> dict[str, Any]:
        """What has come of a reload, JSON-ready: `done` false while that is not known."""
        outcome = self._outcomes.get(number)
        if outcome is None:
            known = number == self._number + self._again or (number == self._number and self._pending is not None)
            return {"done": False} if known else {"error": f"there is no reload {number}"}
        if outcome["ok"] and self._busy():
            return {"done": False}
        return {"done": True, **outcome}

    def close(self) -> None:
        """Wait for no reload any more."""
        if self._pending is not None:
            self._loop.unwatch(self._pending.fileno())
            self._pending.close()
            self._pending = None

    def _read(self) -> None:
        pending = self._pending
        if pending is None:
            return
        self.close()
        self._outcomes[self._number] = self._take(pending)
        self._outcomes.pop(self._number - KEPT, None)
        if self._again:
            self._again = False
            self._ask()

    def _take(self, pending: Pending) -> dict[str, Any]:
        """Do what the helper's answer says. Returns the outcome."""
        reply = pending.reply
        if reply is None or not pending.file:
            said = "the privileged helper does not answer" if reply is None else reply.said
            return self._refused(ConfigError(said))
        found = pickle.loads(pending.file)  # noqa: S301  # the helper is root's, and trusted
        if isinstance(found, ConfigError):
            return self._refused(found)
        self._apply(found)
        if reply.said:
            log.warning("configuration", advice=reply.said)
        applied, restart = (list(map(str, each)) for each in (found.applied, found.restart))
        log.info("configuration reloaded", applied=applied, restart=restart)
        return {
            "ok": True,
            "applied": [asdict(each) for each in found.applied],
            "restart": [asdict(each) for each in found.restart],
        }

    @staticmethod
    def _refused(error: ConfigError) -> dict[str, Any]:
        for fault in error.faults:
            log.error("configuration not reloaded, nothing has changed", error=str(fault))
        return {"ok": False, "errors": [_as_dict(fault) for fault in error.faults]}


def _as_dict(fault: Fault) -> dict[str, Any]:
    return {**asdict(fault), "line": fault.line or None}
