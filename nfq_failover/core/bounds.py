"""Every store of the core that a peer, a client or a busy host could fill: its limit, and how full it is.

docs/operate/limits.md says what happens when one is full; a test compares its defaults with `LIMITS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nfq_failover.core.gate.ack_gate import MAX_HELD
from nfq_failover.core.gate.copies import MAX_LATE_BYTES
from nfq_failover.core.gate.news import MAX_TELLING
from nfq_failover.core.gate.opening import MAX_DIALLED, MAX_SYNS
from nfq_failover.core.gate.retained import MAX_RETAINED
from nfq_failover.core.gate.slowing import MAX_HELD_TOTAL
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.injected import MAX_INJECTED
from nfq_failover.core.pair.session import MAX_OUTGOING, MAX_RETIRED, WINDOW, Session
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.handover import MAX_OVER
from nfq_failover.core.shadow.opening import MAX_FORGOTTEN
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.tcp.heard import MAX_MARKS
from nfq_failover.core.tcp.journal import BYTES_PER_PIECE, MAX_ISLANDS, MIN_PIECES

Row = dict[str, int]


def limits(settings: Settings) -> dict[str, int]:
    """Name of the store -> its limit. Those "per connection" and per session are of the fullest one."""
    return {
        "connections": settings.max_connections,
        "shadow_connections": settings.max_connections,
        "log_bytes": settings.max_log_bytes,
        "log_pieces": max(settings.max_log_bytes // BYTES_PER_PIECE, MIN_PIECES),
        "log_islands": MAX_ISLANDS,
        "unacked_bytes": settings.max_unacked_bytes,
        "retained_bytes": MAX_RETAINED,
        "turns": MAX_MARKS,
        "held_acks": MAX_HELD,
        "syns": MAX_SYNS,
        "dialled": MAX_DIALLED,
        "telling": MAX_TELLING,
        "late_bytes": MAX_LATE_BYTES,
        "held_data": MAX_HELD_TOTAL,
        "handed_over": settings.max_connections,
        "handed_over_ended": MAX_OVER,
        "forgotten": MAX_FORGOTTEN,
        "injected": MAX_INJECTED,
        "served_alone": settings.max_connections,
        "session_window": WINDOW,
        "session_retired": MAX_RETIRED,
        "session_outgoing": MAX_OUTGOING,
    }


COUNTERS: Final = {
    "connections": "connection-not-tracked",
    "shadow_connections": "connection-refused",
    "log_bytes": "log-full",
    "log_pieces": "log-full",
    "log_islands": "log-full",
    "unacked_bytes": "output-full",
    "retained_bytes": "retained-full",
    "held_acks": "held-replaced",
    "syns": "syn-forgotten",
    "dialled": "dialled-forgotten",
    "telling": "tell-dropped",
    "late_bytes": "late-full",
    "held_data": "held-data-full",
    "handed_over": "hand-over-full",
    "served_alone": "stray-not-kept",
    "session_window": "datagram-too-old",
}
"""The counter that grows when the store is full. Those without one forget their oldest entry, which costs nothing."""


def gauges(
    gate: GateTable, shadow: ShadowTable, sessions: Iterable[Session], counters: Mapping[str, int]
) -> dict[str, Row]:
    """Name of the store -> `now`, `limit`, and `full`: how often there was no room."""
    shadows, gated = shadow.flows.values(), gate.flows.values()
    fullest = [session.tables() for session in sessions]
    now = {
        "connections": len(gate.flows),
        "shadow_connections": len(shadow.flows),
        "log_bytes": max((c.inward.inbound.size for c in shadows), default=0),
        "log_pieces": max((c.inward.inbound.piece_count for c in shadows), default=0),
        "log_islands": max((c.inward.inbound.islands for c in shadows), default=0),
        "unacked_bytes": max((c.output.outbound.size for c in shadows), default=0),
        "retained_bytes": max((c.retained.inbound.size for c in gated), default=0),
        "turns": max(
            max((len(c.inward.order.turns) for c in shadows), default=0),
            max((len(c.retained.heard) for c in gated), default=0),
        ),
        "held_acks": max((len(c.acks.held_acks) for c in gated), default=0),
        **gate.tables(),
        "handed_over": len(gate.handovers.flows),
        "handed_over_ended": len(shadow.handovers.over),
        "forgotten": len(shadow.openings.forgotten),
        "injected": len(gate.out.injected),
        "served_alone": len(shadow.strays.flows),
        **{name: max(tables[name] for tables in fullest) for name in fullest[0]},
    }
    return {
        name: {"now": now[name], "limit": limit, "full": counters.get(COUNTERS.get(name, ""), 0)}
        for name, limit in limits(gate.settings).items()
    }
