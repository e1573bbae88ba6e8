"""The campaign of crashes: its plan, judgement and table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab.campaign.crashes.plan import (
    CELLS,
    KINDS,
    LATEST_S,
    SIZES,
    WORKLOAD_S,
    Cell,
    Record,
    all_good,
    groups,
    plan,
    table,
)
from nfq_failover.lab.campaign.crashes.run import describe, judge, write_report
from nfq_failover.lab.campaign.journal import Settings
from nfq_failover.lab.measure.verdict import Gap, Measurement

GOOD = Record(
    key="clone/echo/0",
    cell="clone",
    kind="echo",
    seed=1,
    lab_seed=2,
    detection_ms=150,
    crashed="a",
    ok=True,
    in_transfer=True,
    silence_ms=152.0,
    stall_ms=151.0,
    finished="2020-01-01T00:00:00Z",
)
REPORT = {
    "ok": True,
    "error": None,
    "wrong_bytes": 0,
    "failed_connections": 0,
    "bytes": 1000,
    "started": 100.0,
    "duration_s": 3.0,
    "connect_ms": 1.0,
    "longest_silence_ms": 160.04,
}


def test_the_plan_has_what_the_proof_demands() -> None:
    tasks = plan(CELLS, seed=1)
    count = {(cell.name, kind): 0 for cell in CELLS for kind in KINDS}
    for task in tasks:
        count[task.cell.name, task.kind] += 1
    for kind in KINDS:
        assert [count[name, kind] for name in ("clone", "multicast")] == [20, 20]
        assert [count[name, kind] for name in ("clone, 1 % loss", "clone, 5 % loss")] == [10, 10]
        assert count["clone, 10 % tap loss", kind] == 20
    assert len({task.key for task in tasks}) == len(tasks)


def test_a_task_is_decided_by_seed_and_key() -> None:
    first, again, other = plan(CELLS, seed=1), plan(CELLS, seed=1), plan(CELLS, seed=2)
    assert [task.delay_s for task in first] == [task.delay_s for task in again]
    assert [task.delay_s for task in first] != [task.delay_s for task in other]
    assert all(0 < task.delay_s <= LATEST_S < WORKLOAD_S for task in first)
    assert len({round(task.delay_s, 3) for task in first}) > 250
    assert {task.size for task in first if task.kind == "upload"} == set(SIZES)


def test_the_workloads_take_turns_and_their_arguments_are_right() -> None:
    tasks = plan([Cell("x", "clone", 0, 0, 2)], seed=1)
    assert [task.kind for task in tasks] == [*KINDS, *KINDS]
    assert tasks[0].workload("7000")[:3] == ["echo", "--port", "7000"]
    assert "--size" in tasks[2].workload("7000")
    assert "--rate" not in tasks[3].workload("7000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"error": "stalled"}, "stalled"),
        ({"wrong_bytes": 3}, "wrong bytes: 3"),
        ({"broken": 1}, "broken: 1"),
        ({"resets": 2}, "resets: 2"),
        ({"unseen_acknowledged": 1}, "unseen acknowledged: 1"),
        ({"dropped_by_capture": 9}, "dropped by capture: 9"),
        ({"in_transfer": False}, "did not come during the transfer"),
        ({"silence_ms": 1151.0}, "silence of 1151 ms"),
        ({"connect_ms": 1023.0}, "1023 ms to connect"),
    ],
)
def test_every_oddity_is_noticed(change: dict[str, Any], words: str) -> None:
    assert GOOD.oddities() == []
    odd = replace(GOOD, **change)
    assert len(odd.oddities()) == 1
    assert words in odd.oddities()[0]
    assert "ODD" in describe(odd)
    assert "ok" in describe(GOOD)


def test_a_good_run_is_judged_good() -> None:
    record = judge(replace(GOOD, ok=False), REPORT, 101.0, Measurement(packets=9, stall=Gap(101.0, 101.2)))
    assert (record.ok, record.in_transfer, record.error, record.oddities()) == (True, True, None, [])
    assert (record.silence_ms, record.stall_ms, record.bytes) == (160.0, 200.0, 1000)


def test_what_the_client_or_the_capture_found_makes_a_run_bad() -> None:
    measured = Measurement(packets=9)
    report = REPORT | {"ok": False, "error": "stalled", "failed_connections": 1}
    record = judge(GOOD, report, 101.0, measured)
    assert (record.ok, record.broken, record.error) == (False, 1, "stalled")
    record = judge(GOOD, REPORT, 101.0, Measurement(packets=9, resets_from_service=[7]))
    assert (record.ok, record.resets) == (False, 1)
    record = judge(GOOD, REPORT, 103.5, measured)
    assert not record.in_transfer


def test_an_acknowledgement_of_unseen_bytes_makes_a_run_bad() -> None:
    measured = Measurement(packets=9, unseen_acknowledged=[4], ack_lost_segments=[4])
    record = judge(GOOD, REPORT, 101.0, measured)
    assert (record.ok, record.unseen_acknowledged, record.tshark_ack_lost) == (False, 1, 1)
    record = judge(GOOD, REPORT, 101.0, Measurement(packets=9, ack_lost_segments=[4]))
    assert (record.ok, record.tshark_ack_lost) == (True, 1)


def test_the_table_adds_up() -> None:
    cells = [Cell("clone", "clone", 0, 0, 3)]
    rows = [
        GOOD,
        replace(GOOD, key="clone/echo/1", silence_ms=170.0),
        replace(GOOD, key="clone/echo/2", silence_ms=300.0, wrong_bytes=4, broken=1, resets=2),
        replace(GOOD, key="clone/bulk/0", kind="bulk", silence_ms=None),
        replace(GOOD, key="gone/echo/0", cell="a cell of an older version"),
    ]
    records = {row.key: row for row in rows}
    text = table(cells, records)
    assert "| clone | echo | 3 | 4 | 1 | 2 | 170 ms | 300 ms | 150 ms |" in text
    assert "| clone | bulk | 1 | 0 | 0 | 0 | - | - | 150 ms |" in text
    assert "| clone | upload | 0 | 0 | 0 | 0 | - | - | - |" in text
    assert "| **all** |  | 4 | 4 | 1 | 2 |" in text
    assert [len(found) for found in groups(cells, records).values()] == [3, 0, 1, 0]


def test_good_means_all_good() -> None:
    assert all_good([GOOD])
    assert not all_good([])
    bad: list[dict[str, Any]] = [
        {"ok": False},
        {"in_transfer": False},
        {"wrong_bytes": 1},
        {"broken": 1},
        {"resets": 1},
    ]
    for change in bad:
        assert not all_good([GOOD, replace(GOOD, **change)])


def test_the_report_is_written_with_its_picture(tmp_path: Path) -> None:
    docs = tmp_path / "docs" / "results.md"
    write_report(
        [Cell("clone", "clone", 0, 0, 1)], {GOOD.key: GOOD}, Settings("n", tmp_path, 50, "200mbit", 30.0), docs
    )
    text = docs.read_text()
    assert "1 of 4 crashes done" in text
    assert "silences.svg" in text
    assert (docs.parent / "silences.png").exists()
    assert (docs.parent / "silences.svg").exists()
