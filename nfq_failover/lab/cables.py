"""Cut cables and lost segments: one bridge table of nftables in the switch.

The drops are in the switch, so whatever is dropped has been sent: the sender's TCP sees no local error. The rules match
ports by name, so they outlive a port that goes away with its host and comes back. With --loss or --tap-loss the nodes
cut their segments before the wire (wires.py), so each drop is of one frame of at most one MTU.

What each fault covers:
- loss: every frame on the client's link, each direction by itself, ARP included;
- tap loss: what reaches the backup by the tap. Clone: frames for the service address that do not come from the client
  itself (or the router before it), on each server's port, so the rule needs no change with the roles. Multicast: the
  client's frames for the service address, on the port of the backup of the moment (`LabState.tap_loss_at`);
- cut: everything; `sync`: UDP with the sync port as source or destination, and nothing else; `witness`: the same with
  the witness's port (what the switch itself sends is cut where it leaves the switch, too); `client`: everything
  between the node and the client, ARP included, and the copies of the client's packets that a tap brings.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfq_failover.constants import DEFAULT_SYNC_PORT, DEFAULT_WITNESS_PORT
from nfq_failover.lab import netns
from nfq_failover.lab.state import Cut, LabState
from nfq_failover.lab.topology import SWITCH, Topology, namespace, port

_TABLE = "bridge lab"
_CHAINS = {"arriving": "prerouting", "passing": "forward", "leaving": "postrouting"}
COUNTERS = ("from_client", "from_client_lost", "to_client", "to_client_lost", "tap", "tap_lost")


def ruleset(state: LabState) -> str:
    """The nft script that brings the table to `state`, whatever it was before; counters go on counting."""
    rules = [*_cut_rules(state.topology, state.cuts), *_loss_rules(state)]
    if not rules and not state.options.loss and not state.options.tap_loss:
        return f"add table {_TABLE}\ndelete table {_TABLE}\n"
    lines = [f"add table {_TABLE}"]
    lines += [f"add counter {_TABLE} {counter}" for counter in COUNTERS]
    for chain, hook in _CHAINS.items():
        lines.append(f"add chain {_TABLE} {chain} {{ type filter hook {hook} priority 0; policy accept; }}")
        lines.append(f"flush chain {_TABLE} {chain}")
    lines += [f"add rule {_TABLE} {rule}" for rule in rules]
    return "".join(f"{line}\n" for line in lines)


def apply(name: str, state: LabState) -> None:
    """Put the rules of `state` in force, atomically."""
    netns.tool(["nft", "-f", "-"], ruleset(state), namespace(name, SWITCH))


def counters(name: str) -> dict[str, int]:
    """Frames seen and lost since `up`, for each place of loss; zeros if nothing is being lost."""
    listing = netns.tool(
        ["nft", "list", "counters", "table", *_TABLE.split()], None, namespace(name, SWITCH), check=False
    )
    found = dict.fromkeys(COUNTERS, 0)
    words = listing.split()
    for at, word in enumerate(words):
        if word == "counter" and words[at + 1] in found:
            found[words[at + 1]] = int(words[at + 4])  # counter NAME { packets N bytes N }
    return found


def _cut_rules(topology: Topology, cuts: list[Cut]) -> Iterator[str]:
    entrance, _ = topology.entrance
    for cut in cuts:
        inward, outward = cut.direction in (None, "in"), cut.direction in (None, "out")
        for cable in topology.node(cut.node).ports:
            if cut.only is None:
                if outward:
                    yield f"arriving iifname {cable} drop"
                if inward:
                    yield f"leaving oifname {cable} drop"
            elif cut.only in ("sync", "witness"):
                number = DEFAULT_SYNC_PORT if cut.only == "sync" else DEFAULT_WITNESS_PORT
                for end in ("sport", "dport"):
                    if outward:
                        yield f"arriving iifname {cable} udp {end} {number} drop"
                    if inward:
                        yield f"leaving oifname {cable} udp {end} {number} drop"
            else:
                if outward:
                    yield f"passing iifname {cable} oifname {entrance} drop"
                if inward:
                    yield f"passing iifname {entrance} oifname {cable} drop"
                    yield f"leaving oifname {cable} ip saddr {topology.address(topology.client)} drop"


def _loss_rules(state: LabState) -> Iterator[str]:
    options, topology = state.options, state.topology
    if options.loss:
        cable = port(topology.client)
        yield f"arriving iifname {cable} counter name from_client"
        yield f"arriving iifname {cable} {_one_in(options.loss)} counter name from_client_lost drop"
        yield f"leaving oifname {cable} counter name to_client"
        yield f"leaving oifname {cable} {_one_in(options.loss)} counter name to_client_lost drop"
    if options.tap_loss and not options.plain:
        _, clients = topology.entrance
        if options.tap == "clone":
            copies = [f"oifname {port(host)} ether saddr != {clients.hardware}" for host in topology.hosts]
        else:
            at = [host for host in topology.hosts if host == state.tap_loss_at]
            copies = [f"oifname {port(host)} ether saddr {clients.hardware}" for host in at]
        for match in copies:
            matched = f"leaving {match} ip daddr {topology.service}"
            yield f"{matched} counter name tap"
            yield f"{matched} {_one_in(options.tap_loss)} counter name tap_lost drop"


def _one_in(percent: float) -> str:
    return f"numgen random mod 1000000 < {round(percent * 10_000)}"
