"""The configuration file (TOML), checked once, whole: `Config` holds only valid values."""

from __future__ import annotations

import difflib
import shutil
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from nfq_failover.config import fence, schema, values
from nfq_failover.config.fence import FencePlan, WitnessPlan
from nfq_failover.config.model import Config, HealthConfig, Limits, Privileges
from nfq_failover.config.schema import Kind, Setting
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import ConfigError

MIN_KEY_BYTES: Final = 16
_TYPES: Final[dict[type, str]] = {
    str: "a text in quotes",
    int: "a whole number",
    bool: "true or false",
    list: "a list in [brackets]",
    dict: "a [table]",
}
_Values = dict[str, Any]
_Part = TypeVar("_Part", Config, Limits, Privileges)


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


def read_key(path: Path) -> bytes:
    """The shared key: at least 16 bytes, readable by its owner only. Raises `ConfigError`."""
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


def parse(table: dict[str, Any], where: str = "config") -> Config:
    """Check a parsed file. Raises `ConfigError`."""
    read = {name: _read(part, name, at) for name, part, at in _tables(table, where)}
    top, peer = read[""], read["peer"]
    plan = _fence(table, top["fence_attempts"], where)
    key = read_key(top["key_file"])
    config = _filled(
        Config,
        top,
        settings=_settings(read, plan, key),
        fence=plan,
        witness=_witness(read, key),
        health=_health(read, where),
        peer_macs={peer["address"]: peer["mac"]} if peer["mac"] else {},
        privileges=_filled(Privileges, read["privileges"]),
        limits=_filled(Limits, top),
    )
    _check_hosts(config, where)
    _check_rest(config, where)
    return config


# ------------------------------------------------------------------------------------ one table, one setting


