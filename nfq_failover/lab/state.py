"""What a lab remembers between commands, and where: `/run/nfq-failover-lab/NAME/`.

    lab.json          topology, options, cuts, applications to restart, events with their times; written under `lock`
    secret            what the fence scripts say to the fence agent (mode 0600)
    sync.key          the daemons' shared key (mode 0600)
    HOST/             each server's disk: config, fence script, daemon's state and process id; survives a crash
    *.log             output of daemons, scramble stages, fence agent, applications and detached commands

Whether a server is on is not remembered but looked up: its port at the switch is up, or it isn't.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.topology import TWO_HOSTS, Topology, check_name
from nfq_failover.lab.wires import DEFAULT_RATE, UNLIMITED, Wires, bits_per_second

ROOT: Final = Path("/run/nfq-failover-lab")
DEFAULT_PORTS: Final = ("80", "7000-7099")
DEFAULT_HEARTBEAT_MS: Final = 50
_TAPS: Final = ("clone", "multicast")


@dataclass(frozen=True)
class Options:
    """What `up` was told. Percentages from 0 to 100; `ports` are single ports and ranges as written."""

    tap: str = "clone"
    heartbeat_ms: int = DEFAULT_HEARTBEAT_MS
    rate: str = DEFAULT_RATE
    loss: float = 0.0
    tap_loss: float = 0.0
    ports: tuple[str, ...] = DEFAULT_PORTS
    scramble: bool = True
    plain: bool = False
    fence: bool = True
    witness: bool = False
    odd_host: str | None = None
    health: bool = False
    divergence: str = "default"
    out_of_step_ms: int = 0  # 0: the daemon's default
    settings: tuple[str, ...] = ()  # more lines of the daemons' configuration

    def check(self, topology: Topology = TWO_HOSTS) -> None:
        """Raise CommandError at the first option that makes no sense."""
        if self.tap not in _TAPS:
            raise CommandError(f"{self.tap!r} is not a tap. Use --tap clone or --tap multicast.")
        if not 10 <= self.heartbeat_ms <= 5000:
            raise CommandError(f"A heartbeat every {self.heartbeat_ms} ms is out of range. Use 10 to 5000.")
        if self.rate != UNLIMITED:
            bits_per_second(self.rate)
        for name, percent in (("--loss", self.loss), ("--tap-loss", self.tap_loss)):
            if not 0 <= percent <= 100:
                raise CommandError(f"{name} {percent:g} is not a percentage. Use 0 to 100.")
        if self.odd_host not in (None, *topology.hosts):
            hosts = " or ".join(topology.hosts)
            raise CommandError(f"{self.odd_host!r} is not a server of the lab. NFQF_LAB_ODD_HOST must be {hosts}.")
        if not self.plain and len(topology.hosts) != 2:
            raise CommandError("The daemon has one peer, so a lab with daemons has two hosts. Use a plain lab.")
        if not self.port_ranges():
            raise CommandError("A service needs a port. Name at least one with --port.")

    def port_ranges(self) -> list[tuple[int, int]]:
        """The service's ports as inclusive ranges."""
        ranges = []
        for text in self.ports:
            low, _, high = text.partition("-")
            try:
                first, last = int(low), int(high or low)
            except ValueError:
                first = last = 0
            if not 1 <= first <= last <= 65535:
                raise CommandError(f"{text!r} is not a port. Use a number from 1 to 65535 or a range like 7000-7099.")
            ranges.append((first, last))
        return ranges

    def serves(self, port: int) -> bool:
        """Whether `port` belongs to the service."""
        return any(low <= port <= high for low, high in self.port_ranges())

    @property
    def wires(self) -> Wires:
        """What the wires must know of them."""
        return Wires(
            rate=self.rate,
            cut_segments=self.loss > 0 or self.tap_loss > 0,
            multicast=self.tap == "multicast",
            plain=self.plain,
            odd_host=self.odd_host,
        )


@dataclass(frozen=True)
class Cut:
    """A cable that does not carry everything. `direction` is the node's: `in` is what it receives."""

    node: str
    only: str | None = None  # "sync", "witness", "client", or None: everything
    direction: str | None = None  # "in", "out", or None: both

    def check(self, topology: Topology = TWO_HOSTS) -> None:
        """Raise CommandError if there is no such cut."""
        if self.node not in topology.names:
            raise CommandError(f"There is no node {self.node!r}. Use one of: {', '.join(topology.names)}.")
        if self.only not in (None, "sync", "witness", "client"):
            raise CommandError(f"{self.only!r} can't be cut. Use --only sync, witness or client, or leave it out.")
        if self.direction not in (None, "in", "out"):
            raise CommandError(f"{self.direction!r} is not a direction. Use in or out.")
        if self.node not in topology.hosts and self.only:
            host, node = topology.hosts[0], self.node
            raise CommandError(f"--only is for the servers' cables. Use `cut {node}`, or `cut {host} --only client`.")


