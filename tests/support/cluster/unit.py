"""Tries `unit=` of the resource agent with a real systemd, and no cluster: script/pacemaker.

The machine is a container with one host of a pair, whose peer is never there; what the agent asks the cluster for has
the answer of a cluster of one. What is tried is that agent and systemd agree: the unit starts a daemon again that has
died, and never one that the agent has stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nfq_failover.lab.testbed import wait_until
from tests.support.cluster.lab import AGENTS, HERE, PROGRAM

ROOT: Final = HERE.parents[2]
UNIT: Final = "nfq-failover.service"
SERVICE: Final = "10.77.0.100"
SUCCESS, GENERIC, NOT_RUNNING, PROMOTED = 0, 1, 7, 8
_BOOT_S: Final = 40.0


class Machine:
    """The container. `leader` is its process 1, `place` a directory that it sees at the same path."""

    def __init__(self, leader: int, place: Path) -> None:
        self.leader = leader
        self.place = place

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside. Raises `CalledProcessError`."""
        path = f"{self.place}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [
            "nsenter",
            "--target",
            str(self.leader),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
            "--wd=/",
        ]
        words += ["env", f"PATH={path}", *argv]
        return subprocess.run(words, capture_output=True, text=True, check=check, timeout=90)

    def agent(self, action: str, interval_ms: int = 5000) -> int:
        """Run the resource agent. Returns its exit code."""
        settings = {
            "OCF_ROOT": "/usr/lib/ocf",
            "OCF_RESOURCE_INSTANCE": "pair",
            "OCF_RESOURCE_TYPE": "pair",
            "OCF_RESKEY_config": str(self.place / "config.toml"),
            "OCF_RESKEY_program": PROGRAM,
            "OCF_RESKEY_unit": UNIT,
            "OCF_RESKEY_CRM_meta_interval": str(interval_ms),
            "OCF_RESKEY_CRM_meta_timeout": "20000",
        }
        words = [f"{name}={value}" for name, value in settings.items()]
        done = self.run(*words, str(AGENTS / "pair"), action, check=False)
        self.said = done.stderr.strip().splitlines()[-3:]
        return done.returncode

    def expect(self, action: str, code: int) -> None:
        """Run the agent, which must end with this exit code."""
        began = time.monotonic()
        got = self.agent(action)
        assert got == code, f"{action}: exit code {got} and not {code}: {self.said}"
        print(f"    {action}: {code}, after {time.monotonic() - began:.1f} s", flush=True)

    def unit(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "--value", "--property", name, UNIT).stdout.strip()

    def daemon(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of nfq-failover."""
        return self.run(PROGRAM, command, "--config", str(self.place / "config.toml"), *words, check=False)

    def kill(self) -> None:
        """Kill the daemon, as a crash would; its number is that inside."""
        self.run("kill", "-KILL", self.unit("MainPID"))

    @property
    def traces(self) -> str:
        """What the daemon has left in the host."""
        rules = self.run("iptables-save").stdout.splitlines()
        addresses = self.run("ip", "-o", "address", "show", "to", SERVICE).stdout
        return addresses + "\n".join(line for line in rules if "NFQF" in line)

    def stays_off(self) -> None:
        """Nothing starts the unit again: it would have by now."""
        time.sleep(1.5)
        assert self.unit("ActiveState") in ("inactive", "failed"), self.unit("ActiveState")
        assert not self.daemon("status").stdout
        assert not self.traces, self.traces


def _leader(parent: int) -> int:
    """Process 1 of the container that a systemd-nspawn runs; 0 while there is none."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                rows = dict(row.split(":\t", 1) for row in (entry / "status").read_text().splitlines() if ":\t" in row)
                if rows["PPid"] == str(parent) and rows["NSpid"].split()[-1] == "1":
                    return int(entry.name)
    return 0


def _furnish(place: Path) -> Path:
    """Write key, configuration, unit and the cluster's answers. Returns the unit's path."""
    (place / "key").write_text("0123456789abcdef0123456789abcdef")
    (place / "key").chmod(0o600)
    (place / "config.toml").write_text(
        f'name = "a"\nservice = "{SERVICE}"\nports = [80]\ninterface = "eth0"\nlisten = "10.77.0.2"\n'
        f'key_file = "{place}/key"\nfence = ["{AGENTS}/cluster-fence", "{{peer}}"]\nfence_deadline_ms = 10000\n'
        'boot_wait_ms = 1000\n[privileges]\nuser = "nobody"\n[[peer]]\nname = "b"\naddress = "10.77.0.3"\n'
    )
    (place / "bin").mkdir()
    for name, says in (
        ("crm_attribute", "true"),
        ("crm_node", "echo 1"),
        ("crm_resource", "true"),
        ("crm_master", "true"),
    ):
        (place / "bin" / name).write_text(f"#!/bin/sh\n{says}\n")
        (place / "bin" / name).chmod(0o755)
    text = (ROOT / "vagrant" / UNIT).read_text().replace("/usr/local/bin/nfq-failover", PROGRAM)
    text = text.replace("ProtectHome=yes", "ProtectHome=read-only")  # this may be somebody's home
    unit = place / UNIT
    unit.write_text(text.replace("/etc/nfq-failover/config.toml", str(place / "config.toml")))
    return unit


@contextlib.contextmanager
def machine(place: Path) -> Iterator[Machine]:
    """Boot it, and power it off at the end."""
    unit = _furnish(place)
    root = place / "root"
    root.mkdir()
    binds = [f"--bind-ro={ROOT}", f"--bind={place}"]
    argv = ["unshare", "--mount", str(HERE / "machine"), str(root), str(unit), *binds]
    with (
        open(place / "boot.log", "wb") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as booting,
    ):
        try:
            wait_until(lambda: bool(_leader(booting.pid)), _BOOT_S, "the container did not start", 0.1)
            made = Machine(_leader(booting.pid), place)
            up = ("systemctl", "is-active", "basic.target")
            wait_until(lambda: made.run(*up, check=False).returncode == 0, _BOOT_S, "systemd is not up", 0.3)
            for words in (
                ("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire"),
                ("ip", "address", "add", "10.77.0.2/24", "dev", "eth0"),
                ("ip", "link", "set", "eth0", "up"),
                ("ip", "link", "set", "wire", "up"),
            ):
                made.run(*words)
            yield made
        except BaseException:
            print((place / "boot.log").read_text(errors="replace")[-2000:])
            raise
        finally:
            booting.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                booting.wait(20)
            booting.kill()


def trial(made: Machine) -> None:
    """All that can be tried without a cluster."""
    print("unit=: nothing runs", flush=True)
    made.expect("validate-all", SUCCESS)
    made.expect("monitor", NOT_RUNNING)
    made.expect("stop", SUCCESS)
    made.expect("start", SUCCESS)
    assert made.unit("ActiveState") == "active"
    made.expect("monitor", SUCCESS)

    print("unit=: a reload leaves the daemon what is its own", flush=True)
    had = made.run("stat", "-c", "%U:%G %a", "/var/lib/nfq-failover", "/run/nfq-failover").stdout
    made.run("systemctl", "reload", UNIT)
    assert made.run("stat", "-c", "%U:%G %a", "/var/lib/nfq-failover", "/run/nfq-failover").stdout == had, had

    print("unit=: the file is wrong: a reload changes nothing, and a restart goes on with the one before", flush=True)
    file = made.place / "config.toml"
    right = file.read_text()
    file.write_text(right.replace("ports = [80]", "ports = [80"))
    assert made.run("systemctl", "reload", UNIT, check=False).returncode == 1
    assert made.unit("ActiveState") == "active"
    made.run("systemctl", "restart", UNIT)
    assert "the configuration file was wrong at the start" in made.daemon("status").stdout
    file.write_text(right)
    made.run("systemctl", "reload", UNIT)
    wait_until(lambda: "was wrong at the start" not in made.daemon("status").stdout, 10, "the alarm stays", 0.3)

    print("unit=: the daemon is killed, and systemd has another one before a monitor finds none", flush=True)
    made.kill()
    made.expect("monitor", SUCCESS)
    assert int(made.unit("NRestarts")) == 1
    made.expect("stop", SUCCESS)
    made.stays_off()
    made.expect("monitor", NOT_RUNNING)

    print("unit=: the daemon hangs, and the unit's watchdog has another one", flush=True)
    made.expect("start", SUCCESS)
    made.run("kill", "-STOP", made.unit("MainPID"))
    wait_until(lambda: int(made.unit("NRestarts")) > 0, 20, "the watchdog did not end it", 0.3)
    made.expect("monitor", SUCCESS)
    made.expect("stop", SUCCESS)
    made.stays_off()

    print("unit=: the daemon is killed, and at once there is a stop", flush=True)
    made.expect("start", SUCCESS)
    made.kill()
    made.expect("stop", SUCCESS)
    made.stays_off()

    print("unit=: the host serves, is promoted and demoted", flush=True)
    made.expect("start", SUCCESS)
    assert made.daemon("claim", "--yes").returncode == 0
    made.expect("monitor", SUCCESS)
    made.expect("promote", SUCCESS)
    made.expect("monitor", PROMOTED)
    made.expect("demote", SUCCESS)
    assert made.unit("ActiveState") == "active"
    assert '"role": "primary"' not in made.daemon("status", "--json").stdout
    made.expect("monitor", SUCCESS)
    made.expect("stop", SUCCESS)
    made.stays_off()

    print("unit=: a daemon that can't start is not tried for ever", flush=True)
    made.run("ip", "link", "set", "eth0", "name", "gone")
    made.expect("start", GENERIC)
    made.stays_off()
    made.run("ip", "link", "set", "gone", "name", "eth0")


def main() -> None:
    """The whole run."""
    assert os.geteuid() == 0, "run it as root"
    (ROOT / "build").mkdir(exist_ok=True)  # the unit has a /tmp of its own
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as directory, machine(Path(directory)) as made:
        trial(made)
    print("unit=: good", flush=True)


if __name__ == "__main__":
    main()
