"""Parts of the daemon that something else on the host can stop or take away: queues, heartbeats, rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.selfcheck.checks import CHEAP_S


class QueuesOurs:
    """The kernel still gives the packets of the queues to this daemon."""

    name = "queues"
    every_s = CHEAP_S

    def __init__(self, queues: Iterable[PacketQueue]) -> None:
        self._queues = tuple(queues)

    def run(self, now: float) -> list[Concern]:
        """See `Check`."""
        del now
        what = [stolen for queue in self._queues if (stolen := queue.stolen())]
        cure = "end whatever else uses these queues (or set 'queue_in' and 'queue_out'), and restart nfq-failover"
        return [Concern("queue-lost", Weight.UNPROTECTED, "; ".join(what), cure)] if what else []


class Found:
    """What another part of the daemon has found by itself. `find(now)` returns it."""

    every_s = CHEAP_S

    def __init__(self, name: str, find: Callable[[float], Sequence[Concern]]) -> None:
        self.name = name
        self._find = find

    def run(self, now: float) -> Sequence[Concern]:
        """See `Check`."""
        return self._find(now)


class HeartbeatsGo:
    """The heartbeat sender runs. `silent_s()`: for how long it has not."""

    name = "heartbeats"
    every_s = CHEAP_S

    def __init__(self, silent_s: Callable[[], float], interval_ms: int) -> None:
        self._silent_s = silent_s
        self._most_s = max(5 * interval_ms / 1000, 1.0)

    def run(self, now: float) -> list[Concern]:
        """See `Check`."""
        del now
        if self._silent_s() <= self._most_s:
            return []
        what = f"the heartbeat sender has not run for more than {self._most_s:.1f} s: the peer must take us for dead"
        cure = "see what stops the process nfq_failover.shell.peer.heartbeat_sender; restart nfq-failover on this host"
        return [Concern("heartbeats-stopped", Weight.UNPROTECTED, what, cure)]
