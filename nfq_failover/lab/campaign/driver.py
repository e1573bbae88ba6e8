"""A lab for programs that measure: a running lab with workloads and captures at its client."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import CLIENT, SERVERS, SERVICE_ADDRESS, namespace

PROGRAM = (sys.executable, "-m", "nfq_failover.lab.workloads")


class LabDriver:
    """The lab called `name`. A context manager: the lab is down at its end, whatever happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lab = Lab(name)

    def __enter__(self) -> LabDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Takes the lab away, if there is one, also one that was left behind by a program that was killed."""
        with suppress(CommandError):
            self.lab.down()

    def up(self, options: Options, seed: int | None = None) -> None:
        """Starts the lab; returns when the pair is protected. `seed` decides the scramble's constants."""
        self.lab.up(options, seed)

    def serve_workloads(self, *ports: str) -> None:
        """The workloads' server on both servers, on `ports` (like `7000-7003`)."""
        self.lab.serve([*PROGRAM, "server", *(part for port in ports for part in ("--port", port))])

    def primary(self) -> str | None:
        """`a` or `b`, whichever lives and has the role; None while neither has. In a plain lab only `a` serves."""
        nodes = self.lab.status()["nodes"]
        for name in SERVERS:
            node = nodes[name]
            if node["alive"] and (node["role"] == "primary" or (name == "a" and node["state"] == "plain")):
                return name
        return None

    def crash(self, node: str) -> float:
        """Power loss of `a`, `b`, `primary` or `backup`; the Unix time from which the node was silent."""
        return float(self.lab.crash(node)["time_s"])

    def keep_logs(self, directory: Path) -> None:
        """Copies the logs of daemons and applications, and the lab's state, into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        for path in self.lab.store.directory.glob("*"):
            if path.suffix in (".log", ".json"):
                shutil.copy(path, directory)

    def in_client(self, *command: str) -> list[str]:
        """The command line that runs `command` on the client; `ip` becomes it, there is no shell around it."""
        return ["ip", "netns", "exec", namespace(self.name, CLIENT), *command]

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        """Starts a workload's client; returns when all its connections are open. Raises LabError if it does not run."""
        return Workload(self.in_client(*PROGRAM, "client", *arguments, "--host", SERVICE_ADDRESS))

    def capture(self, path: Path) -> Capture:
        """A capture of the client's side, to be entered."""
        return Capture(path, SERVICE_ADDRESS, enter=self.in_client())


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
        """Waits for the end and returns the report; a client that has to be stopped, or died, gives a failed one."""
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
        """Ends it at once, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _failed(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error, "wrong_bytes": 0, "bytes": 0, "failed_connections": 1}
