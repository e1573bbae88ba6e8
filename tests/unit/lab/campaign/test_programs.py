"""Real programs through a crash: the cases as they are declared, the verdict, the table. No program runs."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.lab.campaign.programs import run as programs
from nfq_failover.lab.campaign.programs.case import Program
from nfq_failover.lab.campaign.programs.judge import (
    AS_SAID,
    NOT_DONE,
    PROMISE,
    RIGHT,
    UNSEEN,
    WRONG,
    Record,
    judge,
    losses,
    reasons,
    reset_ports,
    silence_ms,
)
from nfq_failover.lab.campaign.programs.report import table, write_report
from nfq_failover.lab.measure.verdict import Packet

PROGRAMS = programs.PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.key)
def test_scripts_are_shell(program: Program, tmp_path: Path) -> None:
    for script in (program.version, program.prepare, program.serve, program.client, program.check):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True, cwd=tmp_path)
    assert program.packages and program.needs
    assert re.search(r"\$VIP", program.client)


def test_each_has_a_name_of_its_own_and_there_are_enough() -> None:
    assert max(Counter(program.key for program in PROGRAMS).values()) == 1
    assert len(PROGRAMS) >= 30


def test_plan_has_something_of_each_first_and_both_taps() -> None:
    tasks = programs.plan(PROGRAMS, 4, 1)
    assert len({task.key for task in tasks}) == 4 * len(PROGRAMS)
    assert [task.program for task in tasks[: len(PROGRAMS)]] == list(PROGRAMS)
    of_one = [task for task in tasks if task.program is PROGRAMS[0]]
    assert Counter(task.tap for task in of_one) == {"clone": 2, "multicast": 2}
    assert len({task.seed for task in of_one}) == 4


@pytest.mark.parametrize("within_ms", [1, 50, 200])
def test_crash_comes_just_after_a_full_second_if_it_is_to(within_ms: int) -> None:
    for task in programs.plan(PROGRAMS[:1], 50, 1, within_ms):
        at, asked_at = task.wait(1000.3)
        assert 0.003 <= at % 1 <= max(within_ms, 3) / 1000 + 1e-6
        assert 1000.3 + task.program.warm_s <= at and at - 0.1 < asked_at < at
    anywhere = [task.wait(1000.3)[0] % 1 for task in programs.plan(PROGRAMS[:1], 50, 1)]
    assert max(anywhere) - min(anywhere) > 0.5


def test_what_is_missing_is_said() -> None:
    assert programs.missing(replace(PROGRAMS[0], needs=("sh", "no-such-program"))) == ["no-such-program"]


BEFORE = {40000: "", 40001: "the replica's output differs"}


@pytest.mark.parametrize(
    ("code", "wrong", "before", "lost", "verdict"),
    [
        (0, "", BEFORE, set(), RIGHT),
        (0, "", BEFORE, {40001}, RIGHT),  # a client that tries again
        (56, "", BEFORE, {40001}, AS_SAID),
        (0, "59 lines", BEFORE, {40001}, AS_SAID),
        (28, "", {40001: "opened while no daemon was there"}, set(), AS_SAID),  # it hung, and status had said so
        (56, "", BEFORE, {40000, 40001}, AS_SAID),  # a data connection, and then its control connection
        (56, "", BEFORE, {40000}, PROMISE),
        (None, "", {40000: ""}, set(), PROMISE),
        (56, "", {40000: ""}, {40009}, PROMISE),
        (0, "other bytes", {40000: ""}, set(), WRONG),
        (56, "", {}, set(), NOT_DONE),
    ],
)
def test_verdict(code: int | None, wrong: str, before: dict[int, str], lost: set[int], verdict: str) -> None:
    found, why = judge(code, wrong, before, frozenset(lost))
    assert found == verdict
    assert bool(why) == (verdict != RIGHT)


def test_what_was_not_seen_is_no_excuse() -> None:
    assert judge(56, "", {40000: ""}, frozenset({40009}))[1].endswith(UNSEEN)


def packet(when: float, port: int = 40000, flags: int = ACK, from_service: bool = True) -> Packet:
    return Packet(0, when, 0, from_service, port, flags, 1, 1, 100)


def test_silence_begins_with_what_was_on_its_way_at_the_crash() -> None:
    seen = [packet(9.0), packet(9.99), packet(10.002), packet(10.2), packet(10.21)]
    seen.append(packet(10.1, from_service=False))
    assert silence_ms(seen, 10.0) == 198.0
    assert silence_ms(seen, 11.0) is None


def test_resets_of_the_service_after_the_crash() -> None:
    seen = [packet(9.0, 1, RST), packet(11.0, 2, RST), packet(11.0, 3, RST, from_service=False), packet(11.0, 4)]
    assert reset_ports(seen, 10.0) == {2}


@pytest.mark.parametrize("flag", [FIN, RST])
def test_resets_of_clients_that_have_ended_are_no_losses(flag: int) -> None:
    end = packet(10.5, 2, flag | ACK, from_service=False)
    assert reset_ports([end, packet(11.0, 2, RST)], 10.0) == frozenset()
    again = packet(10.7, 2, SYN, from_service=False)
    assert reset_ports([end, again, packet(11.0, 2, RST)], 10.0) == {2}


def test_status_is_read_by_the_clients_port() -> None:
    rows = [
        {"client": "10.77.0.1:40000", "protected": True, "reason": ""},
        {"client": "10.77.0.1:40001", "protected": False, "reason": "opening"},
    ]
    assert reasons(rows) == {40000: "", 40001: "opening"}


def record(number: int, verdict: str, why: str = "", silence: float | None = None) -> Record:
    name = PROGRAMS[0].name
    return Record(f"x/{number}", name, "1.0", "clone", number, verdict, why, silence_ms=silence, commit="abc")


def test_table_has_a_row_for_each_program_that_ran_and_the_reasons(tmp_path: Path) -> None:
    rows = [
        record(0, RIGHT, silence=180.4),
        record(1, RIGHT, silence=190.6),
        record(2, AS_SAID, "it | differs", 5000.0),
        record(3, NOT_DONE, "no lab"),
    ]
    head, _, first, total = table(rows, PROGRAMS).splitlines()
    assert first == f"| {PROGRAMS[0].name} | 1.0 | 3 | 2 | 1 | 0 | 0 | 191 ms | it / differs; no lab |"
    assert len(re.findall(r"\|", head)) == len(re.findall(r"\|", first))
    assert "| 3 | 2 | 1 | 0 | 0 |" in total
    assert "though 1 protected" in table([replace(rows[0], lost={"": 1})], PROGRAMS)
    page = tmp_path / "page.md"
    write_report({row.key: row for row in rows}, PROGRAMS, "script/programs", 9, ["icecast2 (curl)"], page)
    text = page.read_text()
    assert "<!-- programs:begin -->" in text and first in text and "abc" in text and "icecast2 (curl)" in text
    assert "4 of 9 runs" in text


def test_losses_are_those_that_were_called_protected() -> None:
    rows = [
        replace(record(0, PROMISE), before={"": 50, "differs": 2}, lost={"": 3, "differs": 2}),
        replace(record(1, RIGHT), before={"": 40}),
        replace(record(2, NOT_DONE), before={"": 10}, lost={"": 10}),
    ]
    assert losses(rows) == (3, 90)
