"""Capture what the client sees, with tcpdump in the client's namespace, and know whether the capture is whole."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from nfq_failover.errors import CommandError

SNAPSHOT_BYTES: Final = 128  # Ethernet 14 + IPv6 40 + TCP 60 at most
BUFFER_KIB: Final = 65_536
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 20.0
# Time for packets that are on their way through the capture's ring when it is told to stop.
_SETTLE_S: Final = 0.3
_CATCH_UP_S: Final = 5.0
_ASK_S: Final = 0.05
_COUNTS: Final = re.compile(r"(\d+) packets? (captured|received by filter|dropped by kernel)")


@dataclass(frozen=True, slots=True)
class CaptureCounts:
    """tcpdump's own account: packets written, packets that passed the filter, packets lost for want of buffer."""

    captured: int
    received: int
    dropped: int

    @property
    def missing(self) -> int:
        """Packets that the capture should hold and does not. 0 means that the capture is whole."""
        return max(self.dropped, self.received - self.captured)


def parse_counts(text: str) -> CaptureCounts:
    """Read the last account in what tcpdump has printed, at its end or when asked. Raises CommandError without one."""
    found = {name: int(number) for number, name in _COUNTS.findall(text)}
    try:
        return CaptureCounts(found["captured"], found["received by filter"], found["dropped by kernel"])
    except KeyError as error:
        raise CommandError(f"tcpdump did not say how many packets it lost. It printed:\n{text}") from error


def read_counts(path: Path) -> CaptureCounts | None:
    """The counts that belong to a finished capture; None if it was made by something other than `Capture`."""
    log = _log_of(path)
    return parse_counts(log.read_text()) if log.exists() else None


def _log_of(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".tcpdump")


class Capture:
    """A tcpdump on `interface`, started by `enter` (like `["ip", "netns", "exec", "nfqf-client"]`), writing `path`.

    A context manager. It captures from the return of `__enter__` on; `counts` is there after `stop` or `__exit__`;
    what tcpdump said stays beside the capture, for `read_counts`.
    """

    def __init__(self, path: Path, service: str, enter: Sequence[str] = (), interface: str = "eth0") -> None:
        self.path = path
        self.counts: CaptureCounts | None = None
        self._log = _log_of(path)
        # Immediate mode, or the last second of packets would still be in the ring when tcpdump ends.
        self._command = [*enter, "tcpdump", "-i", interface, "-n", "-s", str(SNAPSHOT_BYTES), "-B", str(BUFFER_KIB)]
        # We open the file: tcpdump gives up root, and of Ubuntu's 4.99.4 a `-Z root` with a file makes a crash.
        self._command += ["--immediate-mode", "-w", "-", "(tcp or icmp) and host", service]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Capture:
        with self._log.open("wb") as log, self.path.open("wb") as file:
            self._process = subprocess.Popen(self._command, stdout=file, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while "listening on" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._kill()
                raise CommandError(f"the capture does not start: {self._log.read_text().strip()}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self._kill()

    def stop(self) -> CaptureCounts:
        """End the capture. Returns its counts. Raises CommandError if tcpdump failed."""
        if self.counts is None:
            if self._process is None:
                raise CommandError("the capture was never started")
            self._settle(self._process)
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._kill()
            self.counts = parse_counts(self._log.read_text())
        return self.counts

    def _settle(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until tcpdump has written what has passed its filter: on a busy machine it may be late."""
        give_up = time.monotonic() + _CATCH_UP_S
        time.sleep(_SETTLE_S)
        while process.poll() is None and time.monotonic() < give_up:
            process.send_signal(signal.SIGUSR1)  # then it says how far it is
            time.sleep(_ASK_S)
            with contextlib.suppress(CommandError):
                counts = parse_counts(self._log.read_text())
                if counts.received - counts.captured <= counts.dropped:
                    return

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
