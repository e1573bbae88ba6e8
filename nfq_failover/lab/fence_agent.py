"""The lab's power switch (at 10.77.0.254, in the switch): it turns a server off for its peer, over the network.

One request per connection, one line: `SECRET NODE off`. The answer is one line: `off` once the port of NODE is down and
all its processes are gone, or `error: REASON`. A server that is cut from the switch can't reach it, so it can't fence.

    python -m nfq_failover.lab.fence_agent NAME      started by `lab up`, inside `Topology.fence_agent`
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import sys
import threading

from nfq_failover.errors import NfqFailoverError
from nfq_failover.lab import netns, power
from nfq_failover.lab.state import Store, write_private
from nfq_failover.lab.topology import Node, Topology, namespace

PORT = 7767
_REQUEST_DEADLINE_S = 2.0
_LONGEST_REQUEST = 200

# What a daemon runs as its fence. Plain bash: a Python interpreter would take longer to start than the fence takes.
_SCRIPT = """#!/bin/bash
# Turns the host $1 off at the lab's power switch. Exit code 0 only if it is known to be off.
read -r secret <"$(dirname "$0")/../secret" || exit 1
exec 3<>/dev/tcp/AGENT || exit 1
printf '%s %s off\\n' "$secret" "$1" >&3 || exit 1
IFS= read -r answer <&3 || exit 1
[ "$answer" = off ] && exit 0
printf '%s\\n' "$answer" >&2
exit 1
"""


def write_script(store: Store, topology: Topology, host: str) -> str:
    """Put the fence command on the host's disk; returns its path. Its argument is the host to turn off."""
    path = store.directory / host / "fence"
    agent = f"{topology.address(topology.fence_agent)}/{PORT}"
    write_private(path, _SCRIPT.replace("AGENT", agent), mode=0o700)
    return str(path)


def main() -> None:
    """Serve until killed."""
    store = Store(sys.argv[1])
    topology = store.read().topology
    secret = (store.directory / "secret").read_text().strip()
    with socket.create_server((topology.address(topology.fence_agent), PORT), backlog=16) as listener:
        while True:
            connection, (address, _port) = listener.accept()
            threading.Thread(target=_serve, args=(store, topology, secret, connection, address), daemon=True).start()


def _serve(store: Store, topology: Topology, secret: str, connection: socket.socket, address: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_REQUEST_DEADLINE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asker = next((host for host in topology.hosts if topology.address(host) == address), None)
        request = _read_line(connection).split()
        if asker is None or len(request) != 3 or not hmac.compare_digest(request[0], secret):
            _answer(connection, "error: refused")
            return
        host, action = request[1:]
        others = topology.others(asker)
        if host not in others or action != "off":
            what = "the other server" if len(others) == 1 else "another server"
            _answer(connection, f"error: {asker} may turn off {what}, and nothing else")
            return
        _turn_off(store, topology.node(host), asker, connection)


def _turn_off(store: Store, host: Node, asker: str, connection: socket.socket) -> None:
    node = host.name
    try:
        moment = power.power_off(store.name, host)
    except (NfqFailoverError, OSError) as error:
        print(f"{asker} asked to turn {node} off: {error}", flush=True)
        _answer(connection, f"error: {error}")
        return
    if power.is_on(store.name, node) or netns.pids(namespace(store.name, node)):
        _answer(connection, f"error: {node} is on again")
        return
    _answer(connection, "off")
    print(f"{asker} had {node} turned off", flush=True)
    power.clear_away(store, node, "fenced", moment, by=asker)


def _read_line(connection: socket.socket) -> str:
    data = b""
    while b"\n" not in data and len(data) < _LONGEST_REQUEST:
        chunk = connection.recv(_LONGEST_REQUEST)
        if not chunk:
            break
        data += chunk
    return data.decode("ascii", "replace")


def _answer(connection: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # the asker has given up; the server is off all the same
        connection.sendall(f"{text}\n".encode())


def is_listening(name: str, topology: Topology) -> bool:
    """Whether the agent of lab `name` can be asked."""
    return bool(netns.listeners(namespace(name, topology.fence_agent), lambda port: port == PORT))


if __name__ == "__main__":
    main()
