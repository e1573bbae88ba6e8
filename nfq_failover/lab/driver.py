"""The lab of namespaces for programs that measure: a running lab with workloads and captures at its client."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.lab import nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.state import Options
from nfq_failover.lab.testbed import PROGRAM, Workload
from nfq_failover.lab.topology import Topology, namespace


class LabDriver:
    """The lab called `name`, as a testbed. A context manager: the lab is down at its end, whatever happened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lab = Lab(name)

    def __enter__(self) -> LabDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    @property
    def topology(self) -> Topology:
        """The lab's topology."""
        return self.lab.topology

    @property
    def service(self) -> str:
        """The address of the service."""
        return self.topology.service

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the service."""
        return self.topology.hosts

    def clear(self) -> None:
        """Take the lab away, if there is one, also one that was left behind by a program that was killed."""
        with suppress(CommandError):
            self.lab.down()

    def up(self, options: Options, seed: int | None = None) -> None:
        """Start the lab; returns when the pair is protected. `seed` decides the scramble's constants."""
        self.lab.up(options, seed)

    def serve_workloads(self, *ports: str) -> None:
        """Start the workloads' server on all hosts, on `ports` (like `7000-7003`)."""
        self.lab.serve([*PROGRAM, "server", *(part for port in ports for part in ("--port", port))])

    def serving(self) -> str | None:
        """The host that lives and is the primary; None while none is. In a plain lab only the first host serves."""
        for host, row in self.lab.status()["nodes"].items():
            if row["alive"] and (row["role"] == "primary" or (host == self.hosts[0] and row["state"] == "plain")):
                return str(host)
        return None

    def status(self, host: str) -> dict[str, Any] | None:
        """What the host's daemon says of itself; None if it does not answer."""
        return nodes.ask_daemon(self.lab.store, host)

    def state(self, host: str) -> str | None:
        """The state of the host's daemon; None if it does not answer."""
        return (self.status(host) or {}).get("state")

    def crash(self, host: str) -> float:
        """Power loss of a host, or of the `primary` or `backup`; the Unix time from which it was silent."""
        return float(self.lab.crash(host)["time_s"])

    def restore(self, host: str) -> None:
        """Boot a host that is off; returns when the pair is protected, or when it is known that it can't be."""
        self.lab.restore(host)

    def keep_logs(self, directory: Path) -> None:
        """Copy the logs of daemons and applications, and the lab's state, into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        for path in self.lab.store.directory.glob("*"):
            if path.suffix in (".log", ".json"):
                shutil.copy(path, directory)

    def in_client(self, *command: str) -> list[str]:
        """The command line that runs `command` on the client; `ip` becomes it, there is no shell around it."""
        return ["ip", "netns", "exec", namespace(self.name, self.topology.client), *command]

    def start_workload(self, arguments: Sequence[str]) -> Workload:
        """Start a workload's client; returns when all its connections are open. Raises LabError if it does not run."""
        return Workload(self.in_client(*PROGRAM, "client", *arguments, "--host", self.service))

    def capture(self, path: Path) -> Capture:
        """A capture of the client's side, to be entered."""
        return Capture(path, self.service, enter=self.in_client())


class ReusedLab:
    """The lab of a campaign: built anew when its conditions change or when something went wrong in it.

    A context manager around the lab called `name`: nothing of it is there before, and nothing after.
    """

    def __init__(self, name: str, ports: str, say: Callable[[str], None]) -> None:
        self.driver = LabDriver(name)
        self.seed = 0  # of the lab that stands
        self._ports = ports
        self._say = say
        self._stands: Options | None = None

    def __enter__(self) -> ReusedLab:
        self.driver.clear()  # what a campaign left behind that was killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.clear()

    def ready(self, options: Options, seed: str, what: str) -> None:
        """Have a lab with these options that serves the workloads; `seed` decides the scramble of a new one."""
        if self._stands == options:
            return
        self.spoilt()
        self.seed = random.Random(f"{seed}/lab").getrandbits(32)
        self._say(f"lab: {what}, seed {self.seed}")
        self.driver.up(options, self.seed)
        self.driver.serve_workloads(self._ports)
        self._stands = options

    def spoilt(self) -> None:
        """Take the lab away, so that the next task gets one that nothing has happened to."""
        self.driver.clear()
        self._stands = None

    def keep(self, place: Path, record: dict[str, Any], oddities: Iterable[str], capture: Path) -> None:
        """Put all that there is of an odd task into the directory `place`: logs, state, capture, record."""
        shutil.rmtree(place, ignore_errors=True)
        self.driver.keep_logs(place)
        for path in capture.parent.glob(f"{capture.name}*"):
            shutil.copy(path, place)
        (place / "record.json").write_text(json.dumps(record, indent=2) + "\n")
        self._say(f"  kept in {place}: {'; '.join(oddities)}")
