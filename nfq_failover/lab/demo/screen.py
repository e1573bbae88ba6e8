"""What the demonstration shows while it runs: a progress line, and who is primary."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.testbed import Testbed

_BAR: Final = 30
_RATE_WINDOW_S: Final = 0.5
_PLAIN_INTERVAL_S: Final = 1.0


class Screen:
    """What is shown, on a terminal or in a file: there the progress is one line every second."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._last_shown = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.end_progress()
        print(text, file=self._out, flush=True)

    def step(self, text: str) -> None:
        """Write what is being done, with the time since the start."""
        self.say(f"[{time.monotonic() - self._began:5.1f} s] {text}")

    def progress(self, received: int, size: int, who: str) -> None:
        """Show the bar. It may be called at any rate."""
        now = time.monotonic()
        self._samples.append((now, received))
        while now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        if not self._terminal and received < size and now - self._last_shown < _PLAIN_INTERVAL_S:
            return
        self._last_shown = now
        line = f"          {bar(received, size)} {self._mbit():6.1f} Mbit/s   {who}"
        if self._terminal:
            self._out.write(f"\r\x1b[K{line}")
            self._open = True
        else:
            self._out.write(f"{line}\n")
        self._out.flush()

    def end_progress(self) -> None:
        """Leave the bar's last state as a line."""
        if self._open:
            self._out.write("\n")
            self._open = False

    def _mbit(self) -> float:
        (first, start), (last, end) = self._samples[0], self._samples[-1]
        return (end - start) * 8 / (last - first) / 1e6 if last > first else 0.0


def show(screen: Screen, demonstrate: Callable[[Path], bool], interrupted: str) -> int:
    """Run a demonstration in an empty directory. `interrupted`: what is said if it is interrupted.

    Exit code: 0 good verdict, 1 bad verdict, 2 could not be run, 130 interrupted.
    """
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="nfq-failover-demo-") as scratch:
            return 0 if demonstrate(Path(scratch)) else 1
    except (CommandError, LabError) as error:
        screen.end_progress()
        print(f"The demo could not be run: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        screen.end_progress()
        print(interrupted, file=sys.stderr)
        return EXIT_CODE


def bar(received: int, size: int) -> str:
    """`[#####.....]  52 %`."""
    share = min(1.0, received / size) if size else 1.0
    full = int(share * _BAR)
    return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"


class Watch:
    """A thread that crashes the primary and watches who is primary afterwards, beside what shows the progress.

    It watches for `timeout_s` at most; with 0 it asks nobody.
    """

    def __init__(self, testbed: Testbed, primary: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.crash_time: float | None = None
        self._testbed = testbed
        self._before = primary
        self._who = f"primary: {primary}"
        self._error: NfqFailoverError | None = None
        self._thread: threading.Thread | None = None

    def crash(self) -> None:
        """Start the crash; returns at once."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def who(self) -> str:
        """Who is primary, in words."""
        return self._who

    def finish(self) -> None:
        """Wait for the takeover. Raises what the testbed raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._who = f"{self._before} loses power"
            self.crash_time = self._testbed.crash(self._before)
            self._who = f"{self._before} is dead"
            deadline = time.monotonic() + self._timeout_s
            while time.monotonic() < deadline:
                primary = self._testbed.serving()
                if primary not in (None, self._before):
                    self._who = f"{self._before} is dead, primary: {primary}"
                    return
                time.sleep(0.1)
        except NfqFailoverError as error:
            self._error = error
