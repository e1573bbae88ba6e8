"""Network namespaces for kernel tests: unique names, and nothing left behind."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nfq_failover.lab import netns

CLIENT = "10.77.0.1"
SERVICE = "10.77.0.100"


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command to its end and give its output; raises CalledProcessError with the error output in it."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A namespace made by `ip netns add`."""

    name: str

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.name, *command)

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` inside; one process, `ip` execs it."""
        return ["ip", "netns", "exec", self.name, *command]

    def entered(self) -> AbstractContextManager[None]:
        """While inside of this context, the calling thread is in the namespace; sockets made there stay there."""
        return netns.entered(self.name)


@contextlib.contextmanager
def pair(
    client_address: str = "10.77.0.1", server_address: str = "10.77.0.100"
) -> Iterator[tuple[Namespace, Namespace]]:
    """A client and a server namespace, joined by a veth pair (`eth0` in each), addresses of one /24."""
    token = secrets.token_hex(3)
    client, server = Namespace(f"t{token}c"), Namespace(f"t{token}s")
    try:
        for namespace in (client, server):
            run("ip", "netns", "add", namespace.name)
        run(
            *("ip", "link", "add", "eth0", "netns", client.name, "type", "veth"),
            *("peer", "name", "eth0", "netns", server.name),
        )
        for namespace, address in ((client, client_address), (server, server_address)):
            run("ip", "-n", namespace.name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", namespace.name, "link", "set", "lo", "up")
            run("ip", "-n", namespace.name, "link", "set", "eth0", "up")
        # Known neighbours: while an address is being resolved only a few packets wait for it, the others are lost.
        for namespace, other, address in ((client, server, server_address), (server, client, client_address)):
            mac = other.run("cat", "/sys/class/net/eth0/address").strip()
            run(*("ip", "-n", namespace.name, "neigh", "replace", address, "lladdr", mac, "dev", "eth0"))
        yield client, server
    finally:
        for namespace in (client, server):
            if Path(f"/run/netns/{namespace.name}").exists():
                run("ip", "netns", "delete", namespace.name)
