"""The simulator in the test run: many seeds, the same hash for the same seed, and proof that the checkers catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nfq_failover.core import takeover
from nfq_failover.core.backup_connection import BackupConnection
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.membership import Membership
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.primary_connection import PrimaryConnection
from nfq_failover.core.replica_map import ReplicaMap
from nfq_failover.wire.segment import Segment

from .scenario import KINDS, from_seed
from .world import World

SEEDS = 225
BATCH = 45


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_seeds(first: int) -> None:
    """Every seed ends well; a failure names the seed: `python -m tests.sim --seed N --verbose` shows it again."""
    for seed in range(first, first + BATCH):
        try:
            World(from_seed(seed)).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_every_kind_of_incident_is_among_the_seeds() -> None:
    assert {from_seed(seed).kind for seed in range(SEEDS)} == set(KINDS)


@pytest.mark.parametrize("seed", [1, 4, 5, 6, 7, 8])
def test_same_seed_has_the_same_trace(seed: int) -> None:
    traces = {World(from_seed(seed)).run() for _ in range(2)}
    assert len(traces) == 1
    assert World(from_seed(seed + 9)).run() not in traces


# ---------------------------------------------------------------------------------------------- sabotage


def found(complaint: str, seeds: int = 180) -> bool:
    """Whether the checkers complain so about a broken core."""
    for seed in range(seeds):
        try:
            World(from_seed(seed)).run()
        except AssertionError as error:
            if complaint in str(error):
                return True
    return False


def _ungated(self: PrimaryConnection, event: PacketQueued, seg: Segment, out: Outbox, now: float) -> None:
    del self, seg, now
    out.accept(event.queue, event.packet_id)


def _forgetful(self: BackupConnection, offset: int, data: bytes, fin: bool, out: Outbox) -> None:
    """Confirms what it has not logged."""
    _store(self, offset, data, fin, out)
    if self.journal.end > 3000:
        self.journal._data[-1] = bytes(len(self.journal._data[-1]))


_store = BackupConnection.store


@pytest.mark.parametrize(
    ("target", "name", "replacement", "complaint"),
    [
        (PrimaryConnection, "outbound", _ungated, "the backup has"),
        (PrimaryConnection, "_covered", lambda self, block: True, "SACK"),
        (ReplicaMap, "seen_tsval", lambda self, tsval: tsval, "TSval falls"),
        (ReplicaMap, "own_tsecr", lambda self, tsecr: tsecr, "did not end well"),
        (ReplicaMap, "seen_window", lambda self, ack, edge: max(edge - ack, 0) >> (self.wscale + 3), "right edge"),
        (BackupConnection, "redeliver", lambda self, out: None, "did not end well"),
        (BackupConnection, "store", _forgetful, "read wrong bytes"),
        (Membership, "may_continue", lambda self, now: False, "resets a living, promised connection"),
        (takeover, "resend", lambda *_: 1, "did not end well"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_checkers_catch(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, replacement: Callable[..., Any], complaint: str
) -> None:
    monkeypatch.setattr(target, name, replacement)
    assert found(complaint)
