"""Power: whether a server is on, and how it goes off, for `lab crash` and for the fence alike.

First its ports at the switch go down: from then on nothing of the server can be heard. Then its processes are killed,
then its namespace goes, with the connections in its kernel. No FIN or RST of a dying process has a wire to leave by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.lab import cables, netns, wires
from nfq_failover.lab.state import Store
from nfq_failover.lab.topology import SWITCH, Node, Topology, namespace, port


@dataclass(frozen=True)
class PowerOff:
    """The moment at which the server fell silent: monotonic and Unix time, taken right after its ports were down."""

    monotonic_s: float
    time_s: float


def is_on(name: str, node: str) -> bool:
    """Whether the node is powered. CommandError if the lab's switch is not there."""
    switch = namespace(name, SWITCH)
    if not netns.exists(switch):
        raise CommandError(f"There is no lab {name!r}. Start it: nfq-failover lab --name {name} up")
    with netns.control_socket(switch) as control:
        return netns.link_is_up(control, port(node))


def power_off(name: str, node: Node) -> PowerOff:
    """Silence the server, then kill all its processes; returns when they are gone. Repeating it is harmless."""
    with netns.control_socket(namespace(name, SWITCH)) as control:
        for cable in node.ports:
            netns.set_link_down(control, cable)
        moment = PowerOff(time.monotonic(), time.time())
    netns.kill_all(namespace(name, node.name))
    return moment


def clear_away(store: Store, node: str, event: str, moment: PowerOff, **fields: Any) -> dict[str, Any] | None:
    """Take down what is left of a server that is off, and note the event; None if it was cleared away before."""
    with store.changing() as state:
        if is_on(store.name, node) or not netns.exists(namespace(store.name, node)):
            return None
        wires.clear_node(store.name, state.topology.node(node))
        if state.tap_loss_at is not None:
            state.lose_tap_at(None)  # with one server there is no tap
            cables.apply(store.name, state)
        return state.note(event, node, monotonic_s=moment.monotonic_s, time_s=moment.time_s, **fields)


def hosts_on(name: str, topology: Topology) -> list[str]:
    """The hosts that are powered."""
    return [host for host in topology.hosts if is_on(name, host)]
