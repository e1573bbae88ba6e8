"""The daemon has restarted on a host that goes on: how far its record (shadow/checkpoint.py) lets it go on, too."""

from __future__ import annotations

from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.shadow.checkpoint import Recollection, unpack
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.errors import MalformedSegment


def recollect(
    recollection: Recollection,
    members: Membership,
    gate: GateTable,
    backup: BackupSide,
    served: bool,
    now: float,
) -> None:
    """Serve again if the record and the disk agree that we may, with the connections that were taken over; else be
    silent, and keep those connections from their clients. What the record does not vouch for is cut, loudly."""
    out = backup.out
    damage, damaged = recollection.damage, recollection.damaged
    connections: list[BackupConnection] = []
    for slot in recollection.slots:
        try:
            connections.append(unpack(slot, backup.settings, now))
        except MalformedSegment:
            damaged += 1
    if damage or damaged:
        out.log(
            "error",
            "the record of the daemon's earlier life can't be used: the connections that it was for are cut",
            reason=damage or f"{damaged} of its connections are damaged",
        )
    gate.opening.adopt_unknown(recollection.strangers and not damaged)
    if recollection.allows(members.stored_epoch, served):
        members.resume(recollection.epoch)
        gate.explain("the daemon was restarted: no backup yet")
        for connection in connections:
            connection.handed = 0
    else:
        for connection in connections:
            if not connection.handed:  # such a one is ours though we do not serve
                connection.end_with_host()
    if backup.memory is not None:
        backup.memory.begin(connections)
    backup.restore(connections, now)
    if connections:
        going = sum(connection.state is Shadow.ACTIVE for connection in connections)
        level = "warning" if going == len(connections) else "error"
        out.log(level, "connections taken over before the restart", going=going, cut=len(connections) - going)
