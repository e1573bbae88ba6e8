"""What waits in this host's packet queues, and since when: what has not come may merely not have been read yet.

A host that has more packets than time is behind with its own queues, and with nothing else. Whoever judges by time that
something is lost, or was not answered, must then judge by the time up to which the queue has been read. Else it asks
for what it has, which takes the time that it lacks.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.core.events import PacketsWait, Queue

LOOK_AGAIN_S: Final = 0.02  # whoever waits for a queue to be read looks again so soon


class Backlog:
    """Up to when the queues have been read. Times in seconds of our monotonic clock."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[Queue, float] = {}

    def found(self, event: PacketsWait) -> None:
        """The shell has looked at a queue."""
        if event.since is None:
            self._since.pop(event.queue, None)
        else:
            self._since[event.queue] = event.since

    def read_until(self, queue: Queue, now: float) -> float:
        """Everything that had come to the queue by then has been given to us: `now`, if nothing waits."""
        return min(self._since.get(queue, now), now)
