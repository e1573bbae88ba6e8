"""The operator's program that is told what this host has become: one run for each change, in order, one at a time.

It is a child of the daemon, with the daemon's user and no capability, and nothing waits for it. One that takes too long
is killed, and its successor told what came next.
"""

from __future__ import annotations

import re
import time
from collections import deque
from typing import Final

import structlog

from nfq_failover.core.history import MOST, Happening, History
from nfq_failover.shell.host.health import CommandCheck
from nfq_failover.shell.loop import Loop

TIMEOUT_S: Final = 10.0
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_LAST_WORDS_S: Final = 1.0  # that the end of the daemon waits for what it has still to tell

log = structlog.get_logger()


def words(command: tuple[str, ...], values: dict[str, str]) -> tuple[str, ...]:
    """The command with its placeholders filled in; what a value contains is not looked at again."""
    return tuple(_PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word) for word in command)


class Hook:
    """Runs `command` (empty: nothing is run) for each happening of one service."""

    def __init__(self, command: tuple[str, ...], name: str, service: str, loop: Loop) -> None:
        self._command = command
        self._name = name
        self._service = service
        self._loop = loop
        self._waiting: deque[Happening] = deque(maxlen=MOST)
        self._told = 0
        self._running: CommandCheck | None = None
        self._deadline = 0.0
        self._last: Happening | None = None

    def tick(self, history: History, now: float) -> None:
        """Take what is new, begin the next run if none is under way, end one that is late."""
        if not self._command:
            return
        for happening in history.since(self._told):
            self._told = happening.number
            self._waiting.append(happening)
        if self._running is not None and now >= self._deadline:
            self._ended()
        if self._running is None and self._waiting:
            self._start(self._waiting.popleft(), now)

    def _start(self, happening: Happening, now: float) -> None:
        last, self._last = self._last, happening
        event = "start" if last is None else "state" if last.role == happening.role else "role"
        values = {
            "event": event,
            "name": self._name,
            "service": self._service,
            "role": happening.role,
            "state": happening.state,
            "epoch": str(happening.epoch),
            "reason": happening.reason,
        }
        try:
            self._running = CommandCheck(words(self._command, values))
        except OSError as error:
            log.warning("the notify program can't be started", program=self._command[0], error=str(error))
            return
        self._deadline = now + TIMEOUT_S
        self._loop.watch(self._running.fileno(), self._ended)

    def _ended(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        self._loop.unwatch(running.fileno())
        wrong = running.finish()
        if wrong:
            log.warning("the notify program has failed", program=self._command[0], error=wrong)

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing waits."""
        return self._running is None and not self._waiting

    def finish(self, history: History) -> None:
        """Tell what is still to be told, and wait for a moment until that is done."""
        until = time.monotonic() + _LAST_WORDS_S
        while (now := time.monotonic()) < until:  # Ends: by the deadline.
            if self._running is not None and self._running.ended():
                self._ended()
            self.tick(history, now)
            if self.idle:
                break
            time.sleep(0.01)

    def close(self) -> None:
        """End what still runs, and run nothing more. Can be repeated."""
        self._ended()
        self._waiting.clear()
        self._command = ()
