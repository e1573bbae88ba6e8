"""Two real programs through a crash: one that goes on, and one of which status has said that it can't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.lab.campaign.programs.judge import AS_SAID, RIGHT
from nfq_failover.lab.campaign.programs.run import PROGRAMS, ProgramRunner, Task, missing
from tests.support.lab_world import fresh_name

pytestmark = pytest.mark.netns


@pytest.mark.parametrize(
    ("name", "tap", "verdict"),
    [("redis (redis-cli -r)", "multicast", RIGHT), ("nginx with TLS (curl)", "clone", AS_SAID)],
)
def test_through_a_crash(name: str, tap: str, verdict: str, tmp_path: Path) -> None:
    program = next(each for each in PROGRAMS if each.name == name)
    assert not missing(program)
    record = ProgramRunner(fresh_name(), tmp_path).run(Task("x/0", replace(program, spread_s=0.1), tap, 1))
    assert record.verdict == verdict, record
    assert record.version and record.crashed == "a"
    assert sum(record.before.values()) == 1
    if verdict == RIGHT:
        assert record.before == {"": 1} and not record.lost
    else:
        assert "" not in record.before and record.lost == record.before
        assert "client.pcap" in {path.name for path in (tmp_path / "programs/x-0").iterdir()}
