"""Packet queues that overrun: a concern for as long as that lasts, and not only a line in the log."""

from __future__ import annotations

from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import Queue, QueueOverrun
from nfq_failover.core.outbox import Outbox

LASTS_S: Final = 10.0  # after the last packet that was lost
SOURCE: Final = "queues"
_CURE: Final = (
    "give the daemon more processor time, or raise queue_max_packets and queue_buffer_bytes; what is lost is repeated "
    "by the two TCPs, or fetched from the primary, which makes this host later still"
)


class Overruns:
    """The losses of both queues, and since when there have been any."""

    def __init__(self, out: Outbox) -> None:
        self.out = out
        self._lost: dict[Queue, tuple[int, float, float]] = {}  # how many, since when, the last ones when

    def found(self, event: QueueOverrun, now: float) -> None:
        """Packets were lost since the last report."""
        name = event.queue.name.lower()
        self.out.counters[f"queue-overrun-{name}"] += event.count
        self.out.log("error", "packet queue overrun", queue=event.queue.name, count=event.count)
        count, since, _ = self._lost.get(event.queue, (0, now, now))
        self._lost[event.queue] = count + event.count, since, now
        which = "packets to clients" if event.queue is Queue.OUT else "packets from clients"
        what = f"the queue of {which} was full: {count + event.count} were lost within {now - since + 1:.0f} s"
        self.out.concerns.raised(SOURCE, Concern(_code(event.queue), Weight.DEGRADED, what, _CURE), now)

    def on_timer(self, now: float) -> None:
        """Nothing was lost for some time."""
        for queue, (_, _, last) in list(self._lost.items()):
            if now - last >= LASTS_S:
                del self._lost[queue]
                self.out.concerns.over(SOURCE, _code(queue), now)


def _code(queue: Queue) -> str:
    return f"queue-overrun-{queue.name.lower()}"
