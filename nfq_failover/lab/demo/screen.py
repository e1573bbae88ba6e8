"""What the demonstration shows while it runs: a progress line, and who is primary."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, TextIO

from nfq_failover.errors import NfqFailoverError
from nfq_failover.lab.campaign.driver import LabDriver

_BAR: Final = 30
_RATE_WINDOW_S: Final = 0.5
_PLAIN_INTERVAL_S: Final = 1.0


class Screen:
    """Writes to a terminal, or to a file: there the progress is one line every second."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._last_shown = 0.0
        self._open = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self.end_progress()
        print(text, file=self._out, flush=True)

    def step(self, text: str) -> None:
        """A line that says what is being done, with the time since the start."""
        self.say(f"[{time.monotonic() - self._began:5.1f} s] {text}")

    def progress(self, received: int, size: int, who: str) -> None:
        """The bar. Called as often as one likes."""
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
        """The bar's last state stays as a line."""
        if self._open:
            self._out.write("\n")
            self._open = False

    def _mbit(self) -> float:
        (first, start), (last, end) = self._samples[0], self._samples[-1]
        return (end - start) * 8 / (last - first) / 1e6 if last > first else 0.0


def bar(received: int, size: int) -> str:
    """`[#####.....]  52 %`."""
    share = min(1.0, received / size) if size else 1.0
    full = int(share * _BAR)
    return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"


class Watch:
    """Crashes the primary and watches who is primary afterwards, beside the thread that shows the progress.

    It watches for `timeout_s` at most.
    """

    def __init__(self, driver: LabDriver, primary: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.crash_time: float | None = None
        self._driver = driver
        self._before = primary
        self._who = f"primary: {primary}"
        self._error: NfqFailoverError | None = None
        self._thread: threading.Thread | None = None

    def crash(self) -> None:
        """Starts the crash and returns at once."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def who(self) -> str:
        """Who is primary, in words."""
        return self._who

    def finish(self) -> None:
        """Waits for the takeover. Raises what a command of the lab raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._who = f"{self._before} loses power"
            self.crash_time = self._driver.crash(self._before)
            self._who = f"{self._before} is dead"
            deadline = time.monotonic() + self._timeout_s
            while time.monotonic() < deadline:
                primary = self._driver.primary()
                if primary not in (None, self._before):
                    self._who = f"{self._before} is dead, primary: {primary}"
                    return
                time.sleep(0.1)
        except NfqFailoverError as error:
            self._error = error
