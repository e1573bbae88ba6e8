"""The configuration file (TOML), checked once, whole: `Config` holds only valid values."""

from __future__ import annotations

import difflib
import re
import shutil
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

from nfq_failover import config_fence, config_limits
from nfq_failover.config_fence import FencePlan, WitnessPlan
from nfq_failover.config_limits import Limits
from nfq_failover.constants import DEFAULT_MARK, DEFAULT_QUEUE_IN, DEFAULT_QUEUE_OUT, DEFAULT_SYNC_PORT
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import ConfigError, InternalError

MIN_KEY_BYTES = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_INSTANCE = re.compile(r"[A-Za-z0-9_]{1,16}")
_INTERFACE = re.compile(r"[^\s/\0]{1,15}")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NUMBER = re.compile(r"[0-9]{1,5}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}\$?")
_CAPABILITY = re.compile(r"CAP_[A-Z_]{3,24}")
_KINDS: dict[type, str] = {
    str: "a text in quotes",
    int: "a whole number",
    bool: "true or false",
    list: "a list in [brackets]",
    dict: "a [table]",
}

DEFAULT_KEY_FILE = Path("/etc/nfq-failover/key")
DEFAULT_STATE_DIR = Path("/var/lib/nfq-failover")
DEFAULT_RUN_DIR = Path("/run/nfq-failover")
_PRIVILEGES_SETTINGS = ("user", "drop", "fence_capabilities", "fence_setuid")
_PEER_SETTINGS = ("name", "address", "port", "mac")
_SETTINGS = (
    *("name", "service", "ports", "interface", "listen", "peer", "key_file", "state_dir", "run_dir"),
    *("tap", "tap_mac", "conntrack", "manage_address", "instance", "rules_script", "queue_in", "queue_out", "mark"),
    *("fence", "fence_deadline_ms", "fence_delay_ms", "fence_retry_ms", "fence_retry_max_ms", "fence_attempts"),
    *("witness", "check_targets", "check_deadline_ms", "announce_refresh_ms"),
    *("split_brain", "boot_alone", "boot_wait_ms", "prefer_primary"),
    *("heartbeat_interval_ms", "heartbeat_count", "loop_stall_ms", "open_deadline_ms"),
    *("announce_count", "revert_backoff", "privileges"),
    *("max_connections", "max_log_bytes", "max_unacked_bytes", "hole_deadline_ms"),
    *config_limits.SETTINGS,
    *("application", "health", "divergence"),
)
_APPLICATION_SETTINGS = ("on_failure", "end_deadline_ms")
_DIVERGENCE_SETTINGS = ("policy", "run_bytes", "out_of_step_ms")
_HEALTH_SETTINGS = ("connect", "port", "command", "interval_ms", "timeout_ms", "failures")


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

    user: str | None = None
    drop: bool = True
    fence_capabilities: tuple[str, ...] = ()  # that the helper keeps for the fence command, besides its own
    fence_setuid: bool = False  # the fence command gets rights by setuid programs


@dataclass(frozen=True, slots=True)
class Config:
    """A daemon's configuration: what the core needs (`settings`), and the shell's own things."""

    settings: Settings
    service: str
    interface: str
    tap: str  # clone | multicast
    tap_mac: str | None
    listen: tuple[str, int]
    state_dir: Path
    run_dir: Path  # outlives the daemon, not the host
    conntrack: str  # notrack | liberal
    fence: FencePlan
    witness: WitnessPlan | None
    check_targets: tuple[tuple[str, int], ...]  # (address, port); port 0: ICMP echo
    check_deadline_ms: int
    announce_refresh_ms: int  # 0: never
    queue_in: int
    queue_out: int
    mark: int
    manage_address: bool
    instance: str
    rules_script: Path | None
    peer_macs: dict[str, str]
    health: HealthConfig | None = None
    privileges: Privileges = Privileges()
    limits: Limits = field(default_factory=Limits)