def _tables(table: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The top level and every table but the fence's, with its name and what an error calls it. One that describes what
    need not be there is left out if it is not there."""
    yield "", table, where
    for section in schema.SECTIONS:
        name = section.table
        if section.many:
            yield name, _only(_typed(table.get(name, ...), list, name, where), where), f"{where}, [[{name}]] 1"
        elif name not in ("", "fence") and (name in table or not section.optional):
            yield name, _typed(table.get(name, {}), dict, name, where), f"{where}, [{name}]"


def _only(peers: list[Any], where: str) -> dict[str, Any]:
    if len(peers) != 1:  # an election and a fence between more than two hosts is another matter
        raise ConfigError(f"{where}: exactly one [[peer]] is supported, not {len(peers)}")
    (only,) = peers
    if not isinstance(only, dict):
        raise ConfigError(f"{where}: write the peer as a [[peer]] table")
    return only


def _read(given: dict[str, Any], table: str, where: str) -> _Values:
    """The values of all settings of a table, by name. Raises `ConfigError`: for an unknown setting before anything that
    is only missing for a typo."""
    known = schema.names(table)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else "remove it"
            raise ConfigError(f"{where}: unknown setting '{key}': {hint}")
    return {setting.name: _value(setting, given.get(setting.name, ...), where) for setting in schema.settings(table)}


def _value(setting: Setting, given: Any, where: str) -> Any:
    """A setting's value, checked; `given` is `...` where the file has none."""
    if given is ... and not setting.required:
        given = setting.default
        if given in (None, ()):
            return given
    if setting.kind is Kind.FENCE:
        return None  # which is read as a whole
    kind, check = values.CHECKS[setting.kind]
    value = _typed(given, kind, setting.name, where)
    if kind is int and not setting.low <= value <= setting.high:
        raise ConfigError(f"{where}: '{setting.name}' must be between {setting.low} and {setting.high}, not {value}")
    if setting.choices and value not in setting.choices:
        raise ConfigError(f"{where}: '{setting.name}' must be one of {', '.join(setting.choices)}, not '{value}'")
    try:
        return check(value) if check else value
    except ValueError as error:
        raise ConfigError(f"{where}: '{setting.name}': {error}") from None


def _typed(value: Any, kind: type, name: str, where: str) -> Any:
    if value is ...:
        raise ConfigError(f"{where}: setting '{name}' is missing: add it")
    if type(value) is not kind:
        raise ConfigError(f"{where}: '{name}' must be {_TYPES[kind]}, not {value!r}")
    return value


# ------------------------------------------------------------------------------------ what is made of them


def _filled(part: type[_Part], read: _Values, **more: Any) -> _Part:
    """A part of the configuration, whose fields are called what its settings are; `more` are those that are not."""
    return part(**{one.name: read[one.name] for one in fields(part) if one.name in read} | more)


def _settings(read: dict[str, _Values], plan: FencePlan, key: bytes) -> Settings:
    """What the core needs: the settings that the schema leads to it, and what follows from the others."""
    top, peer = read[""], read["peer"]
    chosen = {one.core: part[one.name] for table, part in read.items() for one in schema.settings(table) if one.core}
    return Settings(
        **schema.core_defaults() | chosen,
        service=ip_address(top["service"]).packed,
        peers=(Peer(peer["name"], peer["address"], peer["port"]),),
        key=key,
        has_fence=bool(plan),
        split_brain_accepted=top["split_brain"] == "accepted",
        has_witness="witness" in read,
        checks_target=bool(top["check_targets"]),
        health_checked="health" in read,
    )


def _fence(table: dict[str, Any], attempts: int, where: str) -> FencePlan:
    if "fence" not in table:
        return FencePlan()
    try:
        return replace(fence.fence(table["fence"]), attempts=attempts)
    except ValueError as error:
        raise ConfigError(f"{where}: 'fence' {error}") from None


def _witness(read: dict[str, _Values], key: bytes) -> WitnessPlan | None:
    if "witness" not in read:
        return None
    witness, top = read["witness"], read[""]
    pair = f"{top['service']} {' '.join(sorted((top['name'], read['peer']['name'])))}"
    return WitnessPlan(witness["address"], read_key(witness["key_file"]) if witness["key_file"] else key, pair)


def _health(read: dict[str, _Values], where: str) -> HealthConfig | None:
    if "health" not in read:
        return None
    health = read["health"]
    port = health["port"] or read[""]["ports"][0][0]
    if not health["connect"] and not health["command"]:
        raise ConfigError(f"{where}, [health]: nothing would be checked: give a 'command', or set connect = true")
    return HealthConfig(
        port=port if health["connect"] else None,
        command=health["command"],
        interval_ms=health["interval_ms"],
        timeout_ms=health["timeout_ms"],
        failures=health["failures"],
    )


# ------------------------------------------------------------------------------------ what must fit together


def _check_hosts(config: Config, where: str) -> None:
    own = config.listen[0]
    for peer in config.settings.peers:
        if peer.name == config.settings.name:
            raise ConfigError(f"{where}: the peer has our own name '{peer.name}': give each host its own")
        if config.service in (own, peer.address):
            raise ConfigError(f"{where}: 'service' must be an address of its own, not a host's ({config.service})")
        if peer.address == own:
            raise ConfigError(f"{where}: the peer has our own address {own}: 'listen' is this host, [[peer]] the other")


def _check_rest(config: Config, where: str) -> None:
    settings = config.settings
    if config.tap == "multicast" and (config.tap_mac is None or not int(config.tap_mac[:2], 16) & 1):
        raise ConfigError(f"{where}: tap = \"multicast\" needs 'tap_mac', a multicast MAC such as 01:00:5e:4d:00:64")
    if settings.boot_alone == "fence" and not config.fence:
        raise ConfigError(f"{where}: boot_alone = \"fence\" needs a 'fence' command")
    if settings.has_witness and settings.split_brain_accepted:
        raise ConfigError(f'{where}: a witness and split_brain = "accepted" contradict each other: leave one out')
    least = settings.detection_ms + 2 * settings.heartbeat_interval_ms
    if settings.has_witness and settings.lease_ms < least:
        raise ConfigError(f"{where}, [witness]: 'lease_ms' must be at least {least} with these heartbeats")
    if config.queue_in == config.queue_out:
        raise ConfigError(f"{where}: 'queue_in' and 'queue_out' must differ")
    if config.mark & (config.mark - 1):
        raise ConfigError(f"{where}: 'mark' must be a single bit, like {schema.find('mark').default:#x}")


# ------------------------------------------------------------------------------------ what is allowed, but hardly meant


def advice(config: Config) -> list[str]:
    """What a configuration allows, but probably does not mean: a sentence each."""
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
