"""The configuration that vagrant/provision writes is one that the daemon takes, and says what the options said."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config import Config, parse
from nfq_failover.lab.topology import multicast_hardware

PROVISION = Path(__file__).parents[3] / "vagrant" / "provision"
STEPS = "# ---------------------------------------------------------------- in this order"
GIVEN = {
    "name": "alpha",
    "address": "192.0.2.11",
    "peer": "beta",
    "peer-address": "192.0.2.12",
    "service": "192.0.2.100",
    "interface": "eth1",
    "fence": "/usr/sbin/fence_toy",
}


def write(directory: Path, *more: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the script with these options, up to its steps, and of those only the one that writes the configuration."""
    head, marker, _ = PROVISION.read_text().partition(STEPS)
    assert marker
    etc = directory / "etc"
    script = directory / "provision"
    script.write_text(head.replace("etc=/etc/nfq-failover\n", f"etc={etc}\n") + "write_config\n")
    (directory / "id").write_text("#!/bin/sh\necho 0\n")
    (directory / "id").chmod(0o755)
    (directory / "key").write_text("0123456789abcdef0123\n")
    wheels = directory / "wheels"
    wheels.mkdir(exist_ok=True)
    (wheels / "nfq_failover-0-py3-none-any.whl").touch()
    words = [
        word
        for name, value in (GIVEN | {"key": str(directory / "key"), "wheels": str(wheels)} | changes).items()
        if value
        for word in (f"--{name}", value)
    ]
    env = {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["sh", str(script), *words, *more], capture_output=True, text=True, env=env, timeout=30)


def read(directory: Path) -> Config:
    path = directory / "etc" / "config.toml"
    table: dict[str, Any] = tomllib.loads(path.read_text())
    return parse(table | {"key_file": str(directory / "etc" / "key")})


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_the_options_are_in_the_configuration(tmp_path: Path, tap: str) -> None:
    more = ["--prefer-primary", "--fence-parameter", "plug={peer}", "--fence-parameter", "ip=192.0.2.1"]
    more += ["--tap", tap, "--heartbeat-ms", "250", "--heartbeat-count", "5", "--fence-deadline-ms", "60000"]
    done = write(tmp_path, *more)
    assert done.returncode == 0, done.stderr
    config = read(tmp_path)
    settings = config.settings
    assert (settings.name, settings.peers[0].name, settings.peers[0].address) == ("alpha", "beta", "192.0.2.12")
    assert (config.service, config.listen, config.interface) == ("192.0.2.100", ("192.0.2.11", 7766), "eth1")
    assert settings.ports == ((80, 80), (7000, 7009))
    assert settings.prefer_primary
    assert (settings.detection_ms, settings.fence_deadline_ms) == (1250, 60000)
    assert (config.tap, config.tap_mac) == (tap, multicast_hardware("192.0.2.100"))
    assert config.fence.command == ("/usr/sbin/fence_toy",)
    assert dict(config.fence.parameters) == {"plug": "{peer}", "ip": "192.0.2.1"}
    assert config.fence.verify
    for name in ("key", "config.toml"):
        assert (tmp_path / "etc" / name).stat().st_mode & 0o077 == 0


def test_only_the_lab_s_agent_is_believed_without_a_second_question(tmp_path: Path) -> None:
    assert write(tmp_path, fence="/usr/local/sbin/fence_lab_vm").returncode == 0
    assert not read(tmp_path).fence.verify


def test_without_a_fence_there_is_none(tmp_path: Path) -> None:
    assert write(tmp_path, fence="").returncode == 0
    assert not read(tmp_path).fence
    assert not read(tmp_path).settings.prefer_primary


def test_what_the_agent_needs_is_private(tmp_path: Path) -> None:
    (tmp_path / "fence-key").write_text("secret\n")
    assert write(tmp_path, "--fence-file", str(tmp_path / "fence-key")).returncode == 0
    copy = tmp_path / "etc" / "fence-key"
    assert copy.read_text() == "secret\n"
    assert copy.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("missing", ["name", "address", "peer", "peer-address", "service", "key"])
def test_nothing_is_written_without_what_it_needs(tmp_path: Path, missing: str) -> None:
    done = write(tmp_path, **{missing: ""})
    assert done.returncode == 1
    assert f"--{missing} is missing" in done.stderr
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize("words", [["--nmae", "x"], ["--tap"], ["alpha"]])
def test_a_mistake_is_told(tmp_path: Path, words: list[str]) -> None:
    assert write(tmp_path, *words).returncode != 0
    assert not (tmp_path / "etc").exists()


def test_what_can_not_be_installed_is_said_before_anything_is(tmp_path: Path) -> None:
    """Out of a checkout pip can take that; from elsewhere there must be wheels."""
    for wheels, said in (("", "--wheels is missing"), (str(tmp_path), f"no nfq_failover-*.whl in {tmp_path}")):
        done = write(tmp_path, wheels=wheels)
        assert done.returncode == 1
        assert said in done.stderr
    assert not (tmp_path / "etc").exists()


def test_help_is_the_head_of_the_file() -> None:
    done = subprocess.run(["sh", str(PROVISION), "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout.startswith("Makes a Debian server")
    assert "--prefer-primary" in done.stdout
