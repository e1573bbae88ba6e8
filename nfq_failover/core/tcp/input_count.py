"""How much clients have sent on connections that somebody else sees nothing of."""

from __future__ import annotations

from nfq_failover.wire.segment import FlowKey

_FIN = 1  # takes a number of the stream, and brings nothing


class InputCount:
    """Counts connections with their bytes, `size`, each from where it was. A single byte is taken for a FIN."""

    def __init__(self) -> None:
        self.connections = 0
        self.size = 0
        self._from: dict[FlowKey, int] = {}

    def begin(self, flow: FlowKey, at: int) -> None:
        """What a connection brings from this offset on counts; without this, all of it."""
        self._from[flow] = max(at, 0)

    def follows(self, flow: FlowKey) -> bool:
        """Whether a connection has been begun."""
        return flow in self._from

    def end(self, flow: FlowKey, at: int) -> None:
        """It has come so far, and what it brings from now on does not count."""
        size = max(at, 0) - self._from.pop(flow, 0)
        if size > _FIN:
            self.connections += 1
            self.size += size

    def clear(self) -> None:
        """Begin with nothing."""
        self.connections = self.size = 0
        self._from.clear()
