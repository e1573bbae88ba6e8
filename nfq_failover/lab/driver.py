"""Drives a lab through its command line: what the demo, the campaign and the benchmark do, a user can do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.capture import Capture

SERVICE: Final = "10.77.0.100"
SERVERS: Final = ("a", "b")
_STOP_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class CrashTime:
    """The Unix times, in seconds, between which a host lost its power."""

    before: float
    after: float


class LabDriver:
    """A lab called `name`. A context manager: the lab is down at its end, whatever happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        program = Path(sys.executable).with_name("nfq-failover")
        if not program.exists():
            raise CommandError(f"{program} is not there. Run script/bootstrap.")
        self._command = [str(program), "lab", "--name", name]

    def __enter__(self) -> LabDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(CommandError):
            self.down()

    def run(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """One `nfq-failover lab` command; its standard output. Raises CommandError with what it said if it fails."""
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end it in an orderly way.
        process = subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            _stop(process)
            raise CommandError(f"lab {' '.join(arguments)} did not end within {timeout_s:g} s") from error
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            raise CommandError(f"lab {' '.join(arguments)} failed: {err.strip() or out.strip()}")
        return out

    def up(self, *options: str) -> None:
        """Starts the lab; returns when the pair is protected."""
        self.run("up", *options)

    def down(self) -> None:
        """Takes the lab away. Raises CommandError if there is none."""
        self.run("down")

    def serve(self, *command: str) -> None:
        """The same application on both servers; returns when both listen."""
        self.run("serve", "--", *command)

    def crash(self, node: str) -> CrashTime:
        """Power loss of `a`, `b`, `primary` or `backup`."""
        before = time.time()
        self.run("crash", node)
        return CrashTime(before, time.time())

    def restore(self, node: str) -> None:
        """Boots a crashed node; returns when the pair is protected again."""
        self.run("restore", node)

    def status(self) -> dict[str, Any]:
        """What `status --json` says."""
        values: dict[str, Any] = json.loads(self.run("status", "--json"))
        return values

    def primary(self) -> str | None:
        """`a` or `b`, whichever lives and has the role; None while neither has."""
        nodes = self.status()["nodes"]
        return next((name for name in SERVERS if nodes[name]["alive"] and nodes[name]["role"] == "primary"), None)

    def in_client(self, *command: str) -> list[str]:
        """The command line that runs `command` on the client; it becomes one process with no shell around it."""
        return ["ip", "netns", "exec", f"{self.name}-client", *command]

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        """Starts a workload's client; returns when all its connections are open."""
        return Workload(self.in_client(sys.executable, "-m", "nfq_failover.lab.workloads", "client", *arguments))

    def capture(self, path: Path) -> Capture:
        """A capture of the client's side, to be entered."""
        return Capture(path, SERVICE, enter=self.in_client())


class Workload:
    """A running client of `nfq_failover.lab.workloads` on the lab's service."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*command, "--host", SERVICE, "--json", "--announce"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        self.announcement = self._process.stderr.readline()
        if '"started"' not in self.announcement:
            _, err = self._process.communicate()
            raise CommandError(f"the workload did not start: {self.announcement}{err}")

    def result(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """Waits for the end and returns the report; one that has to be stopped is a failed one."""
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            return {"ok": False, "error": f"the client did not end within {timeout_s:g} s", "wrong_bytes": 0}
        try:
            report: dict[str, Any] = json.loads(out)
        except ValueError:
            return {"ok": False, "error": f"the client died: {err.strip()[-500:]}", "wrong_bytes": 0}
        return report

    def stop(self) -> None:
        """Ends it at once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