@dataclass(frozen=True)
class Application:
    """A command that `serve` started, to be started again by `restore`."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]


@dataclass
class LabState:
    """The content of lab.json. `events`: {"event", "node", "monotonic_s", "time_s", ...}, oldest first."""

    options: Options
    seed: int
    topology: Topology = TWO_HOSTS
    phase: str = "starting"  # then "up"
    boots: dict[str, int] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    applications: list[Application] = field(default_factory=list)
    tap_loss_at: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    def came_up(self) -> None:
        """The lab is up: everything is built and runs."""
        self.phase = "up"

    def cut(self, cut: Cut) -> None:
        """A cable no longer carries everything. The same cut again changes nothing."""
        if cut not in self.cuts:
            self.cuts.append(cut)

    def heal(self, node: str) -> None:
        """All of the node's cables are whole again."""
        self.cuts = [cut for cut in self.cuts if cut.node != node]

    def lose_tap_at(self, host: str | None) -> None:
        """The tap now ends at this host, and its frames are lost there; None: there is no tap."""
        self.tap_loss_at = host

    def note(self, event: str, node: str, **fields: Any) -> dict[str, Any]:
        """Add an event. Its times are those of this moment unless given."""
        row = {"event": event, "node": node, "monotonic_s": time.monotonic(), "time_s": time.time(), **fields}
        self.events.append(row)
        return row

    def last_event(self, node: str, *names: str) -> dict[str, Any] | None:
        """The newest event of the node among `names`."""
        return next((row for row in reversed(self.events) if row["node"] == node and row["event"] in names), None)


class Store:
    """The directory of one lab."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.directory = ROOT / name

    @property
    def exists(self) -> bool:
        """Whether the lab is up, or half up."""
        return (self.directory / "lab.json").exists()

    def create(self, state: LabState) -> None:
        """Make the directory. CommandError if the lab is there already."""
        ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise CommandError(
                f"The lab {self.name!r} is up already. Use it, or first take it away:"
                f" nfq-failover lab --name {self.name} down"
            ) from None
        for host in state.topology.hosts:
            (self.directory / host).mkdir()
        write_private(self.directory / "secret", secrets.token_hex(16) + "\n")
        write_private(self.directory / "sync.key", secrets.token_hex(32) + "\n")
        self._write(state)

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            ROOT.rmdir()  # only if this was the last lab

    def read(self) -> LabState:
        """The state now. CommandError if there is no such lab, or if another version has made it."""
        try:
            return self._parse(json.loads((self.directory / "lab.json").read_text()))
        except FileNotFoundError:
            raise CommandError(
                f"There is no lab {self.name!r}. Start it: nfq-failover lab --name {self.name} up"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise CommandError(
                f"The lab {self.name!r} is not of this version. Take it away: nfq-failover lab --name {self.name} down"
            ) from None

    @staticmethod
    def _parse(raw: dict[str, Any]) -> LabState:
        options = raw.pop("options")
        return LabState(
            topology=Topology.from_json(raw.pop("topology")),
            options=Options(**{**options, "ports": tuple(options["ports"]), "settings": tuple(options["settings"])}),
            cuts=[Cut(**cut) for cut in raw.pop("cuts")],
            applications=[Application(tuple(row["argv"]), row["cwd"], row["env"]) for row in raw.pop("applications")],
            **raw,
        )

    @contextlib.contextmanager
    def changing(self) -> Iterator[LabState]:
        """Read, change, write, with no other command in between. What is done inside must be short."""
        if not self.exists:
            self.read()
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state
            self._write(state)

    def log(self, name: str) -> Path:
        """The file for the output of what is called `name`."""
        return self.directory / f"{name}.log"

    def _write(self, state: LabState) -> None:
        # The applications' environments may hold secrets: mode 0600.
        new = self.directory / "lab.json.new"
        write_private(new, json.dumps(asdict(state), indent=1))
        new.replace(self.directory / "lab.json")


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that only root can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
