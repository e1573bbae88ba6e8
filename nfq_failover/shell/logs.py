"""Structured logging to stderr, which never keeps the packet loop waiting."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import sys
import threading
from typing import TextIO

import structlog

from nfq_failover.shell.privileged.rights import hold_nothing

MAX_LINES = 10_000
FLUSH_WAIT_S = 2.0


class BackgroundWriter:
    """A text file whose `write` returns at once: a thread writes.

    A terminal that is stopped, a full pipe or a reader that is gone would otherwise stop the daemon with it. When
    `MAX_LINES` wait already, further ones are dropped, and their number is written as soon as there is room.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue the text, without ever waiting."""
        try:
            if self._dropped:
                self._lines.put_nowait(f"({self._dropped} log lines were lost: nobody read them)\n")
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


def configure(level: str, as_json: bool) -> None:
    """`level`: debug, info, warning or error."""
    writer = BackgroundWriter(sys.stderr)
    atexit.register(writer.close)
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(writer),  # type: ignore[arg-type]  # it needs write and flush only
        cache_logger_on_first_use=True,
    )