class _Reader:
    """Takes settings out of a TOML table, and complains about what is left."""

    def __init__(self, table: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
        """Raises `ConfigError` for a setting that is not `known`: before anything that is only missing for a typo."""
        self.table = dict(table)
        self.where = where
        for key in self.table:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f": did you mean '{near[0]}'?" if near else ": remove it"
                raise ConfigError(f"{where}: unknown setting '{key}'{hint}")

    def take(self, key: str, kind: type, default: Any = ...) -> Any:
        if key not in self.table:
            if default is ...:
                raise ConfigError(f"{self.where}: setting '{key}' is missing: add it")
            return default
        value = self.table.pop(key)
        if type(value) is not kind:
            raise ConfigError(f"{self.where}: '{key}' must be {_KINDS[kind]}, not {value!r}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value: str = self.take(key, str, default)
        if value not in choices:
            raise ConfigError(f"{self.where}: '{key}' must be one of {', '.join(choices)}, not '{value}'")
        return value

    def number(self, key: str, low: int, high: int, default: int) -> int:
        value: int = self.take(key, int, default)
        if not low <= value <= high:
            raise ConfigError(f"{self.where}: '{key}' must be between {low} and {high}, not {value}")
        return value

    def checked(self, key: str, kind: type, check: Callable[[Any], Any], default: Any = ...) -> Any:
        value = self.take(key, kind, default)
        if value is default:
            return value
        try:
            return check(value)
        except ValueError as error:
            raise ConfigError(f"{self.where}: '{key}': {error}") from None

    def done(self) -> None:
        """Every known setting must have been taken: else `known` promises what is not there."""
        if self.table:
            raise InternalError(f"settings that nobody reads: {', '.join(self.table)}")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"'{value}' is not a name (letters, digits, '.', '_', '-'; at most 31)")
    return value


def _instance(value: str) -> str:
    if not _INSTANCE.fullmatch(value):
        raise ValueError(f"'{value}' is not up to 16 letters, digits and underscores")
    return value


def _interface(value: str) -> str:
    if not _INTERFACE.fullmatch(value):
        raise ValueError(f"'{value}' is not the name of an interface; 'ip -br link' lists them")
    return value


def _path(value: str) -> Path:
    path = Path(value)
    if "\0" in value or not path.is_absolute():
        raise ValueError(f"{value!r} is not an absolute path")
    return path


def _words(value: list[Any]) -> tuple[str, ...]:
    if not value or not all(isinstance(word, str) and word and "\0" not in word for word in value):
        raise ValueError("must be a list of words: the command and its arguments")
    return tuple(value)


def _health(table: dict[str, Any] | None, where: str, ports: tuple[tuple[int, int], ...]) -> HealthConfig | None:
    if table is None:
        return None
    where = f"{where}, [health]"
    r = _Reader(table, where, _HEALTH_SETTINGS)
    connect = r.take("connect", bool, True)
    port = r.number("port", 1, 65535, ports[0][0])
    config = HealthConfig(
        port=port if connect else None,
        command=r.checked("command", list, _words, ()),
        interval_ms=r.number("interval_ms", 50, 600_000, 1000),
        timeout_ms=r.number("timeout_ms", 10, 600_000, 1000),
        failures=r.number("failures", 1, 1000, 3),
    )
    r.done()
    if config.port is None and not config.command:
        raise ConfigError(f"{where}: nothing would be checked: give a 'command', or set connect = true")
    return config


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise ValueError(f"'{value}' is not the name of a user")
    return value


def _capabilities(value: list[Any]) -> tuple[str, ...]:
    for word in value:
        if not isinstance(word, str) or not _CAPABILITY.fullmatch(word):
            raise ValueError(f"{word!r} is not a capability like CAP_SYS_RAWIO; capabilities(7) lists them")
    return tuple(value)


def _privileges(table: dict[str, Any], where: str) -> Privileges:
    reader = _Reader(table, f"{where}, [privileges]", _PRIVILEGES_SETTINGS)
    wanted = Privileges(
        user=reader.checked("user", str, _user, None),
        drop=reader.take("drop", bool, True),
        fence_capabilities=reader.checked("fence_capabilities", list, _capabilities, ()),
        fence_setuid=reader.take("fence_setuid", bool, False),
    )
    reader.done()
    return wanted


def _address(value: str) -> str:
    try:
        address = ip_address(value)
    except ValueError:
        raise ValueError(f"'{value}' is not an IP address") from None
    if not isinstance(address, IPv4Address):
        raise ValueError(f"'{value}' is not an IPv4 address; IPv6 is not supported yet")
    if address.is_multicast or address.is_unspecified:
        raise ValueError(f"'{value}' can't be the address of a host")
    return str(address)


def _mac(value: str) -> str:
    if not _MAC.fullmatch(value.lower()):
        raise ValueError(f"'{value}' is not a MAC address like 52:54:00:12:34:56")
    return value.lower()


def _listen(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host:
        host, port = value, str(DEFAULT_SYNC_PORT)
    if not _NUMBER.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError(f"'{value}' is not ADDRESS:PORT")
    return _address(host), int(port)


def _ports(value: list[Any]) -> tuple[tuple[int, int], ...]:
    ranges = []
    for item in value:
        low, dash, high = str(item).replace(":", "-").partition("-")
        high = high if dash else low
        numbers = _NUMBER.fullmatch(low) and _NUMBER.fullmatch(high)
        if not (numbers and 0 < int(low) <= int(high) < 65536):
            raise ValueError(f"'{item}' is not a port or a range like \"7000-7099\"")
        ranges.append((int(low), int(high)))
    if not ranges:
        raise ValueError("list at least one port")
    ranges.sort()
    for (_, end), (begin, _) in pairwise(ranges):
        if begin <= end:
            raise ValueError(f"port {begin} is listed twice")
    return tuple(ranges)


def read_key(path: Path) -> bytes:
    """The shared key: at least 16 bytes, readable by its owner only."""
    try:
        mode = path.stat().st_mode
        key = path.read_bytes().strip()
    except PermissionError:
        raise ConfigError(f"key file {path} can't be read by this user: run this as root") from None
    except OSError as error:
        raise ConfigError(
            f"key file {path}: {error.strerror}: make one with 'nfq-failover keygen {path}' and copy it to the peer"
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"key file {path} is readable by others (mode {mode & 0o777:03o}): run 'chmod 600 {path}'")
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"key file {path} has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return key


def _peers(tables: list[Any], where: str) -> tuple[tuple[Peer, ...], dict[str, str]]:
    if len(tables) != 1:  # an election and a fence between more than two hosts is another matter
        raise ConfigError(f"{where}: exactly one [[peer]] is supported, not {len(tables)}")
    peers, macs = [], {}
    for number, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: write the peer as a [[peer]] table")
        reader = _Reader(table, f"{where}, [[peer]] {number}", _PEER_SETTINGS)
        peer = Peer(
            name=reader.checked("name", str, _name),
            address=reader.checked("address", str, _address),
            port=reader.number("port", 1, 65535, DEFAULT_SYNC_PORT),
        )
        mac = reader.checked("mac", str, _mac, None)
        if mac is not None:
            macs[peer.address] = mac
        reader.done()
        peers.append(peer)
    return tuple(peers), macs


def load(path: Path) -> Config:
    """Read and check a file. Raises `ConfigError`, whose text says which setting is wrong and what to do."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}: make it, or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    config = parse(table, str(path))
    _check_mode(path, config)
    return config


def _check_mode(path: Path, config: Config) -> None:
    """A file with a password in it is nobody else's business."""
    if (name := config.fence.inline_secret) and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{path} holds a secret ('{name}' in [fence.parameters]) and is readable by others: "
            f"run 'chmod 600 {path}', or put the secret into a file of its own and name that in [fence.secrets]"
        )


def parse(table: dict[str, Any], where: str = "config") -> Config:
    """Check a parsed file. Raises `ConfigError`."""
    r = _Reader(table, where, _SETTINGS)
    name = r.checked("name", str, _name)
    peers, macs = _peers(r.take("peer", list), where)
    if peers[0].name == name:
        raise ConfigError(f"{where}: the peer has our own name '{name}': give each host its own")
    service = r.checked("service", str, _address)
    listen = r.checked("listen", str, _listen)
    if service in (listen[0], peers[0].address):
        raise ConfigError(f"{where}: 'service' must be an address of its own, not a host's ({service})")
    if peers[0].address == listen[0]:
        raise ConfigError(
            f"{where}: the peer has our own address {listen[0]}: 'listen' is this host, [[peer]] the other"
        )
    tap = r.choice("tap", ("clone", "multicast"), "clone")
    tap_mac = r.checked("tap_mac", str, _mac, None)
    if tap == "multicast" and (tap_mac is None or not int(tap_mac[:2], 16) & 1):
        raise ConfigError(f"{where}: tap = \"multicast\" needs 'tap_mac', a multicast MAC such as 01:00:5e:4d:00:64")
    fence = _fence(r)
    key = read_key(r.checked("key_file", str, _path, DEFAULT_KEY_FILE))
    witness, lease_ms = _witness(r, key, f"{service} {' '.join(sorted((name, peers[0].name)))}")
    check_targets = r.checked("check_targets", list, config_fence.targets, ())
    ports = r.checked("ports", list, _ports)
    health = _health(r.take("health", dict, None), where, ports)
    application = _Reader(r.take("application", dict, {}), f"{where}, [application]", _APPLICATION_SETTINGS)
    divergence = _Reader(r.take("divergence", dict, {}), f"{where}, [divergence]", _DIVERGENCE_SETTINGS)
    settings = Settings(
        name=name,
        service=ip_address(service).packed,
        ports=ports,
        peers=peers,
        key=key,
        prefer_primary=r.take("prefer_primary", bool, False),
        has_fence=bool(fence),
        split_brain_accepted=r.choice("split_brain", ("refuse", "accepted"), "refuse") == "accepted",
        boot_alone=r.choice("boot_alone", ("wait", "fence"), "wait"),
        boot_wait_ms=r.number("boot_wait_ms", 100, 600_000, 3000),
        heartbeat_interval_ms=r.number("heartbeat_interval_ms", 10, 5000, 50),
        heartbeat_count=r.number("heartbeat_count", 2, 100, 3),
        fence_deadline_ms=r.number("fence_deadline_ms", 10, 600_000, 5000),
        fence_delay_ms=r.number("fence_delay_ms", 0, 600_000, 0),
        fence_retry_ms=r.number("fence_retry_ms", 0, 3_600_000, 5000),
        fence_retry_max_ms=r.number("fence_retry_max_ms", 1, 86_400_000, 60_000),
        has_witness=witness is not None,
        witness_lease_ms=lease_ms,
        checks_target=bool(check_targets),
        loop_stall_ms=r.number("loop_stall_ms", 100, 60_000, 300),
        open_deadline_ms=r.number("open_deadline_ms", 10, 60_000, 1000),
        announce_count=r.number("announce_count", 1, 100, 5),
        revert_backoff=r.take("revert_backoff", bool, True),
        max_connections=r.number("max_connections", 1, 1_000_000, 20000),
        max_log_bytes=r.number("max_log_bytes", 1 << 16, 1 << 30, 16 << 20),
        max_unacked_bytes=r.number("max_unacked_bytes", 1 << 16, 1 << 30, 16 << 20),
        hole_deadline_ms=r.number("hole_deadline_ms", 100, 600_000, 3000),
        end_deadline_ms=application.number("end_deadline_ms", 50, 60_000, 1000),
        on_app_failure=application.choice("on_failure", ("service", "connection", "off"), "service"),
        divergence=divergence.choice("policy", ("default", "strict", "off"), "default"),
        divergence_run_bytes=divergence.number("run_bytes", 16, 1 << 20, 1024),
        out_of_step_ms=divergence.number("out_of_step_ms", 100, 3_600_000, 10_000),
        health_checked=health is not None,
        health_failures=3 if health is None else health.failures,
    )
    application.done()
    divergence.done()
    if settings.boot_alone == "fence" and not fence:
        raise ConfigError(f"{where}: boot_alone = \"fence\" needs a 'fence' command")
    _check_witness(settings, where)
    config = Config(
        settings=settings,
        service=service,
        interface=r.checked("interface", str, _interface),
        tap=tap,
        tap_mac=tap_mac,
        listen=listen,
        state_dir=r.checked("state_dir", str, _path, DEFAULT_STATE_DIR),
        run_dir=r.checked("run_dir", str, _path, DEFAULT_RUN_DIR),
        conntrack=r.choice("conntrack", ("notrack", "liberal"), "notrack"),
        fence=fence,
        witness=witness,
        check_targets=check_targets,
        check_deadline_ms=r.number("check_deadline_ms", 10, 60_000, 500),
        announce_refresh_ms=r.number("announce_refresh_ms", 0, 86_400_000, 30_000),
        queue_in=r.number("queue_in", 0, 65535, DEFAULT_QUEUE_IN),
        queue_out=r.number("queue_out", 0, 65535, DEFAULT_QUEUE_OUT),
        mark=r.number("mark", 1, 0xFFFFFFFF, DEFAULT_MARK),
        manage_address=r.take("manage_address", bool, True),
        instance=r.checked("instance", str, _instance, "default"),
        rules_script=r.checked("rules_script", str, _path, None),
        peer_macs=macs,
        health=health,
        privileges=_privileges(r.take("privileges", dict, {}), where),
        limits=config_limits.read(r.number),
    )
    r.done()
    if config.queue_in == config.queue_out:
        raise ConfigError(f"{where}: 'queue_in' and 'queue_out' must differ")
    if config.mark & (config.mark - 1):
        raise ConfigError(f"{where}: 'mark' must be a single bit, like 0x10000000")
    return config


def _fence(r: _Reader) -> FencePlan:
    attempts = r.number("fence_attempts", 0, 1000, 0)
    if "fence" not in r.table:
        return FencePlan()
    try:
        return replace(config_fence.fence(r.table.pop("fence")), attempts=attempts)
    except ValueError as error:
        raise ConfigError(f"{r.where}: 'fence' {error}") from None


def _witness(r: _Reader, key: bytes, pair: str) -> tuple[WitnessPlan | None, int]:
    if "witness" not in r.table:
        return None, 0
    table = r.take("witness", dict)
    w = _Reader(table, f"{r.where}, [witness]", ("address", "key_file", "lease_ms"))

    def address(value: str) -> tuple[str, int]:
        return config_fence.address_and_port(value, config_fence.DEFAULT_WITNESS_PORT)

    file = w.checked("key_file", str, _path, None)
    plan = WitnessPlan(w.checked("address", str, address), read_key(file) if file else key, pair)
    return plan, w.number("lease_ms", 0, 600_000, 0)


def _check_witness(settings: Settings, where: str) -> None:
    if not settings.has_witness:
        return
    if settings.split_brain_accepted:
        raise ConfigError(f'{where}: a witness and split_brain = "accepted" contradict each other: leave one out')
    least = settings.detection_ms + 2 * settings.heartbeat_interval_ms
    if settings.lease_ms < least:
        raise ConfigError(f"{where}, [witness]: 'lease_ms' must be at least {least} with these heartbeats")


def advice(config: Config) -> list[str]:
    """What is allowed, but probably not meant: a sentence each."""
    said = []
    settings = config.settings
    if not config.fence and not config.witness and not settings.split_brain_accepted:
        said.append("without 'fence' the backup never takes over by itself, unless split_brain = \"accepted\"")
    if not config.fence and settings.split_brain_accepted:
        said.append("split_brain is accepted without a fence: when the sync channel breaks, both hosts may serve")
    program = config.fence.command[0] if config.fence else ""
    if program and shutil.which(program) is None:
        said.append(f"the fence command {program} is not there or not executable: no takeover will succeed")
    if config.witness and not config.fence:
        said.append(
            "with a witness and no fence a host that is paused as a whole, with its clock, may be heard once more"
        )
    if not config.privileges.drop:
        said.append("[privileges] drop = false: the daemon keeps all of root's rights while it reads from the network")
    return said
