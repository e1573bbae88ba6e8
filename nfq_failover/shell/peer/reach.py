"""Whether this host can talk to its peer, watched all the time: the way there, and whether what is sent leaves."""

from __future__ import annotations

import time
from typing import Final

from nfq_failover.config import Config
from nfq_failover.core.concerns import Concern
from nfq_failover.core.events import ReachChecked
from nfq_failover.shell.host.way import Way
from nfq_failover.shell.peer.delivery import Delivery
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess

LOOK_S: Final = 0.05


class ReachWatch:
    """Looks at the way to the peer every `LOOK_S`, and at once when it is asked for."""

    def __init__(self, config: Config, heartbeats: HeartbeatProcess, delivery: Delivery) -> None:
        """Raises OSError."""
        peer, *_ = config.settings.peers

        def failing() -> int:
            return heartbeats.failing((peer.address, peer.port)) or delivery.failing()

        self._way = Way(config.interface, config.listen[0], peer.address, failing)
        self._next = 0.0
        self._heard = False
        self._told: Concern | None = None

    def tick(self, now: float, heard: bool) -> ReachChecked | None:
        """Look, if it is time. `heard`: the peer is heard now. Returns what has changed."""
        self._heard = heard
        if now < self._next:
            return None
        self._next = now + LOOK_S
        found = self._way.look(now, heard)
        if found == self._told:
            return None
        self._told = found
        return ReachChecked(found)

    def trouble(self) -> str:
        """Look now. Returns what is wrong, in words."""
        found = self._way.look(time.monotonic(), self._heard)
        self._next = 0.0  # what it has forgotten by being asked is told at once
        return "" if found is None else found.what

    def close(self) -> None:
        """Look no more."""
        self._way.close()
