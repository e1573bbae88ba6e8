"""What has changed between two configurations, and what of it a running daemon can be given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nfq_failover.config import checks, schema
from nfq_failover.config.faults import Faults
from nfq_failover.config.fence import FencePlan
from nfq_failover.config.model import Config
from nfq_failover.config.parse import made
from nfq_failover.config.places import Places
from nfq_failover.config.schema import Change, Setting
from nfq_failover.core import ports

_ABSENT: Final = "not there"
_KEPT: Final = "health"  # a table that comes and goes as a whole


@dataclass(frozen=True, slots=True)
class Changed:
    """One setting that has another value: `name` as `check-config --explain` takes it, and both values as text."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Differences:
    """`config` is the old configuration with all of the new one that a running daemon can be given (`applied`);
    `restart` is what it can't. It has no keys, but for one of the witness's if that is another one now: `with_keys`."""

    config: Config
    applied: tuple[Changed, ...]
    restart: tuple[Changed, ...]


def compare(old: Config, new: Config, *, same_key: bool, same_witness_key: bool) -> Differences:
    """Compare two configurations of one host. The keys of `old` may be missing: whoever knows says whether they are the
    same. Raises `ConfigError` if what can be applied does not go with what can't."""
    values = {table: dict(part) for table, part in old.values.items()}
    applied: list[Changed] = []
    restart: list[Changed] = []
    for table in schema.tables():
        for setting, before, after in _differences(old.values, new.values, table):
            live = _can_follow(setting, table, before, after, old, new)
            if live and after is ...:
                values.get(table, {}).pop(setting.name, None)
            elif live:
                values.setdefault(table, {})[setting.name] = after
            changed = Changed(_full_name(table, setting), shown(setting, before), shown(setting, after))
            if changed.before != changed.after:  # in a table that has come or gone, what is unset has not
                (applied if live else restart).append(changed)
    values = {table: part for table, part in values.items() if part or table not in (_KEPT, "witness")}
    plan = _fence(old.fence, new.fence, values[""]["fence_attempts"], applied, restart)
    if not same_key:
        restart.append(Changed("key_file", "the key that the daemon was started with", "another key"))
    witness_key = b""
    if old.witness is not None and new.witness is not None and new.values["witness"]["key_file"]:
        witness_key = b"" if same_witness_key else new.witness.key
    if witness_key and "witness.key_file" not in [each.name for each in applied]:
        applied.append(Changed("witness.key_file", "the key before", "another key"))
    config = replace(made(values, plan, b"", witness_key, old.file), last_good=old.last_good)
    faults = Faults(old.file, Places())
    checks.check(config, faults)
    faults.refuse()
    return Differences(config, tuple(applied), tuple(restart))


def _differences(old: Any, new: Any, table: str) -> Iterator[tuple[Setting, Any, Any]]:
    before, after = old.get(table, {}), new.get(table, {})
    for setting in schema.settings(table):
        pair = before.get(setting.name, ...), after.get(setting.name, ...)
        if pair[0] != pair[1]:
            yield setting, *pair


def _full_name(table: str, setting: Setting) -> str:
    return f"{table}.{setting.name}" if table else setting.name


def _can_follow(setting: Setting, table: str, before: Any, after: Any, old: Config, new: Config) -> bool:
    """Whether a running daemon can be given the new value."""
    change = setting.change
    if change is Change.MORE:
        return ports.covers(after, before) if setting.name == "ports" else bool(after > before)
    if change is Change.OTHER:
        return table in old.values and table in new.values
    return change is Change.LIVE


def _fence(old: FencePlan, new: FencePlan, attempts: int, applied: list[Changed], restart: list[Changed]) -> FencePlan:
    """The fence to go on with. What the agent is told is not shown: some of it is secret."""
    new = replace(new, attempts=attempts)
    if new == replace(old, attempts=attempts):
        return new
    before, after = (" ".join(plan.command) or _ABSENT for plan in (old, new))
    if before == after:
        before, after = f"what {before} is told", "something else"
    if old and new:
        applied.append(Changed("fence", before, after))
        return new
    restart.append(Changed("fence", before, after))
    return replace(old, attempts=attempts)


def shown(setting: Setting, value: Any) -> str:
    """A value as people read it."""
    if value is ... or value is None or value == ():
        return _ABSENT
    if setting.name == "ports":
        return ports.text(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return f"{value[0]}:{value[1]}" if value[1] else value[0]
        return ", ".join(shown(setting, part) for part in value)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def without_keys(config: Config) -> Config:
    """The same for whoever has no business with the keys."""
    witness = None if config.witness is None else replace(config.witness, key=b"")
    return replace(config, settings=replace(config.settings, key=b""), witness=witness)


def with_keys(config: Config, before: Config) -> Config:
    """The same with the keys that were in force before, where it has none of its own."""
    witness = config.witness
    if witness is not None and before.witness is not None:
        witness = replace(witness, key=witness.key or before.witness.key)
    return replace(config, settings=replace(config.settings, key=before.settings.key), witness=witness)
