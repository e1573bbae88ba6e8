"""The backup is told of connections that have no replica: at a takeover their clients must hear that they are over.

Each is told when its protection ends, and then in turns, some in each second, with where both ends are by then. What is
lost on the way comes with the next turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.outbox import Outbox
from nfq_failover.wire.records import Served
from nfq_failover.wire.segment import FlowKey
from nfq_failover.wire.tcp_options import SynOptions

TURN_S: Final = 0.25
PER_TURN: Final = 64


class ServedAlone:
    """Tells of the connections in `flows`, the gate's table, that have no replica; `protecting()`: whether there is a
    backup."""

    def __init__(self, out: Outbox, flows: Mapping[FlowKey, GatedConnection], protecting: Callable[[], bool]) -> None:
        self.out = out
        self._flows = flows
        self._protecting = protecting
        self._turn: deque[GatedConnection] = deque()
        self._next = 0.0

    def begins(self, connection: GatedConnection, now: float) -> None:
        """A connection has no replica from now on."""
        if not self._protecting():
            return
        if not connection.told_served:
            connection.note_told_served()
            self._turn.append(connection)
        self._tell(connection)
        self._next = min(self._next, now + TURN_S)

    def start(self, now: float) -> None:
        """A backup is there, and knows nothing."""
        self._turn.clear()
        for connection in self._flows.values():
            if connection.state is Gate.UNPROTECTED:
                connection.note_told_served()
                self._turn.append(connection)
        self._next = now

    def _tell(self, connection: GatedConnection) -> None:
        own, opening = connection.own, connection.open
        offered = SynOptions.parse(opening.syn_options).wscale if opening.wscale is not None else None
        seq, ack = own.snd_nxt_seq, own.client.seq(max(own.rcv_nxt, 0))
        self.out.record(Served(connection.conn, connection.flow, seq, ack, offered or 0))

    def on_timer(self, now: float) -> None:
        """Tell of the next ones."""
        if now < self._next:
            return
        self._next = now + TURN_S
        for _ in range(min(len(self._turn), PER_TURN)):
            connection = self._turn.popleft()
            if self._flows.get(connection.flow) is connection and connection.state is Gate.UNPROTECTED:
                self._turn.append(connection)
                self._tell(connection)
            else:
                connection.note_told_served(False)

    def stop(self) -> None:
        """There is no backup."""
        for connection in self._turn:
            connection.note_told_served(False)
        self._turn.clear()

    def poll_timeout(self) -> float | None:
        """The next deadline."""
        return self._next if self._turn else None
