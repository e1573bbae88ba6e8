"""Slows the clients of replicas that are late: what the server sends waits (held_data.py), for as long as that lasts.

A connection is slowed when its replica is `replica_slow_ms` late, and no more when it is only half as late.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.wire.segment import Segment

MAX_HELD_TOTAL: Final = 64 << 20  # of all connections
CALM_S: Final = 5.0  # after the last slowed connection it is told that this is over
LASTING_S: Final = 10.0  # what is shorter is shown, but the pair is as good as before: see docs/operate/failures.md
SOURCE: Final = "slowing"
CODE: Final = "backup-slow"
_CURE: Final = (
    "give the backup as much processor, disk and network as the primary has; 'status --json' has its queues under "
    "shell.queues, and for a link that is too slow it says tap-lossy"
)


class Slowing:
    """`count`: how many connections are slowed; `held_total`: how many bytes wait. Both are of the last look; what has
    come to wait since is in the total."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.out = out
        self.count = self.held_total = 0
        self._settings = settings
        self._first: float | None = None  # since when connections are slowed, with less than `CALM_S` between them
        self._last: float | None = None  # when a connection was last found slowed

    def holds(self, connection: GatedConnection, event: PacketQueued, seg: Segment, now: float) -> bool:
        """Whether a segment of a slowed connection has to wait. It is dropped then, and its data sent later."""
        held, own = connection.held_data, connection.own
        ack = own.client.offset(seg.ack)
        if not seg.payload_len or not held.must_wait(seg, ack, connection.distance.sent_seq):
            return False
        before = held.size
        if not held.keep(seg, ack, MAX_HELD_TOTAL - self.held_total):
            self.out.counters["held-data-full"] += 1  # our TCP sends it again
        self.held_total += held.size - before
        connection.note_ack(seg, now)
        self.out.drop(event.queue, event.packet_id, "data-held")
        return True

    # ------------------------------------------------------------------------------------ at each look

    def begin(self) -> None:
        """All connections that wait for something are judged, one after the other."""
        self.count = self.held_total = 0

    def judge(self, connection: GatedConnection, lag_s: float, clock: float) -> None:
        """The replica of a connection is late by so much."""
        distance, slow_s = connection.distance, self._settings.replica_slow_ms / 1000
        if not distance.slow and lag_s >= slow_s:
            distance.slow_down(clock)
            self.out.counters["pace-slowed"] += 1
        elif distance.slow and 2 * lag_s < slow_s and not connection.held_data:
            distance.speed_up()
        self.count += distance.slow
        self.held_total += connection.held_data.size

    def end(self, worst_s: float, now: float) -> None:
        """All have been judged; the latest is late by `worst_s`."""
        if self.count:
            self._last = now
            if self._first is None:
                self._first = now
            of = "one connection is" if self.count == 1 else f"{self.count} connections are"
            what = f"the backup is {worst_s * 1000:.0f} ms behind: {of} slowed to its pace"
            serious = now - self._first >= LASTING_S or 2000 * worst_s >= self._settings.replica_patience_ms > 0
            weight = Weight.DEGRADED if serious else Weight.WARNING
            self.out.concerns.raised(SOURCE, Concern(CODE, weight, what, _CURE), now)
        elif self._last is not None and now - self._last >= CALM_S:
            self.clear(now)

    @property
    def calming(self) -> bool:
        """Whether it is still to be told that it is over."""
        return self._last is not None

    def clear(self, now: float) -> None:
        """Nobody is slowed."""
        self.count = self.held_total = 0
        self._first = self._last = None
        self.out.concerns.over(SOURCE, CODE, now)
