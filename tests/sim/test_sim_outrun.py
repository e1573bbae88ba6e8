"""A backup that has more packets than time is behind with its own queues, and has lost nothing: it asks for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.backlog import Backlog
from nfq_failover.core.events import Queue

from .network import Quality
from .scenario import ECHO, UPLOAD, Connection, HostPlan, Limits, Scenario
from .world import SimWorld

CONNECTIONS = 12
COUNTERS = ("bytes-fetched", "injected-inward", "replica-silent")


def outrun(seed: int) -> Scenario:
    """Uploads that begin together, on a network that loses nothing, and a queue that holds them all."""
    paths = {name: Quality() for name in ("client", "tap", "sync")}
    slow = HostPlan(packets_per_s=400, queue_packets=100_000, buffer=200_000)
    kinds = (UPLOAD, UPLOAD, ECHO)
    return Scenario(
        seed,
        "outrun",
        quality=paths,
        hosts={"a": slow, "b": replace(slow, boot=0.1)},
        limits=Limits(replica_patience_ms=60_000),
        connections=tuple(
            Connection(0.5 + 0.001 * number, 40_000 + number, kinds[number % len(kinds)], 100 + number)
            for number in range(CONNECTIONS)
        ),
    )


def counted(seed: int) -> dict[str, int]:
    """What the backup has counted at the end."""
    world = SimWorld(outrun(seed))
    world.run()
    _, backup = world.hosts
    return {name: backup.node.out.counters[name] for name in COUNTERS} | {"packets": world.packets}


def _reads_at_once(self: Backlog, queue: Queue, now: float) -> float:
    del self, queue
    return now


def test_what_waits_in_its_own_queue_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    known = counted(1)
    monkeypatch.setattr(Backlog, "read_until", _reads_at_once)
    unknown = counted(1)
    assert known["bytes-fetched"] == 0 < unknown["bytes-fetched"], (known, unknown)
    assert 2 * known["injected-inward"] < unknown["injected-inward"], (known, unknown)
