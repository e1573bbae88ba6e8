"""Ends the connections that this host's TCP has left over from an earlier role.

A host that was a backup, or that has stepped down, may still have TCP connections that clients know by another host's
sequence numbers, or that another host has taken over. They are kept from the clients, which works only while the daemon
knows which connections are this host's own. So a host that begins to serve looks through the connections of its kernel:
one that nobody here knows gets a segment, answers it, and is reset for that. When none is left, an unknown connection
can only be one of our own that was opened while the daemon was away. From then on it may speak, and only then do the
firewall rules get their bypass.

Connections in TIME-WAIT are not looked for: they say nothing by themselves, and may be this host's own. One of them
speaks when a client's segment of another connection from the same port meets it, also of one that another host had.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.core.events import ListFlows, PacketQueued
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.ports import has
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import FlowKey, Segment

EVERY_S = 0.25
PROBES = 64  # of one list
CLEAN = 2  # lists in a row without an unknown connection: a walk through the kernel's table may miss one that moves


class LeftoverSweep:
    """The search for leftover connections. It runs while this host serves, until unknown ones may be adopted."""

    def __init__(self, out: Outbox, gate: GateTable, shadow: ShadowTable, sharing: Sharing) -> None:
        self.out = out
        self.gate = gate
        self.shadow = shadow
        self._sharing = sharing
        self._next = 0.0
        self._clean = 0
        self._asked = False
        self._high = False

    def on_timer(self, serving: bool, now: float) -> None:
        """Ask for the kernel's list, if it is time."""
        if not serving or self.gate.opening.adopts_unknown:
            self._clean, self._asked = 0, False
        elif now >= self._next:
            self._next, self._asked = now + EVERY_S, True
            self.out.effects.append(ListFlows())

    def listed(self, flows: list[FlowKey], queued: int | None = None) -> bool:
        """Take the list of the connections at the service's ports. Returns whether the sweep has come to its end.

        The list has neither half-open connections nor those in TIME-WAIT. `queued`: see `FlowsListed`.
        """
        if not self._asked:
            return False  # it was asked for in another role
        self._asked = False
        gate, shadow, diverted = self.gate, self.shadow, self._sharing.served
        unknown = [
            flow for flow in flows if flow not in shadow.flows and not gate.knows(flow) and has(diverted, flow[3])
        ]
        gate.opening.note_probed(frozenset(unknown[:PROBES]))
        if unknown:
            self._clean = 0
            self._high = not self._high  # one of the two numbers is outside any window, so it is answered
            for client, port, server, server_port in unknown[:PROBES]:
                seq = 0x80000000 if self._high else 0
                self.out.inward(build_segment((client, port), (server, server_port), seq, 0, ACK, 0))
            self.out.counters["stranger-poked"] += len(unknown[:PROBES])
            return False
        self._clean += 1
        if self._clean < CLEAN:
            return False
        gate.opening.adopt_unknown(True, queued)
        self.out.log("info", "no connection of an earlier role is left on this host")
        return True

    def speaks(self, event: PacketQueued, seg: Segment) -> bool:
        """Judge a segment that our TCP sends while clients are told that their connections are over. True: it is of an
        earlier connection from the port of one of them, which the client's answer to a reset has met. It is dropped,
        and its connection reset; what the client answers next is answered by a reset of our TCP."""
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        if seg.flags & (SYN | RST) or not self.shadow.resets.tells(flow) or self.gate.knows(flow):
            return False
        self.out.drop(event.queue, event.packet_id, "stranger")
        self.out.reset_unknown(seg)
        return True
