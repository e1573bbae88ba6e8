"""The configuration file: the ten lines of a real server, and every way to get it wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config import Config, HealthConfig, advice, load, parse, read_key, state_dir
from nfq_failover.config.checks import doubts
from nfq_failover.config.parse import parse_text
from nfq_failover.core.settings import Peer
from nfq_failover.errors import ConfigError


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def table(key_file: Path) -> dict[str, Any]:
    """The settings without which nothing goes."""
    return {
        "name": "a",
        "service": "10.77.0.100",
        "ports": [80, "7000-7099"],
        "interface": "eth0",
        "listen": "10.77.0.2:7766",
        "key_file": str(key_file),
        "peer": [{"name": "b", "address": "10.77.0.3"}],
    }


def refused(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(table, "the file")
    text = str(caught.value)
    assert text.startswith(("the file", "key file"))
    assert "\n" not in text
    return text


def test_ten_lines_are_enough(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
name = "a"
service = "10.77.0.100"
ports = [80, "7000-7099"]
interface = "eth0"
listen = "10.77.0.2"
key_file = "{key_file}"
fence = ["/usr/local/sbin/power-off", "{{peer}}", "--at={{address}}"]
[[peer]]
name = "b"
address = "10.77.0.3"
"""
    )
    config = load(path)
    settings = config.settings
    assert settings.name == "a"
    assert settings.service == bytes([10, 77, 0, 100])
    assert settings.ports == ((80, 80), (7000, 7099))
    assert settings.peers == (Peer("b", "10.77.0.3", 7766),)
    assert settings.key == b"0123456789abcdef0123456789abcdef"
    assert settings.has_fence
    assert not settings.split_brain_accepted
    assert settings.boot_alone == "wait"
    assert config.listen == ("10.77.0.2", 7766)
    assert config.fence.command == ("/usr/local/sbin/power-off", "{peer}", "--at={address}")
    assert (config.tap, config.conntrack, config.manage_address) == ("clone", "notrack", True)
    assert config.state_dir == Path("/var/lib/nfq-failover")


def test_every_setting_reaches_its_place(table: dict[str, Any]) -> None:
    numbers = {
        "boot_wait_ms": 4000,
        "heartbeat_interval_ms": 10,
        "heartbeat_count": 5,
        "fence_deadline_ms": 1500,
        "loop_stall_ms": 200,
        "open_deadline_ms": 800,
        "announce_count": 7,
        "revert_backoff": False,
        "max_connections": 300,
        "max_log_bytes": 1 << 20,
        "max_unacked_bytes": 1 << 21,
        "hole_deadline_ms": 2500,
    }
    shell = {"queue_in": 10, "queue_out": 11, "mark": 0x40, "manage_address": False, "conntrack": "liberal"}
    config = parse(
        table
        | numbers
        | shell
        | {
            "tap": "multicast",
            "tap_mac": "01:00:5E:4D:00:64",
            "split_brain": "accepted",
            "boot_alone": "fence",
            "fence": ["/bin/true"],
            "prefer_primary": True,
            "instance": "web_1",
            "state_dir": "/srv/state",
            "rules_script": "/opt/rules",
            "peer": [{"name": "b", "address": "10.77.0.3", "port": 9000, "mac": "52:54:00:AA:BB:CC"}],
        }
    )
    assert {name: getattr(config.settings, name) for name in numbers} == numbers
    assert {name: getattr(config, name) for name in shell} == shell
    assert config.tap_mac == "01:00:5e:4d:00:64"
    assert config.settings.split_brain_accepted
    assert config.settings.prefer_primary
    assert config.settings.boot_alone == "fence"
    assert config.settings.peers[0].port == 9000
    assert config.peer_macs == {"10.77.0.3": "52:54:00:aa:bb:cc"}
    assert (config.instance, config.state_dir, config.rules_script) == ("web_1", Path("/srv/state"), Path("/opt/rules"))


