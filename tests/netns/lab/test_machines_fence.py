"""The lab's fence over a real ssh: the guest's agent, the host's server, the keys that vagrant/prepare makes.

Only the hypervisor is a stand-in; what it would be asked is on record.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import Namespace, pair

VAGRANT = Path(__file__).parents[3] / "vagrant"
PORT = "7722"
HYPERVISOR = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/asked"
[ "$1" != off ] || echo off >"$here/$2"
cat "$here/$2" 2>/dev/null || echo on
"""

pytestmark = pytest.mark.netns


class Lab:
    """A host with the fence's server, and the namespace of the guest that has the address of `backup`."""

    def __init__(self, directory: Path, host: Namespace, guest: Namespace) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.host = host
        self.guest = guest
        (directory / "vagrant").mkdir()
        for name in ("fence-gate", "fence-host", "fence_lab_vm", "prepare", "provision"):
            shutil.copy(VAGRANT / name, directory / "vagrant" / name)
        for path in (*VAGRANT.glob("*.service"), *VAGRANT.glob("*.conf")):
            shutil.copy(path, directory / "vagrant")
        hypervisor = directory / "vagrant" / "hypervisor"
        hypervisor.write_text(HYPERVISOR)
        hypervisor.chmod(0o755)
        # A package in the place where `prepare` looks for it; its wheel is not what this is about.
        self._make_package(directory)
        self.prepared = self.prepare()

    def _make_package(self, directory: Path) -> None:
        (directory / "nfq_failover").mkdir()
        (directory / "iptables").mkdir()
        for name in ("nfq_failover/__init__.py", "README.md", "pyproject.toml"):
            (directory / name).write_text("")
        # In the place of pip: makes an empty wheel, so that no index is needed.
        python = directory / "python"
        python.write_text(
            f"#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in\n"
            f'-c) exec {sys.executable} "$@" ;;\n-w) : >"$2/nfq_failover-0-py3-none-any.whl" ;;\nesac; shift; done\n'
        )
        python.chmod(0o755)

    def prepare(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.directory / "vagrant" / "prepare"), str(self.state), "192.168.60"],
            env={**os.environ, "NFQF_PYTHON": str(self.directory / "python"), "NFQF_CONTENT_MB": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def fence_host(self, *words: str, ahead: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        script = str(self.directory / "vagrant" / "fence-host")
        argv = self.host.argv(*ahead, "sh", script, *words)
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def start(self, *ahead: str) -> None:
        started = self.fence_host("start", str(self.state), "192.168.60.1", PORT, ahead=ahead)
        assert started.returncode == 0, started.stderr

    def stop(self) -> None:
        assert self.fence_host("stop", str(self.state)).returncode == 0

    def agent(self, action: str, plug: str, key_of: str = "backup") -> subprocess.CompletedProcess[str]:
        keys = self.state / key_of
        lines = {"action": action, "ip": "192.168.60.1", "ipport": PORT, "username": "root", "plug": plug}
        lines |= {"identity_file": str(keys / "fence-key"), "known_hosts": str(keys / "fence-known-hosts")}
        return subprocess.run(
            self.guest.argv("sh", str(self.directory / "vagrant" / "fence_lab_vm")),
            input="".join(f"{name}={value}\n" for name, value in lines.items()),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def asked(self) -> list[str]:
        path = self.directory / "vagrant" / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pair("192.168.60.12", "192.168.60.1") as (guest, host):
        one = Lab(tmp_path_factory.mktemp("fence"), host, guest)
        assert one.prepared.returncode == 0, one.prepared.stderr
        try:
            one.start()
            yield one
        finally:
            one.fence_host("stop", str(one.state))


@pytest.fixture(autouse=True)
def forget(lab: Lab) -> None:
    for name in ("asked", "primary", "backup"):
        (lab.directory / "vagrant" / name).unlink(missing_ok=True)


def test_the_backup_turns_the_primary_off_and_sees_it(lab: Lab) -> None:
    assert lab.agent("status", "primary").returncode == 0
    done = lab.agent("off", "primary")
    assert done.returncode == 0, done.stderr
    assert lab.agent("status", "primary").returncode == 2
    assert lab.asked() == ["status primary", "off primary", "status primary"]


def test_no_key_turns_its_own_machine_off(lab: Lab) -> None:
    done = lab.agent("off", "backup")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert lab.asked() == []


def test_a_key_counts_from_its_own_address_only(lab: Lab) -> None:
    done = lab.agent("off", "backup", key_of="primary")
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert lab.asked() == []


def test_a_host_with_another_key_is_not_believed(lab: Lab) -> None:
    known = lab.state / "backup" / "fence-known-hosts"
    right = known.read_text()
    try:
        known.write_text("* " + (lab.state / "primary" / "fence-key.pub").read_text())
        assert lab.agent("off", "primary").returncode == 1
        assert lab.asked() == []
    finally:
        known.write_text(right)


def test_nothing_runs_but_the_gate(lab: Lab) -> None:
    keys = lab.state / "backup"
    words = ["ssh", "-F", "none", "-p", PORT, "-i", str(keys / "fence-key"), "-o", "BatchMode=yes"]
    words += ["-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={keys / 'fence-known-hosts'}"]
    for command in ("id", "off primary; id", "internal-sftp"):
        done = subprocess.run(
            lab.guest.argv(*words, "root@192.168.60.1", command), capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 1
        assert done.stdout == ""
    forward = lab.guest.argv(*words, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "9998:127.0.0.1:9")
    assert subprocess.run([*forward, "root@192.168.60.1"], capture_output=True, timeout=30).returncode == 255
    assert lab.asked() == []


def test_a_locked_password_of_root_is_no_hindrance(lab: Lab, tmp_path: Path) -> None:
    """As on an installed Ubuntu. Only the server sees this file."""
    shadow = tmp_path / "shadow"
    others = [line for line in Path("/etc/shadow").read_text().splitlines() if not line.startswith("root:")]
    shadow.write_text("\n".join(("root:!:19000:0:99999:7:::", *others, "")))
    shadow.chmod(0o600)
    lab.stop()
    try:
        lab.start("unshare", "--mount", "sh", "-c", f'mount --bind {shadow} /etc/shadow && exec "$@"', "sh")
        done = lab.agent("status", "primary")
        assert done.returncode == 0, done.stderr
    finally:
        lab.stop()
        lab.start()


def test_preparing_again_keeps_the_keys_and_what_is_private_stays_so(lab: Lab) -> None:
    before = {path: path.read_bytes() for path in lab.state.rglob("*key*") if path.is_file()}
    assert len(before) >= 6
    assert lab.prepare().returncode == 0
    assert {path: path.read_bytes() for path in before} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in lab.state.rglob("*key") if path.is_file())
