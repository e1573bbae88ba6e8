"""Structured logging to stderr, which never keeps the packet loop waiting, and says no more than somebody reads.

Where stderr is the journal, each line begins with its priority (sd-daemon(3)), and the journal has the time.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, TextIO

import structlog

from nfq_failover.shell.privileged.rights import hold_nothing
from nfq_failover.shell.repeats import Repeats

MAX_LINES = 10_000
FLUSH_WAIT_S = 2.0
SUM_EVERY_S = 1.0
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def is_journal(fd: int) -> bool:
    """Whether a descriptor leads to the journal: systemd says which one it has connected (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


class BackgroundWriter:
    """A text file whose `write` returns at once: a thread writes.

    A terminal that is stopped, a full pipe or a reader that is gone would otherwise stop the daemon with it. When
    `MAX_LINES` wait already, further ones are dropped, and their number is written as soon as there is room.
    """

    def __init__(self, file: TextIO, lost: Callable[[int], str] = "({} log lines were lost)\n".format) -> None:
        """`lost` makes the line that tells how many were dropped."""
        self._file = file
        self._lost = lost
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue the text, without ever waiting."""
        try:
            if self._dropped:
                self._lines.put_nowait(self._lost(self._dropped))
                self._dropped = 0
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing to do: see `close`."""

    def _work(self) -> None:
        hold_nothing()
        # Ends: with the daemon, in a thread.
        while (text := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more; the daemon goes on
                self._file.write(text)
                if self._lines.empty():
                    self._file.flush()

    def close(self) -> None:
        """Wait, for a limited time, until everything is written. What is logged later is lost."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(FLUSH_WAIT_S)


class Form:
    """How an event becomes a line: for people or as JSON; for the journal or for a file."""

    def __init__(self, as_json: bool, journal: bool) -> None:
        self._journal = journal
        self._stamps = as_json or not journal  # JSON has the same keys wherever it goes
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._render: Any = (
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
        )

    def line(self, event: dict[str, Any]) -> str:
        """The text of an event, which has "level" and "event" among its fields; without the last line feed."""
        level = event["level"]
        stamped = self._stamp(None, level, dict(event)) if self._stamps else dict(event)
        text: str = self._render(None, level, stamped)
        if not self._journal:
            return text
        priority = f"<{PRIORITIES[level]}>"
        return "\n".join(priority + part for part in text.split("\n"))  # each line is an entry of its own


class Log:
    """The daemon's log: events go through here on their way to the writer."""

    def __init__(self, form: Form, file: TextIO, level: str) -> None:
        self._form = form
        self.least = PRIORITIES[level]
        self._repeats = Repeats()
        self._next_sum = 0.0
        self.writer = BackgroundWriter(file, self._lost)

    def process(self, _: Any, method: str, event: Any) -> str:
        """Be structlog's last processor. Raises `DropEvent` for what is only counted, or not to be logged at all."""
        if PRIORITIES[method] > self.least:
            raise structlog.DropEvent
        event["level"] = method
        if method != "debug" and not self._repeats.admit(event, time.monotonic()):
            raise structlog.DropEvent
        return self._form.line(event)

    def set_level(self, level: str) -> None:
        """Log from this level on."""
        self.least = PRIORITIES[level]

    def pass_time(self, now: float, *, at_once: bool = False) -> None:
        """Sum up what was said too often, if it is time."""
        if now < self._next_sum and not at_once:
            return
        self._next_sum = now + SUM_EVERY_S
        for event in self._repeats.due(now, at_once=at_once):
            self.writer.write(self._form.line(event) + "\n")

    def close(self) -> None:
        """Write what there is."""
        self.pass_time(time.monotonic(), at_once=True)
        self.writer.close()

    def _lost(self, count: int) -> str:
        return (
            self._form.line({"level": "warning", "event": "log lines were lost: nobody read them", "count": count})
            + "\n"
        )

    def crashed(self, error: Exception) -> None:
        """Our own bug ends the program."""
        trace = "".join(traceback.format_exception(error)).rstrip()
        event = {"level": "critical", "event": "internal error: the program ends", "error": repr(error)}
        self.writer.write(self._form.line({**event, "exception": trace}) + "\n")


_current: list[Log] = []


def configure(level: str, as_json: bool) -> None:
    """Log to stderr from now on. `level`: debug, info, warning or error."""
    log = Log(Form(as_json, is_journal(2)), sys.stderr, level)
    _current[:] = [log]
    atexit.register(log.close)
    structlog.configure(
        processors=[log.process],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),  # the level may change: `process` knows it
        logger_factory=structlog.WriteLoggerFactory(log.writer),  # type: ignore[arg-type]  # it needs write and flush only
        cache_logger_on_first_use=True,
    )


def set_level(level: str) -> None:
    """Log from this level on."""
    for log in _current:
        log.set_level(level)


def pass_time(now: float) -> None:
    """Let the log sum up what was said too often. To be called at least every few seconds."""
    for log in _current:
        log.pass_time(now)


def crashed(error: Exception) -> bool:
    """Log what ends the program. Returns whether there is a log."""
    for log in _current:
        log.crashed(error)
    return bool(_current)


def last_words(as_json: bool, text: str) -> bytes:
    """What a daemon says with its last breath, past everything else: a line of this form, to be written to stderr."""
    journal = is_journal(2)
    if not as_json and not journal:
        return f"nfq-failover: {text}\n".encode()
    event = {"level": "error", "event": text}
    return (Form(as_json, journal).line(event).strip() + "\n").encode()
