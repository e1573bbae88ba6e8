"""The configuration file (TOML), checked once, whole: `Config` holds only valid values."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from nfq_failover.config import checks, fence, schema, values
from nfq_failover.config.faults import Faults
from nfq_failover.config.fence import FencePlan, WitnessPlan
from nfq_failover.config.model import Config, HealthConfig, Limits, Privileges
from nfq_failover.config.places import Places
from nfq_failover.config.schema import Kind, Section, Setting
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import ConfigError, Fault

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
_STATE_DIR: Final = re.compile(r"""^\s*state_dir\s*=\s*(["'])(.+?)\1\s*(?:#|$)""", re.MULTILINE)
_TOML_LINE: Final = re.compile(r"at line (\d+)")
_SUBSTITUTE: Final = bytes(MIN_KEY_BYTES)  # for a key that can't be read: what else is wrong is found all the same


def load(path: Path) -> Config:
    """Read and check a file. Raises `ConfigError`, which has all that is wrong with it, and what to do."""
    return parse_text(read_text(path), str(path), path.stat().st_mode)


def state_dir(path: Path) -> Path:
    """Where a daemon of this file is found, whatever else is wrong with the file by now. Raises `ConfigError`."""
    text = read_text(path)
    try:
        given = tomllib.loads(text).get("state_dir", ...)
    except (ValueError, RecursionError):
        line = _STATE_DIR.search(text)
        given = line[2] if line else ...
    setting = schema.find("state_dir")
    try:
        found: Path = judged(setting, setting.default if given is ... else given)
    except ValueError as error:
        raise ConfigError(f"{path}: 'state_dir'{error}") from None
    return found


def read_text(path: Path) -> str:
    """The text of a file. Raises `ConfigError`."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}: make it, or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_text(text: str, where: str, mode: int = 0) -> Config:
    """Check a file's text. `mode` is the file's, since a secret is nobody else's business. Raises `ConfigError`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        line = int(found[1]) if found else len(text.splitlines())  # "at end of document"
        raise ConfigError(Fault(f"not valid TOML: {error}", where, line)) from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; lists in lists without end
        raise ConfigError(Fault(f"not valid TOML: {error}", where)) from None
    return parse(table, where, Places(text), mode)


def read_key(path: Path) -> bytes:
    """The shared key: at least 16 bytes, readable by its owner only. Raises `ConfigError`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"key file {path} is not a regular file")
        mode = status.st_mode
        key = path.read_bytes().strip()
    except PermissionError:
        raise ConfigError(f"key file {path} can't be read by this user: run this as root") from None
    except OSError as error:
        raise ConfigError(
            f"key file {path}: {error.strerror}: make one with 'nfq-failover keygen {path}' and copy it to the peer"
        ) from None
    # A credential of systemd's is the unit's alone; the right of its user shows as the group's (LoadCredential=).
    credential = str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY")
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not credential:
        raise ConfigError(f"key file {path} is readable by others (mode {mode & 0o777:03o}): run 'chmod 600 {path}'")
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"key file {path} has {len(key)} bytes; at least {MIN_KEY_BYTES} are needed")
    return key


def parse(table: dict[str, Any], where: str = "config", places: Places | None = None, mode: int = 0) -> Config:
    """Check a parsed file. Raises `ConfigError`."""
    faults = Faults(where, places or Places())
    read = {name: _read(part, name, faults) for name, part in _tables(table, faults)}
    plan = _fence(table, read[""]["fence_attempts"], faults)
    if (name := plan.inline_secret) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        faults.add(
            *("", "fence"),
            f"the file holds a secret ('{name}' in [fence.parameters]) and is readable by others: "
            f"run 'chmod 600 {where}', or put the secret into a file of its own and name that in [fence.secrets]",
        )
    key = _key(read[""]["key_file"], "", faults)
    witness_key = _key(read["witness"]["key_file"], "witness", faults) if "witness" in read else b""
    config = made(read, plan, key, witness_key or key, where)
    checks.check(config, faults)
    faults.refuse()
    return config


def _key(path: Path | None, table: str, faults: Faults) -> bytes:
    """A key that is named in a table, if one is."""
    if path is None:
        return b""
    try:
        return read_key(path)
    except ConfigError as error:
        faults.add(table, "key_file", str(error))
        return _SUBSTITUTE


# ------------------------------------------------------------------------------------ one table, one setting


def _tables(table: dict[str, Any], faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """The top level and every table but the fence's, with its name. One that describes what need not be there is left
    out if it is not there."""
    yield "", table
    for section in schema.SECTIONS:
        name = section.table
        if section.many:
            yield name, _only(table.get(name, ...), section, faults)
        elif name not in ("", "fence") and (name in table or not section.optional):
            yield name, _single(table.get(name, {}), section, faults)


def _single(given: Any, section: Section, faults: Faults) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    name = section.table
    doubled = isinstance(given, list) and given and isinstance(given[0], dict)
    cure = (
        f"write {section.header} for [[{name}]], and once" if doubled else f"'{name}' must be a [table], not {given!r}"
    )
    faults.add(name, "", cure)
    return given[0] if doubled else {}


def _only(given: Any, section: Section, faults: Faults) -> dict[str, Any]:
    """The one table of an array of tables; one with examples if that is wrong."""
    name, header = section.table, section.header
    example = {setting.name: setting.example for setting in section.settings if setting.required}
    if given is ...:
        faults.missing("", name)
    elif isinstance(given, dict):
        faults.add(name, "", f"write {header}, with two brackets, for [{name}]")
        return given
    elif not isinstance(given, list):
        faults.add(name, "", f"'{name}' must be a table {header}, not {given!r}")
    elif len(given) != 1:  # an election and a fence between more than two hosts is another matter
        faults.add(name, "", f"exactly one {header} is supported, not {len(given)}")
    elif not isinstance(given[0], dict):
        faults.add(name, "", f"write the {name} as a {header} table")
    else:
        return given[0]
    return example


def _read(given: dict[str, Any], table: str, faults: Faults) -> _Values:
    """The values of all settings of a table, by name; a valid one stands for each that is wrong."""
    faults.unknown(table, given)
    return {
        setting.name: _value(setting, given.get(setting.name, ...), table, faults) for setting in schema.settings(table)
    }


def _value(setting: Setting, given: Any, table: str, faults: Faults) -> Any:
    """A setting's value, checked; `given` is `...` where the file has none."""
    if setting.kind is Kind.FENCE:
        return None  # which is read as a whole
    if given is ... and setting.required:
        faults.missing(table, setting.name)
        given = setting.example
    elif given is ...:
        given = setting.default
        if given in (None, ()):
            return given
    try:
        return judged(setting, given)
    except ValueError as error:
        faults.add(table, setting.name, f"'{setting.name}'{error}")
    stand_in = setting.example if setting.required else setting.default
    return stand_in if stand_in in (None, ()) else judged(setting, stand_in)


def judged(setting: Setting, given: Any) -> Any:
    """What the program works with for a value of the file. Raises ValueError, whose text goes on after the setting's
    name."""
    kind, check = values.CHECKS[setting.kind]
    if type(given) is not kind:
        raise ValueError(f" must be {_TYPES[kind]}, not {given!r}")
    if isinstance(given, int) and kind is int and not setting.low <= given <= setting.high:
        raise ValueError(f" must be between {setting.low} and {setting.high}, not {given}")
    if setting.choices and given not in setting.choices:
        raise ValueError(f" must be one of {', '.join(setting.choices)}, not '{given}'")
    try:
        return check(given) if check else given
    except ValueError as error:
        raise ValueError(f": {error}") from None


# ------------------------------------------------------------------------------------ what is made of them


def _filled(part: type[_Part], read: _Values, **more: Any) -> _Part:
    """A part of the configuration, whose fields are called what its settings are; `more` are those that are not."""
    return part(**{one.name: read[one.name] for one in fields(part) if one.name in read} | more)


def _settings(read: Mapping[str, _Values], plan: FencePlan, key: bytes) -> Settings:
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


def made(read: Mapping[str, _Values], plan: FencePlan, key: bytes, witness_key: bytes, file: str) -> Config:
    """The configuration that these values give, by table and setting."""
    top, peer = read[""], read["peer"]
    return _filled(
        Config,
        top,
        file=file,
        last_good=None,
        wrong=(),
        values=read,
        settings=_settings(read, plan, key),
        fence=plan,
        witness=_witness(read, witness_key),
        health=_health(read),
        peer_macs={peer["address"]: peer["mac"]} if peer["mac"] else {},
        privileges=_filled(Privileges, read["privileges"]),
        limits=_filled(Limits, top),
    )


def _fence(table: dict[str, Any], attempts: int, faults: Faults) -> FencePlan:
    given = table.get("fence", ...)
    if given is ...:
        return FencePlan()
    if isinstance(given, dict):
        faults.unknown("fence", given)
    try:
        return replace(fence.fence(given), attempts=attempts)
    except fence.Wrong as error:
        for name, what in error.reasons:
            if isinstance(given, dict):
                faults.add("fence", name, what)
            else:
                faults.add("", "fence", f"'fence' {what}")
        faults.spoil("", "fence")
        return FencePlan()


def _witness(read: Mapping[str, _Values], key: bytes) -> WitnessPlan | None:
    if "witness" not in read:
        return None
    top = read[""]
    pair = f"{top['service']} {' '.join(sorted((top['name'], read['peer']['name'])))}"
    return WitnessPlan(read["witness"]["address"], key, pair)


def _health(read: Mapping[str, _Values]) -> HealthConfig | None:
    if "health" not in read:
        return None
    health = read["health"]
    port = health["port"] or read[""]["ports"][0][0]
    return HealthConfig(
        port=port if health["connect"] else None,
        command=health["command"],
        interval_ms=health["interval_ms"],
        timeout_ms=health["timeout_ms"],
        failures=health["failures"],
    )