@pytest.mark.parametrize("name", ["name", "service", "ports", "interface", "listen", "peer"])
def test_a_missing_setting_is_named(table: dict[str, Any], name: str) -> None:
    del table[name]
    assert f"'{name}' is missing" in refused(table)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("servce", "service"),
        ("port", "ports"),
        ("heartbeat_intervall_ms", "heartbeat_interval_ms"),
        ("peers", "peer"),
        ("Fence", "fence"),
    ],
)
def test_a_typo_is_told_before_what_is_missing_for_it(table: dict[str, Any], typo: str, meant: str) -> None:
    table.pop(meant, None)
    assert f"unknown setting '{typo}': did you mean '{meant}'?" in refused(table | {typo: "x"})


def test_an_unknown_setting_without_a_neighbour_is_to_be_removed(table: dict[str, Any]) -> None:
    assert "unknown setting 'colour': remove it" in refused(table | {"colour": "red"})


def test_a_typo_in_a_peer_says_in_which(table: dict[str, Any]) -> None:
    table["peer"][0]["adress"] = "10.77.0.3"
    assert "[[peer]] 1: unknown setting 'adress': did you mean 'address'?" in refused(table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": ""}, "'name'"),
        ({"name": "a b"}, "'a b' is not a name"),
        ({"name": 7}, "'name' must be a text in quotes, not 7"),
        ({"name": "b"}, "the peer has our own name 'b'"),
        ({"service": "web.example.org"}, "'web.example.org' is not an IP address"),
        ({"service": "fd77::100"}, "IPv6 is not supported yet"),
        ({"service": "224.0.0.5"}, "can't be the address of a host"),
        ({"service": "10.77.0.2"}, "'service' must be an address of its own"),
        ({"service": "10.77.0.3"}, "'service' must be an address of its own"),
        ({"ports": 80}, "'ports' must be a list in [brackets], not 80"),
        ({"ports": []}, "list at least one port"),
        ({"ports": [0]}, "'0' is not a port"),
        ({"ports": [65536]}, "'65536' is not a port"),
        ({"ports": ["90-80"]}, "'90-80' is not a port"),
        ({"ports": ["80-"]}, "is not a port"),
        ({"ports": ["http"]}, "'http' is not a port"),
        ({"ports": [True]}, "'True' is not a port"),
        ({"ports": ["²"]}, "is not a port"),
        ({"ports": ["7000-7099", 7050]}, "port 7050 is listed twice"),
        ({"interface": "eth 0"}, "is not the name of an interface"),
        ({"interface": "a" * 16}, "is not the name of an interface"),
        ({"interface": "../lo"}, "is not the name of an interface"),
        ({"listen": "10.77.0.2:0"}, "is not ADDRESS:PORT"),
        ({"listen": "10.77.0.2:"}, "is not ADDRESS:PORT"),
        ({"listen": "0.0.0.0:7766"}, "can't be the address of a host"),
        ({"listen": "10.77.0.3:7766"}, "the peer has our own address"),
        ({"tap": "hub"}, "'tap' must be one of clone, multicast"),
        ({"tap": "multicast"}, "needs 'tap_mac'"),
        ({"tap": "multicast", "tap_mac": "52:54:00:aa:bb:cc"}, "a multicast MAC"),
        ({"tap_mac": "01-00-5e-4d-00-64"}, "is not a MAC address"),
        ({"conntrack": "none"}, "'conntrack' must be one of notrack, liberal"),
        ({"heartbeat_interval_ms": 9}, "must be between 10 and 5000, not 9"),
        ({"heartbeat_interval_ms": 5001}, "must be between 10 and 5000"),
        ({"heartbeat_interval_ms": 50.0}, "must be a whole number"),
        ({"heartbeat_interval_ms": True}, "must be a whole number"),
        ({"heartbeat_count": 1}, "must be between 2 and 100"),
        ({"fence": "power-off b"}, "'fence' must be a list"),
        ({"fence": ["power-off", 7]}, "must be a list of words"),
        ({"fence": ["power-off", ""]}, "must be a list of words"),
        ({"fence": ["power-off", "{host}"]}, "there is no placeholder {host}: use {peer} or {address}"),
        ({"split_brain": True}, "'split_brain' must be a text in quotes"),
        ({"split_brain": "yes"}, "must be one of refuse, accepted"),
        ({"boot_alone": "fence"}, "needs a 'fence' command"),
        ({"manage_address": "yes"}, "must be true or false"),
        ({"instance": "a-b"}, "16 letters, digits and underscores"),
        ({"queue_in": 5, "queue_out": 5}, "must differ"),
        ({"queue_in": 65536}, "must be between 0 and 65535"),
        ({"mark": 3}, "must be a single bit"),
        ({"mark": 0}, "must be between 1 and"),
        ({"state_dir": "state"}, "is not an absolute path"),
        ({"state_dir": "/a\0b"}, "is not an absolute path"),
        ({"key_file": "/no/such/key"}, "nfq-failover keygen /no/such/key"),
        ({"peer": {"name": "b", "address": "10.77.0.3"}}, "write [[peer]], with two brackets, for [peer]"),
        ({"peer": "b"}, "'peer' must be a table [[peer]]"),
        ({"health": [{"failures": 2}]}, "write [health] for [[health]], and once"),
        ({"peer": []}, "exactly one [[peer]]"),
        ({"peer": ["b"]}, "write the peer as a [[peer]] table"),
        ({"peer": [{"name": "b"}]}, "[[peer]] 1: setting 'address' is missing"),
        ({"peer": [{"name": "b", "address": "10.77.0.3:7766"}]}, "'10.77.0.3:7766' is not an IP address"),
        ({"peer": [{"name": "b", "address": "10.77.0.3", "mac": "no"}]}, "is not a MAC address"),
    ],
)
def test_every_error_says_which_setting_and_why(table: dict[str, Any], change: dict[str, Any], says: str) -> None:
    assert says in refused(table | change)


