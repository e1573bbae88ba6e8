"""Finds the connections that this host's TCP has from another time, and ends them.

A host that was a backup, or has stepped down, may still have TCP connections that clients know by another's numbers,
or that another host has taken over. They are kept from the clients (`Opening.adopts_unknown` is False), which works
only while the daemon knows which connections are native. So a host that begins to serve looks through what its kernel
has: what nobody knows is poked, answers, and is reset for that. When nothing is left, an unknown connection can only be
a native one that was opened while the daemon was away, and may speak; only then do the rules get their bypass.
"""

from __future__ import annotations

from nfq_failover.constants import ACK
from nfq_failover.core.events import ListFlows
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import FlowKey

EVERY_S = 0.25
POKES = 64
CLEAN = 2  # in a row: a walk through the kernel's table may miss one that moves meanwhile


class StrangerHunt:
    """Runs while this host serves, until unknown connections may be adopted."""

    def __init__(self, out: Outbox, gate: GateTable, backup: BackupSide) -> None:
        self.out = out
        self.gate = gate
        self.backup = backup
        self._next = 0.0
        self._clean = 0
        self._asked = False
        self._high = False

    def on_timer(self, serving: bool, now: float) -> None:
        """Ask for the list, if it is time."""
        if not serving or self.gate.opening.adopts_unknown:
            self._clean, self._asked = 0, False
        elif now >= self._next:
            self._next, self._asked = now + EVERY_S, True
            self.out.effects.append(ListFlows())

    def listed(self, flows: list[FlowKey]) -> bool:
        """The kernel has these at the service's ports (not half-open ones, nor those in TIME_WAIT). True at the end."""
        if not self._asked:
            return False  # it was asked for in another role
        self._asked = False
        gate, backup = self.gate, self.backup
        unknown = [flow for flow in flows if flow not in backup.flows and not gate.knows(flow)]
        gate.opening.note_probed(frozenset(unknown[:POKES]))
        if unknown:
            self._clean = 0
            self._high = not self._high  # one of the two is outside any window, so it is answered
            for client, port, server, server_port in unknown[:POKES]:
                seq = 0x80000000 if self._high else 0
                self.out.inward(build_segment((client, port), (server, server_port), seq, 0, ACK, 0))
            self.out.counters["stranger-poked"] += len(unknown[:POKES])
            return False
        self._clean += 1
        if self._clean < CLEAN:
            return False
        gate.opening.adopt_unknown(True)
        self.out.log("info", "no connection of another time is left on this host")
        return True
