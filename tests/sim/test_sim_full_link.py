"""A sync channel that loses most of what it carries, since clients' bytes fill the backup's link: nobody has died."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.pair.monitor import PeerMonitor

from .mutants.mutant import nothing
from .network import Quality
from .runner import run
from .scenario import UPLOAD, Connection, Scenario

LOSS = 0.5
CONNECTIONS = 60


def full_link(seed: int) -> Scenario:
    """Uploads one after the other, for three seconds."""
    paths = {"client": Quality(), "tap": Quality(), "sync": replace(Quality(), loss=LOSS)}
    uploads = tuple(Connection(0.05 * number, 40_000 + number, UPLOAD, 100 + number) for number in range(CONNECTIONS))
    return Scenario(seed, "none", quality=paths, connections=uploads)


def fenced(seed: int) -> bool:
    """Whether a host has acted against the other one, though both live."""
    outcome = run(full_link(seed), verbose=True)
    assert not outcome.failure, outcome.details
    return "'after': 'fencing'" in outcome.details


def test_a_healthy_peer_whose_heartbeats_are_lost_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(1, 4)
    with_records = sum(map(fenced, seeds))
    monkeypatch.setattr(PeerMonitor, "spoke", nothing)
    by_heartbeats_alone = sum(map(fenced, seeds))
    assert (with_records, by_heartbeats_alone) == (0, len(seeds)), (with_records, by_heartbeats_alone)