def test_two_peers_are_refused_for_now(table: dict[str, Any]) -> None:
    table["peer"].append({"name": "c", "address": "10.77.0.4"})
    assert "exactly one [[peer]] is supported, not 2" in refused(table)


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*--config"):
        load(tmp_path / "none.toml")
    path = tmp_path / "config.toml"
    path.write_text("name = a\n")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load(path)
    path.write_bytes(b"name = '\xff'\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(path)
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_can_read_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:o}\): run 'chmod 600"):
        read_key(key_file)


def test_a_credential_of_systemd_is_taken_for_what_it_is(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.chmod(0o440)  # the ACL of a unit's user looks like that
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))
    assert read_key(key_file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent / "elsewhere"))
    with pytest.raises(ConfigError, match="readable by others"):
        read_key(key_file)


def test_a_short_key_is_refused(key_file: Path) -> None:
    key_file.write_text("only 15 letters\n")
    with pytest.raises(ConfigError, match="has 15 bytes; at least 16"):
        read_key(key_file)
    key_file.write_text("sixteen letters!\n")
    assert read_key(key_file) == b"sixteen letters!"


def config_of(table: dict[str, Any], **change: Any) -> Config:
    return parse(table | change)


def test_advice_on_what_is_allowed_but_hardly_meant(table: dict[str, Any]) -> None:
    assert "never takes over" in advice(config_of(table))[0]
    assert "both hosts may serve" in advice(config_of(table, split_brain="accepted"))[0]
    assert "not executable" in advice(config_of(table, fence=["/no/such/fence"]))[0]
    assert advice(config_of(table, fence=["/bin/sh", "{peer}"])) == []


