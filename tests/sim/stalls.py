"""Clients of a primary that is well come on, whatever becomes of their replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .apps import Client

if TYPE_CHECKING:
    from .world import SimWorld

EVERY_S = 0.05
GRACE_S = 3.0  # repeated segments, a client's pauses, an end that waits for the replica's


class Stalls:
    """Looks at all clients from time to time. `bound_s`: how long one may stand still; None: as long as it likes."""

    def __init__(self, world: SimWorld) -> None:
        self.world = world
        scenario = world.scenario
        patience_s = scenario.limits.replica_patience_ms / 1000
        self.bound_s = patience_s + GRACE_S if scenario.kind == "replica-hangs" else None
        self._seen: dict[Client, tuple[tuple[object, ...], float]] = {}

    def start(self) -> None:
        """Look from now on."""
        if self.bound_s is not None:
            self._look()

    def _look(self) -> None:
        now = self.world.clock.now
        if self.world.healed or self.bound_s is None:
            return
        for client in self.world.clients.values():
            tcp = client.tcp
            state = (tcp.una, tcp.rcv_nxt, len(client.got), client.sent, tcp.state)
            before, since = self._seen.get(client, (state, now))
            self._seen[client] = (state, since if before == state else now)
            stands_s = now - self._seen[client][1]
            assert client.ending or stands_s <= self.bound_s, (
                f"client port {tcp.local[1]} has stood still for {stands_s:.1f} s, though its server is well"
            )
        self.world.clock.after(EVERY_S, self._look)
