"""A testbed: hosts behind one service address, and a client beside them, as programs that measure use them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.netns import LabError

PROGRAM: Final = (sys.executable, "-m", "nfq_failover.lab.workloads")


POLL_S: Final = 0.02


class Testbed(Protocol):
    """A testbed is the lab of namespaces (driver.py) or the pair of virtual machines (machines/machines.py)."""

    @property
    def service(self) -> str:
        """The address of the service."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the service."""

    def crash(self, host: str) -> float:
        """Take the host's power away; the Unix time from which it is silent, as far as that is known."""

    def restore(self, host: str) -> None:
        """Give the host its power again."""

    def status(self, host: str) -> dict[str, Any] | None:
        """What the host's daemon says of itself; None if it does not answer."""

    def serving(self) -> str | None:
        """The host that serves; None while none does."""

    def capture(self, path: Path) -> Capture:
        """A capture of what the client sees, to be entered."""

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        """Start a workload's client; returns when all its connections are open. Raises LabError if it does not run."""


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str, poll_s: float = POLL_S) -> None:
    """Poll until `condition` holds; LabError that says `what` did not happen."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            raise LabError(f"{what} within {deadline_s:g} s.")
        time.sleep(poll_s)


class Workload:
    """A running client of `nfq_failover.lab.workloads`; `command` lacks `--json` and `--announce`."""

    def __init__(self, command: Sequence[str]) -> None:
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end it in an orderly way.
        self._process = subprocess.Popen(
            [*command, "--json", "--announce"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert self._process.stderr is not None
            line = self._process.stderr.readline()
            if '"started"' not in line:
                _, err = self._process.communicate()
                raise LabError(f"the workload did not start: {line}{err}")
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Workload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def result(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """Wait for the end and return the report; a client that has to be stopped, or died, gives a failed one."""
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            return _failed(f"the client did not end within {timeout_s:g} s")
        try:
            report: dict[str, Any] = json.loads(out)
        except ValueError:
            return _failed(f"the client died: {err.strip()[-500:]}")
        return report

    def stop(self) -> None:
        """End it at once, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _failed(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error, "wrong_bytes": 0, "bytes": 0, "failed_connections": 1}
