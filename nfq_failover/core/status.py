"""What a node shows of itself, as JSON-ready rows."""

from __future__ import annotations

from ipaddress import ip_address

from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.table import PrimarySide
from nfq_failover.core.pair.link import Link
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.wire.segment import FlowKey


def end_names(flow: FlowKey) -> tuple[str, str]:
    """(client, server) as address:port."""
    client, client_port, server, server_port = flow
    return f"{ip_address(client)}:{client_port}", f"{ip_address(server)}:{server_port}"


def connection_rows(primary: PrimarySide, backup: BackupSide) -> list[dict[str, object]]:
    """One row per connection. `lag_bytes`: taken by this host's TCP (primary) or logged (backup), not yet confirmed."""
    rows: list[dict[str, object]] = []
    for gated in primary.flows.values():
        client, server = end_names(gated.flow)
        protected = gated.state is Gate.PROTECTED
        rows.append(
            {
                "client": client,
                "server": server,
                "protected": protected,
                "reason": gated.reason,
                "logged_bytes": gated.retained.size,
                "confirmed_bytes": gated.confirmed,
                "lag_bytes": max(gated.kernel_ack - gated.confirmed, 0) if protected else 0,
                "differences": primary.digests.differences(gated.conn),
            }
        )
    for flow, handed in primary.handovers.flows.items():
        client, server = end_names(flow)
        row = dict.fromkeys(("logged_bytes", "confirmed_bytes", "lag_bytes", "differences"), 0)
        rows.append({"client": client, "server": server, "protected": False, "reason": handed.reason, **row})
    for shadow in backup.flows.values():
        client, server = end_names(shadow.flow)
        reason = shadow.reason
        if shadow.state is Shadow.ACTIVE:
            how = "handed over by the primary" if shadow.handed else "taken over"
            reason = f"{how}: an open connection survives one failure"
        elif shadow.state is Shadow.OPENING:
            reason = "opening"
        rows.append(
            {
                "client": client,
                "server": server,
                "protected": shadow.state is Shadow.SHADOW,
                "reason": reason,
                "logged_bytes": shadow.journal.size,
                "confirmed_bytes": shadow.cum,
                "lag_bytes": max(shadow.cum - shadow.k_ack, 0),
                "differences": 0 if shadow.compare is None else shadow.compare.differences,
            }
        )
    return rows


def link_row(link: Link, now: float) -> dict[str, object]:
    """The sync channel to one peer."""
    peer, monitor = link.peer, link.view.monitor
    return {
        "name": peer.name,
        "address": f"{peer.address}:{peer.port}",
        "session": link.session.established,
        "lost": monitor.lost(now),
        "heartbeat": monitor.statistics(now),
    }
