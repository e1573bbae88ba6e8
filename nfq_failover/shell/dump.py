"""The status as lines of the log, for whoever sends SIGUSR1: what `nfq-failover status` says at this moment."""

from __future__ import annotations

from typing import Final

import structlog

from nfq_failover.core.status import Status

MOST_CONNECTIONS: Final = 15  # so many lines of a kind the log takes at once

log = structlog.get_logger()


def dump(status: Status) -> None:
    """Write it down, with those connections first that are not protected."""
    peer = status.peer
    log.info(
        "status",
        name=status.name,
        role=status.role,
        state=status.state,
        reason=status.reason,
        epoch=status.epoch,
        peer=peer.name,
        peer_heard=not peer.lost,
        connections=len(status.connections),
        protected=status.protected_connections,
    )
    for concern in status.concerns:
        log.info(
            "status: concern",
            weight=concern.weight,
            code=concern.code,
            what=concern.what,
            host=concern.host or status.name,
            for_s=round(concern.for_s, 1),
        )
    for connection in sorted(status.connections, key=lambda each: each.protected)[:MOST_CONNECTIONS]:
        log.info(
            "status: connection",
            client=connection.client,
            server=connection.server,
            protected=connection.protected,
            reason=connection.reason,
            lag_bytes=connection.lag_bytes,
        )
