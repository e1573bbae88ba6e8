"""What a configuration is once it has been checked: values that the rest of the program can rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfq_failover.config.fence import FencePlan, WitnessPlan
from nfq_failover.core.settings import Settings
from nfq_failover.errors import Fault


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """How the application is checked: `port` to connect to (None: not), `command` to run (empty: none)."""

    port: int | None
    command: tuple[str, ...]
    interval_ms: int
    timeout_ms: int
    failures: int


@dataclass(frozen=True, slots=True)
class Privileges:
    """What the daemon gives up after its start; docs/operate/privileges.md."""

    user: str | None
    drop: bool
    fence_capabilities: tuple[str, ...]  # that the helper keeps for the fence command, besides its own
    status_group: str | None  # whose members may ask for the status
    fence_setuid: bool  # the fence command gets rights by setuid programs


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the kernel may keep for the daemon; docs/operate/limits.md."""

    queue_max_packets: int
    queue_buffer_bytes: int
    sync_buffer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A daemon's configuration: what the core needs (`settings`), and the shell's own things.

    `file` is where it is from. `last_good` is where a copy of it is kept that was right, if one is, and `wrong` is what
    is wrong with the file by now if this is that copy.

    `values` are what the settings of the file are, by table and name, defaults included: what two configurations are
    compared by. The fence is not among them.
    """

    settings: Settings
    service: str
    interface: str
    answer_interfaces: tuple[str, ...]  # besides `interface`
    tap: str  # clone | multicast
    tap_mac: str | None
    listen: tuple[str, int]
    state_dir: Path
    log_level: str
    run_dir: Path  # outlives the daemon, not the host
    conntrack: str  # notrack | liberal
    fence: FencePlan
    witness: WitnessPlan | None
    check_targets: tuple[tuple[str, int], ...]  # (address, port); port 0: ICMP echo
    check_deadline_ms: int
    announce_refresh_ms: int  # 0: never
    notify: tuple[str, ...]  # a program and its arguments, with placeholders; empty: none
    queue_in: int
    queue_out: int
    mark: int
    manage_address: bool
    instance: str
    rules_script: Path | None
    peer_macs: dict[str, str]
    health: HealthConfig | None
    privileges: Privileges
    limits: Limits
    file: str = field(compare=False)
    values: Mapping[str, Mapping[str, Any]] = field(compare=False, repr=False)
    last_good: Path | None = field(compare=False)
    wrong: tuple[Fault, ...] = field(compare=False)
