"""A backup whose kernel drops the SYNs of what it is given, while its application listens: both hosts say so."""

from __future__ import annotations

from typing import Any

import pytest

from nfq_failover.constants import ACK, SYN
from nfq_failover.core.concerns import Weight
from nfq_failover.core.shadow.missing import CODE, ENOUGH, MissingReplicas
from nfq_failover.wire.segment import Segment

from .checks import Checks
from .kernel import Kernel
from .scenario import PUSH, Connection, HostPlan, Scenario
from .world import SimWorld


class Full:
    """A pair that is well, but for the backup's queue of connections, which may be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        monkeypatch.setattr(Checks, "logged", lambda *_: None)  # no run has such a concern, but for these
        self.world = SimWorld(Scenario(seed=1, kind="none", hosts={"a": HostPlan(), "b": HostPlan(boot=0.1)}))
        for host in self.world.hosts:
            host.boot(0.0)
        self.world.clock.run(self.world.clock.now + 3.0)
        assert self.world.owner is self.world.host("a")
        take = Kernel.input

        def takes(kernel: Kernel, packet: bytes | bytearray) -> None:
            seg = Segment(bytearray(packet))
            opens = seg.flags & (SYN | ACK) == SYN and seg.dport == PUSH
            if not (self.full and opens and kernel is self.world.host("b").kernel):
                take(kernel, packet)

        monkeypatch.setattr(Kernel, "input", takes)
        self._opened = 0

    def open(self, wait_s: float = 2.0) -> None:
        """A client comes, is served, and is gone."""
        self._opened += 1
        self.world.open_client(Connection(0.0, 40_000 + self._opened, PUSH, salt=self._opened))
        self.world.clock.run(self.world.clock.now + wait_s)

    def weights(self) -> list[Weight | None]:
        """What each host knows."""
        found: list[Weight | None] = []
        for host in self.world.hosts:
            standing: list[Any] = [each.concern for each in host.node.out.concerns.standing()]
            found.append(next((each.weight for each in standing if each.code == CODE), None))
        return found


def test_both_hosts_say_so_until_one_gets_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Full(monkeypatch)
    for _ in range(ENOUGH):
        assert pair.weights() == [None, None]
        pair.open()
    assert pair.weights() == [Weight.UNPROTECTED, Weight.UNPROTECTED]
    pair.full = False
    pair.open()
    assert pair.weights() == [None, None]


@pytest.mark.parametrize("planted", ["opened", "_judge"])
def test_it_takes_what_is_told_of_each(monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """Planted bugs: no opening is noticed, or what has come of none."""
    monkeypatch.setattr(MissingReplicas, planted, lambda *_: None)
    pair = Full(monkeypatch)
    for _ in range(2 * ENOUGH):
        pair.open(0.9)
    assert pair.weights() == [None, None]


def test_connections_that_have_replicas_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Full(monkeypatch)
    pair.full = False
    for _ in range(2 * ENOUGH):
        pair.open()
    assert pair.weights() == [None, None]
