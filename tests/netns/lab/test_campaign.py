"""The campaign in real labs: without protection each crash is recorded as broken; what was done is not done again."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from nfq_failover.lab.campaign.crashes.plan import Cell, all_good, plan
from nfq_failover.lab.campaign.crashes.run import campaign
from nfq_failover.lab.campaign.journal import Settings

pytestmark = pytest.mark.netns


def settings(tmp_path: Path) -> Settings:
    return Settings(f"c{secrets.token_hex(3)}", tmp_path, heartbeat_ms=50, rate="100mbit", stall_timeout_s=2.0)


def test_without_protection_every_crash_breaks_the_connection(tmp_path: Path) -> None:
    said: list[str] = []
    tasks = [
        task for task in plan([Cell("plain", "clone", 0, 0, 1, plain=True)], seed=1) if task.kind in ("echo", "upload")
    ]
    chosen = settings(tmp_path)
    records = campaign(tasks, chosen, said.append).go_on()
    assert [record.broken for record in records.values()] == [1, 1]
    assert all("stalled" in str(record.error) for record in records.values())
    assert not all_good(records.values())
    for record in records.values():
        place = tmp_path / "odd" / record.key.replace("/", "-")
        assert (place / "client.pcap").exists()
        assert (place / "record.json").exists()
    assert campaign(tasks, chosen, said.append).go_on() == records
    assert "2 of 2 crashes are done already; 0 to go" in said
    assert not list(Path("/run/netns").glob(f"{chosen.name}-*"))


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_a_protected_pair_survives_a_crash_on_either_side(tmp_path: Path, tap: str) -> None:
    said: list[str] = []
    tasks = [task for task in plan([Cell(tap, tap, 0, 0, 1)], seed=1) if task.kind in ("interactive", "upload")]
    records = campaign(tasks, settings(tmp_path), said.append).go_on()
    assert all_good(records.values()), said
    assert [record.crashed for record in records.values()] == ["a", "b"]