@pytest.mark.parametrize(
    ("divergence", "changes", "said"),
    [
        ({"out_of_step_ms": 2000}, {}, ["'out_of_step_ms' = 2000 is not more than 'replica_patience_ms' = 2000"]),
        ({"out_of_step_ms": 2001}, {}, []),
        ({}, {"replica_patience_ms": 2999}, []),
        (
            {},
            {"replica_patience_ms": 3000},
            ["'hole_deadline_ms' = 3000 is not more than 'replica_patience_ms' = 3000"],
        ),
        (
            {"out_of_step_ms": 1500},
            {"replica_patience_ms": 4000, "hole_deadline_ms": 4000},
            ["'out_of_step_ms' = 1500 is not more", "'hole_deadline_ms' = 4000 is not more"],
        ),
        ({}, {"replica_patience_ms": 0}, ["a replica that is 'out_of_step_ms' = 10000 late is given up"]),
    ],
)
def test_advice_on_deadlines_that_give_up_a_replica_which_is_merely_slow(
    table: dict[str, Any], divergence: dict[str, Any], changes: dict[str, Any], said: list[str]
) -> None:
    config = config_of(table, fence=["/bin/sh", "{peer}"], divergence=divergence, **changes)
    assert [part in sentence for part, sentence in zip(said, advice(config), strict=True)] == [True] * len(said)
    places = {"out_of_step_ms": "divergence", "hole_deadline_ms": ""}
    assert all(places[fault.setting] == fault.table for fault in doubts(config))


def test_health_and_application(table: dict[str, Any]) -> None:
    plain = parse(table)
    assert plain.health is None
    assert (plain.settings.on_app_failure, plain.settings.health_checked) == ("service", False)
    checked = parse(table | {"health": {"command": ["/bin/true"], "failures": 5}, "application": {"on_failure": "off"}})
    assert checked.health == HealthConfig(80, ("/bin/true",), 1000, 1000, 5)
    assert (checked.settings.on_app_failure, checked.settings.health_failures) == ("off", 5)
    assert checked.settings.health_checked
    only = parse(table | {"health": {"command": ["x"], "connect": False}}).health
    assert only is not None and only.port is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"health": {"connect": False}}, "nothing would be checked"),
        ({"health": {"comand": ["x"]}}, "did you mean 'command'?"),
        ({"health": {"command": []}}, "must be a list of words"),
        ({"health": 1}, "'health' must be a [table]"),
        ({"application": {"on_failure": "panic"}}, "must be one of service, connection, off"),
        ({"application": {"end_deadline_ms": 1}}, "must be between 50 and 60000"),
    ],
)
def test_errors_in_health_and_application(table: dict[str, Any], change: dict[str, Any], says: str) -> None:
    assert says in refused(table | change)


def test_divergence_has_its_own_table(table: dict[str, Any]) -> None:
    default = parse(table, "the file").settings
    assert (default.divergence, default.divergence_run_bytes, default.out_of_step_ms) == ("default", 1024, 10_000)
    chosen = {"policy": "strict", "run_bytes": 64, "out_of_step_ms": 500}
    settings = parse({**table, "divergence": chosen}, "the file").settings
    assert (settings.divergence, settings.divergence_run_bytes, settings.out_of_step_ms) == ("strict", 64, 500)
    assert "[divergence]: 'policy' must be one of default, strict, off" in refused(
        {**table, "divergence": {"policy": "lax"}}
    )
    assert "did you mean 'run_bytes'" in refused({**table, "divergence": {"run_byte": 1}})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('state_dir = "/srv/state"  # here', "/srv/state"),
        ("  state_dir='/srv/it's'", "/srv/it's"),
        ("# state_dir = '/srv/state'", "/var/lib/nfq-failover"),
        ("state_dir =", "/var/lib/nfq-failover"),
    ],
)
def test_where_a_daemon_is_found_while_its_file_is_no_toml(tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"name = 'a\n{line}\nports = [80\n")
    assert state_dir(path) == Path(found)


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "queue_in = " + "1" * 5000])
def test_what_the_parser_of_toml_has_no_room_for_is_an_error_like_others(text: str) -> None:
    """It must not end a daemon that is to reload it."""
    with pytest.raises(ConfigError, match="not valid TOML"):
        parse_text(text, "nfq.toml")


def test_key_file_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_key(tmp_path / "key")
