"""A scenario: all that a run needs, as plain data. It can be written to a file and read back.

What is not said here is drawn from generators seeded with `seed`, one for each path and host: a change in one place
does not change the dice of another. `generate.from_seed` makes scenarios; those that once failed are in `scenarios/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .network import Quality

ECHO, DOWNLOAD, UPLOAD, PUSH, TURNS = 7000, 7001, 7002, 7003, 7004
ADDED = 7100  # a port of a reload, where nobody connects
PROBE_PORT = 50_000  # from here on: connections after the healing
DIRECTORY = Path(__file__).parent / "scenarios"


@dataclass(frozen=True)
class Connection:
    """One connection of the client. `abort_at`: after how many bytes the client resets it. `again`: how many seconds
    after its end the client opens another one from the same port. `sip`: how many bytes it reads at a time, slowly.
    `rests`: how many seconds it stops reading after the first bytes, so that its window closes.
    `early`: it closes its direction as soon as everything is sent. `odd`: the two hosts answer it differently."""

    at: float
    port: int
    server_port: int
    salt: int
    pause: float = 0.0
    abort_at: int | None = None
    again: float | None = None
    sip: int = 0
    rests: float = 0.0
    early: bool = False
    odd: bool = False


@dataclass(frozen=True)
class Incident:
    """What happens to whom, when (seconds after the connections' start), and for how long.

    `what`: crash (power loss), kill (of the daemon), boot, restart, pause (of the host), hang (of the packet loop), cut
    (of a path, see
    `Incidents.paths`), unplug, strand (its own address is gone: no datagram comes or goes), mute (none goes), jump (of
    the clock), reload (the host is given another port, ADDED), app_die, app_hang, app_refuse, app_exit (of the
    process of one connection), app_start. A crash or kill with an `effect` waits from `at` on for
    the `count`th effect of that name ("any": of any) and strikes right before or after it is carried out. An app_exit,
    and an app_die with the effect "written", waits until a connection has written `count` bytes.
    """

    at: float
    what: str
    target: str
    seconds: float = 0.0
    effect: str = ""
    count: int = 1
    before: bool = False


@dataclass(frozen=True)
class HostPlan:
    """One server. `app_delay`: how slow its application is at most; `read_size`, `write_size`: how much it reads and
    writes at a time (0: everything). `kernel_drop`: how often its TCP drops data for want of memory. `rate`: of its
    clock. `buffer`: of its sockets. `wrap`: initial sequence numbers lie at most so far before 0 (0: anywhere).
    `marks_lost`: another rule of the host overwrites the mark of what the daemon sends, so that it is queued. `mtu`: of
    its interface, which takes no longer packets. `timestamps`, `sack`, `scaling`: whether its TCP grants them.
    `retries`: how often its TCP repeats itself, or probes a closed window, without an answer (0: all but for ever).
    `deaf`: its application does not listen at `PUSH`.
    `packets_per_s`: how many packets its daemon has time for as a backup (0: all), of which `queue_packets` wait."""

    boot: float = 0.0
    listen_after: float = 0.0
    app_delay: float = 0.001
    read_size: int = 0
    write_size: int = 0
    kernel_drop: float = 0.0
    rate: float = 1.0
    uptime: float = 1000.0
    ts_base: int = 0
    wscale: int = 7
    buffer: int = 65_000
    wrap: int = 0
    marks_lost: bool = False
    mtu: int = 1500
    timestamps: bool = True
    sack: bool = True
    scaling: bool = True
    deaf: bool = False
    retries: int = 0
    packets_per_s: int = 0
    queue_packets: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits of the tables and stores, and of the patience with a replica; 0, or nothing: as configured by default."""

    max_connections: int = 0
    max_log_bytes: int = 0
    max_unacked_bytes: int = 0
    replica_patience_ms: int = 0
    replica_slow_ms: int = 0
    slow_backup: str = ""


@dataclass(frozen=True)
class Scenario:
    """Everything that a run needs. `drain`: at the end wait until all tables must be empty again. `fence`: none, or
    what becomes of it (`Fences`). `health`: the applications are checked. `on_failure`: as in the configuration."""

    seed: int
    kind: str
    tap: str = "clone"
    fence: str = "works"
    split_brain: bool = False
    heartbeat_ms: int = 50
    sack: bool = True
    timestamps: bool = True
    super_segment: int = 1
    drain: bool = False
    quality: dict[str, Quality] = field(default_factory=lambda: {name: Quality() for name in ("client", "tap", "sync")})
    hosts: dict[str, HostPlan] = field(default_factory=lambda: {"a": HostPlan(), "b": HostPlan(boot=0.1)})
    client: HostPlan = field(default_factory=HostPlan)
    limits: Limits = field(default_factory=Limits)
    fence_retry_ms: int = 5000
    witness: bool = False
    health: bool = False
    on_failure: str = "service"
    connections: tuple[Connection, ...] = ()
    incidents: tuple[Incident, ...] = ()


def to_json(scenario: Scenario, about: str) -> str:
    """The text of a scenario's file. `about`: what it shows."""
    return json.dumps({"about": about, **asdict(scenario)}, indent=1) + "\n"


def from_json(text: str) -> Scenario:
    """Read a scenario's file. What an older file does not say is as by default. Raises `TypeError`, `ValueError`."""
    data: dict[str, Any] = json.loads(text)
    data.pop("about", None)
    unknown = set(data) - {part.name for part in fields(Scenario)}
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    data["quality"] = {name: Quality(**quality) for name, quality in data.get("quality", {}).items()}
    data["hosts"] = {name: HostPlan(**plan) for name, plan in data["hosts"].items()}
    data["client"] = HostPlan(**data["client"])
    data["limits"] = Limits(**data.get("limits", {}))
    data["connections"] = tuple(Connection(**plan) for plan in data["connections"])
    data["incidents"] = tuple(Incident(**incident) for incident in data["incidents"])
    return Scenario(**data)


def named() -> dict[str, Path]:
    """The scenarios that have a name."""
    return {path.stem: path for path in sorted(DIRECTORY.glob("*.json"))}
