"""After a restart of the daemon on a host that went on: how far its checkpoint (shadow/checkpoint.py) lets it go on."""

from __future__ import annotations

from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.shadow.checkpoint import Checkpoint, unpack
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.errors import MalformedSegment


def restore(
    checkpoint: Checkpoint,
    members: Membership,
    gate: GateTable,
    shadow: ShadowTable,
    served: bool,
    now: float,
) -> None:
    """Serve again if the checkpoint and the disk agree that we may, with the connections that were taken over; else be
    silent, and keep those connections from their clients. What the checkpoint does not vouch for is cut, loudly."""
    out = shadow.out
    damage, damaged = checkpoint.damage, checkpoint.damaged
    connections: list[ShadowConnection] = []
    for slot in checkpoint.slots:
        try:
            connections.append(unpack(slot, shadow.settings, now))
        except MalformedSegment:
            damaged += 1
    if damage or damaged:
        out.log(
            "error",
            "the record of the daemon's earlier life can't be used: the connections that it was for are cut",
            reason=damage or f"{damaged} of its connections are damaged",
        )
    gate.opening.adopt_unknown(checkpoint.adopts_unknown and not damaged)
    if checkpoint.allows(members.stored_epoch, served):
        members.resume(checkpoint.epoch)
        gate.explain("the daemon was restarted: no backup yet")
        for connection in connections:
            connection.adopt()
    else:
        for connection in connections:
            if not connection.handed:  # such a one is ours though we do not serve
                connection.end_with_host()
    if shadow.checkpoint is not None:
        shadow.checkpoint.begin(connections)
    shadow.restore(connections, now)
    if connections:
        going = sum(connection.state is Shadow.ACTIVE for connection in connections)
        level = "warning" if going == len(connections) else "error"
        fields: dict[str, object] = {"going": going, "cut": len(connections) - going}
        if reasons := sorted({connection.reason for connection in connections if connection.state is Shadow.DEAD}):
            fields["why"] = "; ".join(reasons)
        out.log(level, "connections taken over before the restart", **fields)
