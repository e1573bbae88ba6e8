"""Every declared setting is complete, is accepted, and reaches the configuration; nothing else has defaults."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config import Config, HealthConfig, Limits, Privileges, parse, schema
from nfq_failover.config.schema import SECTIONS, Change, Kind, Section, Setting
from nfq_failover.core.settings import Peer, Settings
from tests.support import configured
from tests.unit.config.test_parse import key_file, table

__all__ = ["key_file", "table"]  # fixtures

DERIVED = {"service", "peers", "key", "has_fence", "split_brain_accepted", "has_witness", "checks_target"}
DERIVED |= {"health_checked"}
DECLARED = [(section, setting) for section in SECTIONS for setting in section.settings]


def path(section: Section, setting: Setting) -> str:
    """How a setting is called in messages of these tests."""
    return f"{section.table}.{setting.name}" if section.table else setting.name


def declared(pairs: list[tuple[Section, Setting]]) -> pytest.MarkDecorator:
    """One test for each of some settings."""
    return pytest.mark.parametrize(("section", "setting"), pairs, ids=[path(*pair) for pair in pairs])


def test_each_field_of_the_core_is_declared_or_follows_from_what_is() -> None:
    led = [setting.core for _, setting in DECLARED if setting.core]
    assert len(led) == len(set(led))
    assert set(led) | DERIVED == {field.name for field in fields(Settings)}
    assert not set(led) & DERIVED


@pytest.mark.parametrize("part", [Settings, Peer, Config, HealthConfig, Privileges, Limits])
def test_the_schema_alone_has_defaults(part: type[Any]) -> None:
    assert [field.name for field in fields(part) if not field.default is field.default_factory is MISSING] == []


def test_names_are_unique_in_a_table() -> None:
    assert len(DECLARED) == len({path(*pair) for pair in DECLARED})
    assert len(schema.names()) == len(set(schema.names()))
    with pytest.raises(KeyError):
        schema.find("name", "health")


@declared(DECLARED)
def test_a_declaration_is_complete(section: Section, setting: Setting) -> None:
    del section
    assert setting.text[:1].isupper() or setting.text[:1] == "`"
    assert setting.text.endswith(".") and "\n" not in setting.text
    for unit in ("ms", "bytes"):
        assert (setting.unit == unit) is setting.name.endswith(f"_{unit}"), "units last"
    if setting.kind in (Kind.NUMBER, Kind.MASK):
        assert setting.low < setting.high
        assert setting.default is None or setting.low <= setting.default <= setting.high
    if setting.kind is Kind.CHOICE:
        assert len(setting.choices) > 1 and setting.default in setting.choices
    if setting.required:
        assert setting.default is None
    if setting.default in (None, ()):
        assert setting.example is not None


def other(setting: Setting, directory: Path) -> Any:
    """A valid value that is neither the default nor what the tests' files have."""
    if setting.name == "key_file":
        path = directory / "another-key"
        path.write_text("another key of 32 letters and so")
        path.chmod(0o600)
        return str(path)
    special = {"queue_in": 9, "queue_out": 9, "ports": [443], "mark": 0x40, "tap_mac": "01:00:5e:00:00:01"}
    special |= {"lease_ms": 9000, "name": "gamma", "interface": "eth1", "mac": "52:54:00:ff:ff:ff"}
    special |= {"listen": "192.0.2.77:7000"}
    if setting.name in special:
        return special[setting.name]
    match setting.kind:
        case Kind.FLAG:
            return not setting.default
        case Kind.NUMBER:
            return setting.low if setting.default != setting.low else setting.high
        case Kind.CHOICE:
            return setting.choices[-1]
        case Kind.PATH:
            return "/another/path"
        case Kind.INSTANCE:
            return "another"
        case Kind.FENCE:
            return ["/bin/another"]
    return setting.example


@declared([pair for pair in DECLARED if pair[0].table != "fence"])
def test_another_value_makes_another_configuration(
    table: dict[str, Any], section: Section, setting: Setting, tmp_path: Path
) -> None:
    table |= {"fence": ["/bin/true"], "tap": "multicast", "tap_mac": "01:00:5e:4d:00:64"}
    table |= {"witness": {"address": "10.77.0.9"}, "health": {"command": ["/bin/true"]}}
    if setting.name == "split_brain":
        del table["witness"]
    if setting.name == "tap":
        table["tap"] = "clone"
    before = parse(table)
    value = other(setting, tmp_path)
    if section.many:
        table[section.table][0][setting.name] = value
    elif section.table:
        table.setdefault(section.table, {})[setting.name] = value
    else:
        table[setting.name] = value
    assert parse(table) != before


def test_a_file_with_the_least_has_the_defaults(table: dict[str, Any]) -> None:
    config = parse(table)
    given = {field.name: getattr(config.settings, field.name) for field in fields(Settings)}
    assert {name: given[name] for name in schema.core_defaults()} == schema.core_defaults()
    assert configured.settings(**{name: given[name] for name in (*DERIVED, "name", "ports")}) == config.settings


@declared([pair for pair in DECLARED if pair[1].change is not Change.RESTART and pair[1].core])
def test_what_the_two_hosts_reckon_with_is_not_changed_in_a_running_daemon(section: Section, setting: Setting) -> None:
    del section
    chosen = {"has_fence": True, "has_witness": True}
    before, after = configured.settings(**chosen), configured.settings(**chosen, **{setting.core: setting.low})
    for what in ("detection_ms", "release_after_ms", "lease_ms"):
        assert getattr(after, what) == getattr(before, what)
