"""What a reload takes over of another configuration, and what it leaves to a restart: both are named with values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config import parse, schema
from nfq_failover.config.differences import Changed, Differences, compare, with_keys, without_keys
from nfq_failover.config.schema import SECTIONS, Change
from nfq_failover.errors import ConfigError
from tests.unit.config.test_parse import key_file, table
from tests.unit.config.test_schema import other

__all__ = ["key_file", "table"]  # fixtures

WHOLE = {
    "fence": ["/bin/true"],
    "tap": "multicast",
    "tap_mac": "01:00:5e:4d:00:64",
    "witness": {"address": "10.77.0.9"},
    "health": {"command": ["/bin/true"]},
}


def differ(old: dict[str, Any], new: dict[str, Any]) -> Differences:
    before, after = parse(old), parse(new)
    same_witness = before.witness is None or after.witness is None or before.witness.key == after.witness.key
    same_key = before.settings.key == after.settings.key
    found = compare(without_keys(before), after, same_key=same_key, same_witness_key=same_witness)
    assert not found.config.settings.key
    return replace(found, config=with_keys(found.config, before))


def with_value(table: dict[str, Any], section: str, name: str, value: Any) -> dict[str, Any]:
    if section == "peer":
        return {**table, "peer": [{**table["peer"][0], name: value}]}
    if section:
        return {**table, section: {**table.get(section, {}), name: value}}
    return {**table, name: value}


@pytest.mark.parametrize(
    ("section", "name"),
    [(s.table, one.name) for s in SECTIONS for one in s.settings if s.table != "fence" and one.name != "fence"],
)
def test_each_setting_does_what_its_declaration_says(
    table: dict[str, Any], section: str, name: str, tmp_path: Path
) -> None:
    table |= WHOLE
    if name == "split_brain":
        del table["witness"]
    setting = schema.find(name, section)
    value = {"ports": [80, "7000-7099", 8081], "max_connections": 30_000}.get(name, other(setting, tmp_path))
    new = with_value(table, section, name, value)
    if name == "tap":
        new["tap"] = "clone"
    found = differ(table, new)
    named = found.restart if setting.change is Change.RESTART else found.applied
    assert f"{section}.{name}".lstrip(".") in [each.name for each in named]
    assert all(each.before != each.after for each in named)
    if setting.change is Change.RESTART:
        assert not found.applied and found.config == parse(table)
    else:
        assert not found.restart and found.config == parse(new)


def test_fewer_ports_take_a_restart(table: dict[str, Any]) -> None:
    found = differ(table, table | {"ports": [80, 8081]})
    assert found.restart == (Changed("ports", "80, 7000-7099", "80, 8081"),) and not found.applied
    assert found.config.settings.ports == ((80, 80), (7000, 7099))
    assert not differ(table | {"max_connections": 30_000}, table).applied


def test_a_mixture_applies_what_can_be(table: dict[str, Any]) -> None:
    new = table | {
        "interface": "eth7",
        "log_level": "debug",
        "queue_in": 9,
        "check_targets": ["10.77.0.4", "10.77.0.5:53"],
    }
    found = differ(table, new)
    assert [str(each) for each in found.applied] == [
        "log_level: info -> debug",
        "check_targets: not there -> 10.77.0.4, 10.77.0.5:53",
    ]
    assert [str(each) for each in found.restart] == ["interface: eth0 -> eth7", "queue_in: 7760 -> 9"]
    merged = found.config
    assert (merged.interface, merged.log_level, merged.queue_in) == ("eth0", "debug", 7760)
    assert merged.settings.checks_target


def test_a_fence_is_exchanged_and_neither_added_nor_removed(table: dict[str, Any]) -> None:
    """The peer has been told for how long this host may act."""
    fenced = table | {"fence": ["/bin/true"]}
    found = differ(fenced, table | {"fence": ["/bin/off", "{peer}"], "fence_attempts": 4})
    assert [str(each) for each in found.applied] == ["fence_attempts: 0 -> 4", "fence: /bin/true -> /bin/off {peer}"]
    assert found.config.fence.command == ("/bin/off", "{peer}") and found.config.fence.attempts == 4
    for old, new in ((table, fenced), (fenced, table)):
        found = differ(old, new)
        assert [each.name for each in found.restart] == ["fence"] and not found.applied
        assert found.config.settings == parse(old).settings and found.config.fence == parse(old).fence


def test_no_secret_is_shown(table: dict[str, Any]) -> None:
    def agent(password: str) -> dict[str, Any]:
        return table | {"fence": {"agent": "fence_x", "parameters": {"password": password}}}

    found = differ(agent("hunter2"), agent("swordfish"))
    (changed,) = found.applied
    assert changed == Changed("fence", "what fence_x is told", "something else")
    assert found.config.fence.secrets == {"swordfish"}


def test_a_witness_is_exchanged_and_health_checks_come_and_go(table: dict[str, Any]) -> None:
    witness = table | {"witness": {"address": "10.77.0.9"}}
    found = differ(witness, table | {"witness": {"address": "10.77.0.10:99"}})
    assert [str(each) for each in found.applied] == ["witness.address: 10.77.0.9:7767 -> 10.77.0.10:99"]
    assert found.config.witness is not None and found.config.witness.address == ("10.77.0.10", 99)
    for old, new in ((table, witness), (witness, table)):
        found = differ(old, new)
        assert not found.applied and {each.name.split(".")[0] for each in found.restart} == {"witness"}
        assert found.config == parse(old)
    health = table | {"health": {"command": ["/bin/true"]}}
    for old, new in ((table, health), (health, table)):
        found = differ(old, new)
        assert not found.restart and found.config == parse(new)


def test_another_key_in_the_same_file_takes_a_restart(table: dict[str, Any], key_file: Path) -> None:
    before = without_keys(parse(table))
    key_file.write_text("another key of 32 letters and so")
    found = compare(before, parse(table), same_key=False, same_witness_key=True)
    assert [each.name for each in found.restart] == ["key_file"]
    assert "another key of" not in str(found.restart)


def test_what_does_not_go_together_is_refused(table: dict[str, Any]) -> None:
    """The new values are right among themselves; what a running daemon could take of them is not, with the old ones."""
    old = table | {"health": {"port": 80, "connect": True, "command": ["/bin/true"]}}
    assert not differ(old, old | {"health": {"connect": False, "command": ["/bin/false"]}}).restart
    before = without_keys(parse(table))
    contradicting = replace(before, values={**before.values, "": {**before.values[""], "queue_in": 7761}})
    with pytest.raises(ConfigError, match="must differ"):
        compare(contradicting, parse(table), same_key=True, same_witness_key=True)
