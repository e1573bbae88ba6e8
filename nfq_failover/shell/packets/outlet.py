"""Lets out what the node has decided, unless the host was paused in between.

The node sees a pause before it judges the first packet after it (core/node.py). But a daemon may be stopped when the
node has decided, and the verdicts are not sent yet. Meanwhile the peer takes over, and what this host sends when it
wakes would be heard beside it. So the clock is looked at once more just before something is let out; what was decided
too long ago is lost, as on a link.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from nfq_failover.core.events import Inject, Queue, Verdict
from nfq_failover.errors import InternalError

log = structlog.get_logger()


class Verdicts(Protocol):
    """What is wanted of a queue (nfqueue.py)."""

    def verdict(
        self, packet_id: int, accept: bool, packet: bytes | bytearray | None = None, mark: int | None = None
    ) -> None:
        """Decide on a packet; takes effect at the next `flush`."""

    def withdraw(self) -> int:
        """Drop what was accepted since the last `flush`. Returns how many packets that are."""

    def flush(self) -> bool:
        """Send the verdicts given so far. Returns whether the kernel had room for all."""


class Outlet:
    """The queues of a service, and what it injects. `pause_s`: what was decided longer ago is not let out; `mark`: of
    what leaves. `late` counts what was lost in this way."""

    def __init__(
        self,
        queues: Mapping[Queue, Verdicts],
        inject: Callable[[bytes | bytearray, bool], object],
        mark: int,
        pause_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queues = queues
        self._inject = inject
        # What our TCP is told needs no mark, and must not keep one.
        self._marks: dict[Queue, int | None] = {Queue.IN: None, Queue.OUT: mark}
        self._pause_s = pause_s
        self._clock = clock
        self._oldest = math.inf
        self._left = False  # of what was decided, for which the kernel had no room
        self.late = 0

    def decides(self, now: float) -> None:
        """The node is given something, at this time; what it decides is let out until the next `flush`."""
        if now < self._oldest:
            self._oldest = now

    def verdict(self, effect: Verdict) -> None:
        """A packet goes on, or does not."""
        queue = self._queues[effect.queue]
        try:
            queue.verdict(effect.packet_id, effect.accept, effect.packet, self._marks[effect.queue])
        except InternalError:
            queue.verdict(effect.packet_id, False)
            raise

    def inject(self, effect: Inject) -> None:
        """Send a segment, after all that was decided before: an overtaken window or ACK would be taken back."""
        if self._send() or effect.inward:
            self._inject(effect.packet, effect.inward)
        else:
            self.late += 1

    def flush(self) -> None:
        """Let out what was decided."""
        self._send()
        if not self._left:
            self._oldest = math.inf

    def _send(self) -> bool:
        """Send the verdicts, as far as the kernel has room. Returns whether anything may leave."""
        late = self._clock() - self._oldest > self._pause_s
        if late and (lost := self._queues[Queue.OUT].withdraw()):
            self.late += lost
            log.warning("paused between decision and act: what was to leave is dropped", packets=lost)
        rooms = [queue.flush() for queue in self._queues.values()]
        self._left = not all(rooms)
        return not late
