"""What a host has served before a backup joined: the replica's application may lack it. Another one than the last
backup's may lack all that clients have ever brought.

Whether it has it all the same nobody can see: it may have loaded it when it started, or share it with ours. So this is
a warning, until somebody says that it is whole (core/gate/missed.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.input_count import InputCount
from nfq_failover.wire.segment import FlowKey

CODE = "joined-later"
SOURCE = "joined"
CURE = (
    "see that the replica's application has this host's state, or that both share it; then: nfq-failover "
    'replica-is-whole. If clients change nothing that others see: state = "none"'
)


class JoinedLater:
    """Counts what clients send while there is no backup. `flows` is the gate's table."""

    def __init__(self, out: Outbox, flows: Mapping[FlowKey, GatedConnection], shared: bool) -> None:
        """`shared`: the application's connections have state in common."""
        self.out = out
        self._flows = flows
        self._shared = shared
        self._alone = True
        self._count = InputCount()
        self._inherited = self._forgiven = 0, 0
        self._instance: int | None = None  # of the backup's application, since it has joined
        self._same = False
        self._brought = False  # a client that is gone has brought something, whether a backup was there or not
        self._another = False

    @property
    def served(self) -> tuple[int, int]:
        """How many connections have brought something, and how many bytes."""
        (connections, size), (before, size_before) = self._inherited, self._forgiven
        return self._count.connections + connections - before, self._count.size + size - size_before

    def inherited(self, connections: int, size: int) -> None:
        """How many of those that this host had taken over have brought something since, and how many bytes."""
        self._inherited = connections, size

    def closed(self, connection: GatedConnection) -> None:
        """A connection is over, or not ours any more."""
        self._brought = self._brought or _brings(connection)
        if self._alone:
            self._count.end(connection.flow, connection.own.rcv_nxt)

    def stop(self, now: float) -> None:
        """There is no backup any more."""
        self.out.concerns.over(SOURCE, CODE, now)
        if not self._alone:
            self._alone = True
            for connection in self._flows.values():
                self._count.begin(connection.flow, connection.own.rcv_nxt)

    def start(self, now: float) -> None:
        """A backup is there."""
        if self._alone:
            self._alone = False
            for connection in self._flows.values():
                self._count.end(connection.flow, connection.own.rcv_nxt)
        self._instance = None
        self._same = False
        self._say(now)

    def meets(self, life: int, left: int | None, now: float) -> None:
        """The backup that has joined tells of its application. `life`: which one it is, 0: none; `left`: which one the
        last backup had, None: that is not known."""
        self._same = life == left != 0
        brought = self._brought or any(self._inherited) or any(map(_brings, self._flows.values()))
        self._another = self._another or (brought and bool(left) and life != left)
        self._say(now)

    def _say(self, now: float) -> None:
        connections, size = self.served
        if self._alone or not (connections or self._another) or not self._shared:
            self.out.concerns.over(SOURCE, CODE, now)
            return
        if not connections:
            what = "the replica's application is another one than the last backup had: it lacks what clients have "
            what += "brought before it was started, unless it has loaded that"
            self.out.concerns.raised(SOURCE, Concern(CODE, Weight.WARNING, what, CURE), now)
            return
        what = f"this host has served {connections} connections that brought {size} bytes while no backup was there: "
        what += "the replica's application was running, and lacks them" if self._same else ""
        what += "" if self._same else "the replica's application lacks them, unless it has loaded them since"
        self.out.concerns.raised(SOURCE, Concern(CODE, Weight.WARNING, what, CURE), now)

    def lives(self, instance: int, now: float) -> None:
        """The backup tells which life of its application this is: another one than before is whole, or judged by what
        has happened since it joined."""
        before, self._instance = self._instance, instance
        if before is not None and before != instance:
            self._begin_again(now)

    def _begin_again(self, now: float) -> None:
        self._count.clear()
        self._forgiven = self._inherited
        self._another = False
        self._say(now)

    def forget(self, now: float) -> None:
        """This host serves no more: it is the other one that knows."""
        self._alone = True
        self._brought = False
        self._inherited = 0, 0
        self._begin_again(now)


def _brings(connection: GatedConnection) -> bool:
    """Whether its client has sent more than its end."""
    return connection.own.rcv_nxt > 1
