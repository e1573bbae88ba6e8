"""What was decided before a pause does not leave after it."""

from __future__ import annotations

from nfq_failover.core.events import Inject, Queue, Verdict
from nfq_failover.shell.packets import netlink as nl
from nfq_failover.shell.packets.outlet import Outlet

MARK, PAUSE_S = 0x10000000, 0.45


class FakeQueue:
    def __init__(self) -> None:
        self.given: list[tuple[int, bool]] = []
        self.sent: list[tuple[int, bool]] = []
        self.room = True

    def verdict(
        self, packet_id: int, accept: bool, packet: bytes | bytearray | None = None, mark: int | None = None
    ) -> None:
        del packet, mark
        self.given.append((packet_id, accept))

    def withdraw(self) -> int:
        count = sum(accept for _, accept in self.given)
        self.given = [(packet_id, False) for packet_id, _ in self.given]
        return count

    def flush(self) -> bool:
        if self.room:
            self.sent += self.given
            self.given = []
        return self.room


class World:
    def __init__(self) -> None:
        self.now = 10.0
        self.queues = {Queue.IN: FakeQueue(), Queue.OUT: FakeQueue()}
        self.injected: list[tuple[bytes, bool]] = []
        self.outlet = Outlet(
            self.queues, lambda packet, inward: self.injected.append((bytes(packet), inward)), MARK, PAUSE_S, self.clock
        )

    def clock(self) -> float:
        return self.now

    def decide(self) -> None:
        """The node has judged two packets, and has built one for either side."""
        self.outlet.decides(self.now)
        self.outlet.verdict(Verdict(Queue.OUT, 1, True))
        self.outlet.verdict(Verdict(Queue.OUT, 2, False))
        self.outlet.verdict(Verdict(Queue.IN, 3, True))


def test_what_is_decided_leaves() -> None:
    world = World()
    world.decide()
    world.now += PAUSE_S - 0.001
    world.outlet.inject(Inject(b"out", False))
    world.outlet.flush()
    assert world.queues[Queue.OUT].sent == [(1, True), (2, False)]
    assert world.queues[Queue.IN].sent == [(3, True)]
    assert world.injected == [(b"out", False)] and world.outlet.late == 0


def test_nothing_leaves_that_was_decided_before_a_pause() -> None:
    world = World()
    world.decide()
    world.now += 1.0
    world.outlet.decides(world.now)  # what is judged after it, in the same turn, goes the same way
    world.outlet.inject(Inject(b"out", False))
    world.outlet.inject(Inject(b"in", True))
    world.outlet.flush()
    assert world.queues[Queue.OUT].sent == [(1, False), (2, False)]
    assert world.queues[Queue.IN].sent == [(3, True)], "what our own TCP gets nobody hears"
    assert world.injected == [(b"in", True)] and world.outlet.late == 2
    world.decide()
    world.outlet.flush()
    assert world.queues[Queue.OUT].sent[2:] == [(1, True), (2, False)]


def test_what_the_kernel_had_no_room_for_is_not_younger_for_that() -> None:
    world = World()
    world.decide()
    world.queues[Queue.OUT].room = False
    world.outlet.flush()
    world.now += 1.0
    world.queues[Queue.OUT].room = True
    world.outlet.flush()
    assert world.queues[Queue.OUT].sent == [(1, False), (2, False)]


def test_a_verdict_is_turned_into_a_refusal() -> None:
    for mark, packet in ((None, None), (MARK, None), (MARK, b"abcde"), (None, b"x")):
        accepted = nl.verdict(7761, 0x01020304, True, mark, packet)
        assert nl.refusal(accepted) == b"".join(nl.verdict(7761, 0x01020304, False, None, None))
    assert nl.refusal(nl.verdict(7761, 5, False, None, None)) is None
