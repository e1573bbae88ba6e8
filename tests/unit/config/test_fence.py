"""The configuration of fence, witness and targets, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config import advice, load, parse
from nfq_failover.errors import ConfigError
from tests.unit.config.test_parse import key_file, refused, table

__all__ = ["key_file", "table"]  # fixtures


def test_an_agent(table: dict[str, Any], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    config = parse(
        table
        | {
            "fence": {
                "agent": "fence_virsh",
                "parameters": {"ip": "192.0.2.1", "plug": "{peer}", "ssh": True, "login_timeout": 7},
                "secrets": {"password": str(secret)},
            },
            "fence_attempts": 4,
            "fence_delay_ms": 100,
            "fence_retry_ms": 700,
            "fence_retry_max_ms": 9000,
        }
    )
    plan, settings = config.fence, config.settings
    assert plan.command == ("fence_virsh",) and plan.agent and plan.verify and plan.attempts == 4
    assert dict(plan.parameters) == {
        "ip": "192.0.2.1",
        "plug": "{peer}",
        "ssh": "true",
        "login_timeout": "7",
        "password": "hunter2",
    }
    assert plan.secrets == {"hunter2"} and "hunter2" not in repr(config)
    assert settings.has_fence
    assert (settings.fence_delay_ms, settings.fence_retry_ms, settings.fence_retry_max_ms) == (100, 700, 9000)


def test_a_command_in_the_table(table: dict[str, Any]) -> None:
    config = parse(table | {"fence": {"command": ["/bin/off", "{peer}"]}})
    assert config.fence.command == ("/bin/off", "{peer}") and not config.fence.agent


@pytest.mark.parametrize(
    ("fence", "text"),
    [
        ("fence_virsh", "must be a list in [brackets], or a table [fence]"),
        ({}, "either 'agent' or 'command'"),
        ({"agent": "x", "command": ["y"]}, "either 'agent' or 'command'"),
        ({"agent": ""}, "name or path of a fence agent"),
        ({"agent": "x", "verify": "yes"}, "must be true or false"),
        ({"agent": "x", "parameter": {}}, "unknown setting 'parameter'"),
        ({"agent": "x", "parameters": {"action": "on"}}, "'action' can't be a parameter"),
        ({"agent": "x", "parameters": {"a b": "c"}}, "can't be a parameter"),
        ({"agent": "x", "parameters": {"a": "b\naction=on"}}, "in one line"),
        ({"agent": "x", "parameters": {"a": [1]}}, "must be a text"),
        ({"agent": "x", "parameters": {"plug": "{host}"}}, "no placeholder {host}"),
        ({"agent": "x", "secrets": {"password": "hunter2"}}, "absolute path"),
        ({"agent": "x", "secrets": {"password": "/no/such"}}, "can't be read"),
        ({"agent": "x", "secrets": {"password": "/etc/passwd"}}, "readable by others"),
        ({"command": ["x"], "verify": False}, "for an agent"),
        ({"command": "x"}, "must be a list of words"),
    ],
)
def test_a_wrong_fence(table: dict[str, Any], fence: Any, text: str) -> None:
    said = refused(table | {"fence": fence})
    assert text in said and ("'fence'" in said or "[fence]" in said)


def test_a_secret_in_a_file_that_others_can_read(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
name = "a"
service = "10.77.0.100"
ports = [80]
interface = "eth0"
listen = "10.77.0.2"
key_file = "{key_file}"
[[peer]]
name = "b"
address = "10.77.0.3"
[fence]
agent = "fence_ipmilan"
[fence.parameters]
ip = "192.0.2.212"
password = "hunter2"
"""
    )
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load(path)
    assert "hunter2" not in str(caught.value)
    path.chmod(0o600)
    assert load(path).fence.secrets == {"hunter2"}


def test_a_witness(table: dict[str, Any]) -> None:
    config = parse(table | {"witness": {"address": "10.77.0.9"}})
    assert config.witness is not None
    assert config.witness.address == ("10.77.0.9", 7767)
    assert config.witness.pair == "10.77.0.100 a b"
    assert config.settings.has_witness and config.settings.lease_ms == 3 * config.settings.detection_ms
    assert not any("never takes over" in sentence for sentence in advice(config))
    peer = parse(
        table
        | {
            "name": "b",
            "peer": [{"name": "a", "address": "10.77.0.2"}],
            "listen": "10.77.0.3",
            "witness": {"address": "10.77.0.9:7000", "lease_ms": 900},
        }
    )
    assert peer.witness is not None
    assert peer.witness.pair == config.witness.pair, "both name the pair alike"
    assert peer.witness.address[1] == 7000 and peer.settings.lease_ms == 900


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"witness": {}}, "'address' is missing"),
        ({"witness": {"address": "witness.example"}}, "not an IP address"),
        ({"witness": {"address": "10.77.0.9:0"}}, "not ADDRESS:PORT"),
        ({"witness": {"address": "10.77.0.9", "lease_ms": 200}}, "'lease_ms' must be at least 250"),
        ({"witness": {"address": "10.77.0.9"}, "split_brain": "accepted"}, "contradict"),
        ({"check_targets": ["gateway"]}, "not an IP address"),
        ({"check_targets": ["10.77.0.1:http"]}, "not ADDRESS:PORT"),
        ({"check_targets": [7]}, "not ADDRESS:PORT"),
    ],
)
def test_a_wrong_witness_or_target(table: dict[str, Any], more: dict[str, Any], text: str) -> None:
    assert text in refused(table | more)


def test_targets(table: dict[str, Any]) -> None:
    config = parse(table | {"check_targets": ["10.77.0.1", "10.77.0.1:80"], "check_deadline_ms": 300})
    assert config.check_targets == (("10.77.0.1", 0), ("10.77.0.1", 80))
    assert config.settings.checks_target
