"""One real daemon in a namespace, with a client beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nfq_failover.shell.control import ask
from tests.support.namespaces import SERVICE, Namespace, pair, run

SERVER = "10.77.0.2"
# The daemon as the command line starts it. What a test puts before it makes it fail on purpose.
MAIN = "from nfq_failover.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


class DaemonWorld:
    """A client and a server host with a disk."""

    def __init__(self, client: Namespace, server: Namespace, disk: Path) -> None:
        self.client, self.server, self.disk = client, server, disk
        self.state = disk / "state"
        key = disk / "key"
        key.write_text("0123456789abcdef0123456789abcdef")
        key.chmod(0o600)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[IO[bytes]] = []

    def config(self, **changes: Any) -> Path:
        settings = {
            "name": "a",
            "service": SERVICE,
            "ports": [80],
            "interface": "eth0",
            "listen": SERVER,
            "key_file": str(self.disk / "key"),
            "state_dir": str(self.state),
            "run_dir": str(self.disk / "run"),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in (settings | changes).items()]
        path = self.disk / "config.toml"
        path.write_text("\n".join(lines) + '\n[[peer]]\nname = "b"\naddress = "10.77.0.3"\n')
        return path

    def start(
        self, config: Path, sabotage: str = "", before: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        """The process, and its log, which both streams go to."""
        return self._popen([*before, sys.executable, "-c", sabotage + MAIN, "run", "--config", str(config)])

    def run_program(self, program: str, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A Python program with arguments, and the path of its log."""
        process, log = self._popen([sys.executable, "-c", program, *words])
        return process, Path(str(log.name))

    def _popen(self, argv: list[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        log = open(self.disk / f"log-{len(self.processes)}", "w+b")  # noqa: SIM115  # closed with the world
        self.logs.append(log)
        process = subprocess.Popen(
            self.server.argv(*argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self.processes.append(process)
        return process, log

    def ready(
        self, config: Path, sabotage: str = "", before: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """The same, when it says that it is ready."""
        process, log = self.start(config, sabotage, before)
        path = Path(str(log.name))
        wait_until(lambda: "ready" in path.read_text() or process.poll() is not None)
        assert process.poll() is None, path.read_text()
        return process, path

    def status(self) -> dict[str, Any]:
        return ask(self.state / "control.sock", "status")

    def snapshot(self) -> dict[str, object]:
        """Everything that a daemon touches."""

        def rules(program: str) -> list[str]:
            return [line for line in self.server.run(program).splitlines() if line.startswith(("-A", ":NFQF"))]

        def there(command: str) -> str:
            return self.server.run("sh", "-c", command)

        def queue(line: str) -> str:
            """A queue's number, holder, and settings; not what has passed it, which the daemon's own probes do, too."""
            number, holder, _, mode, size, *_ = line.split()
            return f"{number} {holder} {mode} {size}"

        return {
            "rules": rules("iptables-save"),
            "legacy rules": rules("iptables-legacy-save"),
            "nft": [line for line in there("nft list ruleset").splitlines() if "nfq" in line],
            "tc": there("tc qdisc show dev eth0; tc filter show dev eth0 egress 2>/dev/null || true"),
            "addresses": there("ip -br address"),
            "groups": there("ip maddress show dev eth0"),
            "sysctls": there("grep -H . /proc/sys/net/ipv4/conf/*/arp_*"),
            "queues": [queue(line) for line in there("cat /proc/net/netfilter/nfnetlink_queue").splitlines()],
            "sockets": [line for line in there("cat /proc/net/unix").splitlines() if "nfq-failover" in line],
            "udp": [line.split()[1] for line in there("cat /proc/net/udp").splitlines() if ":1E56" in line],
            "processes": run("ip", "netns", "pids", self.server.name),
        }

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in run("ip", "netns", "pids", self.server.name).split():  # what a killed daemon has left
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for log in self.logs:
            log.close()


@contextmanager
def daemon_world(disk: Path) -> Iterator[DaemonWorld]:
    with pair(server_address=SERVER) as (client, server):
        server.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")  # its addresses come and settle late
        wait_until(lambda: " UP " in server.run("ip", "-br", "link", "show", "dev", "eth0"))
        world = DaemonWorld(client, server, disk)
        try:
            yield world
        finally:
            world.stop()


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.02)


def pings(world: DaemonWorld) -> bool:
    """Whether the service address is heard at the client, which needs no ARP for it."""
    mac = world.server.run("ip", "-br", "link", "show", "dev", "eth0").split()[2]
    world.client.run("ip", "neighbour", "replace", SERVICE, "lladdr", mac, "dev", "eth0")
    argv = world.client.argv("ping", "-c", "1", "-W", "0.3", SERVICE)
    return subprocess.run(argv, capture_output=True, timeout=20).returncode == 0


def refused(world: DaemonWorld, config: Path) -> str:
    process, log = world.start(config)
    code = process.wait(30)
    text = Path(str(log.name)).read_text()
    assert code in (1, 2), text
    assert "Traceback" not in text
    return text
