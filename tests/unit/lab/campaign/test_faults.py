"""The campaign of faults: its plan, its judgement on a capture, its report."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.faults.judge import Evidence, Heard, heard, judge, owners
from nfq_failover.lab.campaign.faults.plan import BY_NAME, CONDITIONS, MIXES, WORKLOAD_S, Record, Task, plan
from nfq_failover.lab.campaign.faults.report import anomalies, describe, summary, write_report
from nfq_failover.lab.campaign.journal import Journal
from nfq_failover.lab.measure.verdict import Measurement
from nfq_failover.lab.topology import TWO_HOSTS
from nfq_failover.wire.build import build_segment

TASK = Task(3, 1, BY_NAME["power"], CONDITIONS[0], "mixed", 0.5)
RECORD = Record(TASK.key, 3, 1, 9, "power", "clone", "mixed", 300, 0.5)
REPORT = {
    "ok": True,
    "error": None,
    "wrong_bytes": 0,
    "failed_connections": 0,
    "connections": 8,
    "bytes": 1000,
    "started": 100.0,
    "duration_s": 3.0,
    "connect_ms": 1.0,
    "longest_silence_ms": 360.0,
}


# ------------------------------------------------------------------------------------------------------- the plan


def test_a_plan_of_a_thousand_has_every_fault_with_every_condition_and_every_mix() -> None:
    tasks = plan(1000, seed=1)
    assert sum(task.fault.takeovers for task in tasks) in (1000, 1001)
    assert {(task.fault.name, task.conditions) for task in tasks} == {
        (fault, conditions) for fault in BY_NAME for conditions in CONDITIONS
    }
    assert min(Counter((task.fault.name, task.mix) for task in tasks).values()) >= 2
    assert len(Counter((task.fault.name, task.mix) for task in tasks)) == len(BY_NAME) * len(MIXES)
    assert len({task.key for task in tasks}) == len(tasks)
    assert all(0 < task.delay_s < WORKLOAD_S for task in tasks)


def test_a_plan_is_decided_by_its_seed_and_a_longer_one_begins_with_it() -> None:
    assert plan(50, seed=1) == plan(200, seed=1)[: len(plan(50, seed=1))]
    assert plan(50, seed=1) != plan(50, seed=2)
    assert TASK.draw.random() == TASK.draw.random()


def test_a_plan_of_one_fault_has_the_same_runs_as_the_whole_one() -> None:
    some = plan(10, 1, ["kill"])
    assert {task.fault.name for task in some} == {"kill"}
    assert set(some) <= set(plan(200, 1))


# --------------------------------------------------------------------------------------------------- the judgement


def frame(node: str, flags: int, port: int = 7000) -> bytes:
    segment = build_segment(
        (bytes(map(int, TWO_HOSTS.service.split("."))), port),
        (bytes(map(int, TWO_HOSTS.address("client").split("."))), 40000),
        1,
        1,
        flags,
        100,
        b"",
        b"",
    )
    mac = bytes.fromhex(TWO_HOSTS.hardware(node).replace(":", ""))
    return bytes(6) + mac + b"\x08\0" + bytes(segment)


def write_capture(path: Path, frames: list[tuple[float, bytes]]) -> None:
    data = b"\xd4\xc3\xb2\xa1" + bytes(20)
    for when, raw in frames:
        data += struct.pack("<IIII", int(when), round(when % 1 * 1e6), len(raw), len(raw)) + raw
    path.write_bytes(data)


def test_a_capture_tells_who_was_heard(tmp_path: Path) -> None:
    path = tmp_path / "client.pcap"
    write_capture(path, [(10.0, frame("a", SYN | ACK)), (10.5, frame("b", RST, 7001))])
    assert list(heard(path, TWO_HOSTS)) == [
        Heard(10.0, "a", 7000, 40000, SYN | ACK),
        Heard(10.5, "b", 7001, 40000, RST),
    ]
    path.write_bytes(b"something else")
    with pytest.raises(CommandError, match="pcap"):
        list(heard(path, TWO_HOSTS))


def turns(*rows: tuple[float, str]) -> str:
    return owners([Heard(when, node, 7000, 40000, ACK) for when, node in rows])


def test_two_owners_are_seen_and_overtaking_is_not_taken_for_them() -> None:
    assert turns() == ""
    assert turns((1.0, "a"), (2.0, "a"), (3.0, "b")) == "ab"
    assert turns((1.0, "a"), (3.0, "b"), (3.005, "a"), (3.006, "b"), (4.0, "b")) == "ab"
    assert turns((1.0, "a"), (3.0, "b"), (3.05, "a")) == "aba"
    assert turns((1.0, "a"), (3.0, "b"), (3.005, "a"), (3.05, "a")) != "ab"


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(
        report: dict[str, Any] | None = None,
        frames: list[tuple[float, bytes]] | None = None,
        measured: Measurement | None = None,
        task: Task = TASK,
        **evidence: Any,
    ) -> Record:
        path = tmp_path / "client.pcap"
        good = [(100.0, frame("a", SYN | ACK)), (102.0, frame("b", ACK))]
        write_capture(path, good if frames is None else frames)
        monkeypatch.setattr("nfq_failover.lab.campaign.faults.judge.read_capture", lambda *_: [])
        monkeypatch.setattr(
            "nfq_failover.lab.campaign.faults.judge.measure", lambda *_: measured or Measurement(packets=2)
        )
        shown = Evidence(TWO_HOSTS, "a", [(REPORT | (report or {}), 0.0)], faults_at=[101.0], crashed=["a"])
        for name, value in evidence.items():
            setattr(shown, name, value)
        return judge(task, RECORD, shown, path, 0)

    return run


def test_a_good_run_is_judged_good(judged: Any) -> None:
    record = judged()
    assert record.oddities() == []
    assert (record.silence_ms, record.connections, record.takeovers, record.bytes) == (360.0, 8, 1, 1000)
    assert describe(record).startswith("power, clone, mixed: ok")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"report": {"ok": False, "error": "stalled", "failed_connections": 1}}, "promised connections broke: stalled"),
        ({"report": {"wrong_bytes": 3}}, "3 wrong bytes"),
        ({"spent": [REPORT | {"wrong_bytes": 2, "ok": False, "failed_connections": 8}]}, "2 wrong bytes"),
        ({"frames": [(100.0, frame("a", SYN)), (102.0, frame("b", RST))]}, "1 RST from the service"),
        ({"frames": [(100.0, frame("a", SYN)), (102.0, frame("b", ACK)), (103.0, frame("a", ACK))]}, "turn: aba"),
        ({"frames": [(100.0, frame("a", SYN))]}, "turn: a instead of ab"),
        ({"measured": Measurement(packets=2, unseen_acknowledged=[7])}, "bytes that were never seen"),
        ({"measured": Measurement(packets=2, timestamps_back=[7])}, "timestamps that go back"),
        ({"violations": ["b did not take over"]}, "b did not take over"),
    ],
)
def test_every_broken_promise_is_a_violation(judged: Any, change: dict[str, Any], words: str) -> None:
    record = judged(**change)
    assert any(words in text for text in record.violations), record.violations
    assert "BROKEN" in describe(record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"report": {"longest_silence_ms": 1500.0}}, "1500 ms of silence"),
        ({"report": {"connect_ms": 2000.0}}, "2000 ms to connect"),
        ({"unprotected": ["the backup lags"]}, "the backup lags"),
        ({"faults_at": [104.0]}, "did not come during"),
        ({"measured": Measurement(packets=2, dropped_by_capture=4)}, "lacks 4 packets"),
    ],
)
def test_what_is_odd_is_a_note(judged: Any, change: dict[str, Any], words: str) -> None:
    record = judged(**change)
    assert record.violations == []
    assert [words in text for text in record.notes] == [True]


def test_what_nothing_is_promised_for_may_end(judged: Any) -> None:
    spent = REPORT | {"ok": False, "error": "stalled", "failed_connections": 4}
    frames = [
        (100.0, frame("a", SYN)),
        (101.5, frame("b", ACK)),
        (103.0, frame("a", ACK)),
        (104.0, frame("a", RST, 7001)),
    ]
    record = judged(spent=[spent], frames=frames, crashed=["a", "b"], task=replace(TASK, fault=BY_NAME["twice"]))
    assert record.oddities() == []
    assert (record.ended, record.broken, record.takeovers) == (4, 0, 2)


# ------------------------------------------------------------------------------------------------------ the report


def test_the_report_lists_every_anomaly_with_its_seed(tmp_path: Path) -> None:
    good = replace(RECORD, crashed="a", silence_ms=310.0, connections=8, commit="abc")
    bad = replace(good, key="other", number=4, lab_seed=77, violations=["2 wrong bytes"], wrong_bytes=2)
    assert anomalies([good]) == "None."
    text = write_report({row.key: row for row in (good, bad)}, tmp_path, seed=1, wanted=2).read_text()
    assert "**1 runs broke the contract**" in text
    assert "| `--seed 1 --only-number 4` | 77 | power | clone | mixed | 2 wrong bytes | - |" in text
    assert "| power | 2 | 16 | 2 | 0 | 0 | 0 | 310 ms | 310 ms |" in text
    assert (tmp_path / "fault-silences.svg").exists()
    assert all(fault in summary([good], 1, 1) for fault in BY_NAME)


def test_a_record_survives_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "faults.jsonl", Record)
    record = replace(RECORD, violations=["one"], notes=["two"])
    journal.append(record)
    assert journal.read() == {record.key: record}
