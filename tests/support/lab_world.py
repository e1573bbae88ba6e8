"""Labs for tests: a fresh name for each, taken down on every exit; and datagrams that tell what still gets through."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, Topology, namespace

PORT = 7000
SERVER = (sys.executable, "-m", "nfq_failover.lab.workloads", "server", "--port", str(PORT))


def fresh_name() -> str:
    """A name that no other test has."""
    return f"t{secrets.token_hex(4)}"


@contextlib.contextmanager
def lab(options: Options | None = None, seed: int | None = None, topology: Topology = TWO_HOSTS) -> Iterator[Lab]:
    """A lab that is up."""
    made = Lab(fresh_name(), topology)
    made.up(options, seed)
    try:
        yield made
    finally:
        with contextlib.suppress(CommandError):
            made.down()


def command(name: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`nfq-failover lab --name NAME WORDS`, to its end."""
    argv = [sys.executable, "-m", "nfq_failover", "lab", "--name", name, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=100, env=env)


def passes(made: Lab, source: str, target: str, port: int = 9999) -> bool:
    """Whether a datagram from node `source` reaches node `target`; both in this process, so nothing is started."""
    with contextlib.ExitStack() as stack:
        receiver, sender = (
            stack.enter_context(udp_socket(made, node, made.topology.address(node), port)) for node in (target, source)
        )
        receiver.settimeout(0.15)
        for _ in range(2):  # the first may be waiting for ARP
            sender.sendto(b"here", (made.topology.address(target), port))
            with contextlib.suppress(TimeoutError):
                receiver.recv(10)
                return True
        return False


def udp_socket(made: Lab, node: str, address: str, port: int) -> socket.socket:
    """A UDP socket of this process that stands inside of the node."""
    with netns.entered(namespace(made.name, node)):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((address, port))
    return opened


def connect(made: Lab, port: int = PORT, timeout_s: float = 10.0) -> socket.socket:
    """A client's connection to the service."""
    with netns.entered(namespace(made.name, made.topology.client)):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    connection.connect((made.topology.service, port))
    return connection


def eventually(condition: Callable[[], bool], deadline_s: float = 10.0, every_s: float = 0.02) -> bool:
    """Whether the condition comes true in time, looked at so often."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(every_s)
    return True


def workload(made: Lab, *words: str) -> subprocess.Popen[str]:
    """A client of lab/workloads on the client, its report (JSON) on standard output."""
    argv = [sys.executable, "-m", "nfq_failover.lab.workloads", "client", *words]
    argv += ["--host", TWO_HOSTS.service, "--port", str(PORT), "--json"]
    started: subprocess.Popen[str] = made.popen("client", argv, stdout=subprocess.PIPE, text=True)
    return started


def declare_whole(lab: Lab) -> None:
    """As an operator says it on the primary: the replica's application is as the server's."""
    node = lab.resolve("primary")
    argv = [sys.executable, "-m", "nfq_failover", "replica-is-whole"]
    done = lab.run(node, [*argv, "--config", str(lab.store.directory / node / "config.toml")])
    assert done.returncode == 0, done.stderr
