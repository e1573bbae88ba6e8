"""The journal, and a campaign that goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.journal import Campaign, Journal, Runner, progress
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted


@dataclass(frozen=True)
class Entry:
    """What a task did."""

    key: str
    silence_ms: float | None = 152.0


GOOD = Entry("clone/echo/0")


def test_the_journal_remembers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "campaign.jsonl", Entry)
    assert journal.read() == {}
    other = replace(GOOD, key="clone/bulk/0", silence_ms=None)
    journal.append(GOOD)
    journal.append(other)
    assert journal.read() == {GOOD.key: GOOD, other.key: other}


def test_a_line_cut_short_is_run_again_and_damage_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "campaign.jsonl", Entry)
    journal.append(GOOD)
    whole = journal.path.read_text()
    journal.path.write_text(whole + whole[:20])
    assert list(journal.read()) == [GOOD.key]
    assert journal.path.read_text() == whole
    journal.path.write_text("{}\n" + whole)
    with pytest.raises(CommandError, match="line 1"):
        journal.read()


class Work:
    """Tasks that are recorded; the one called `stop` is interrupted."""

    def __init__(self, path: Path, keys: str) -> None:
        self.said: list[str] = []
        self.done = ""
        self.closed = 0
        tasks = [Entry(key) for key in keys]
        self.campaign = Campaign(tasks, Journal(path, Entry), self.runner, lambda it: it.key, "runs", self.said.append)

    @contextmanager
    def runner(self) -> Iterator[Runner[Entry, Entry]]:
        try:
            yield self
        finally:
            self.closed += 1

    def run(self, task: Entry) -> Entry:
        if task.key == "!":
            raise Interrupted
        self.done += task.key
        return task


def test_a_campaign_does_what_the_journal_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "campaign.jsonl"
    first = Work(path, "ab")
    assert list(first.campaign.go_on()) == ["a", "b"]
    again = Work(path, "cab")
    assert list(again.campaign.go_on()) == ["c", "a", "b"]
    assert (first.done, again.done) == ("ab", "c")
    assert again.said == ["2 of 3 runs are done already; 1 to go", "[####################] 3/3 c; 0 min to go"]
    assert again.closed == 1


def test_a_campaign_knows_its_own_tasks_only(tmp_path: Path) -> None:
    path = tmp_path / "campaign.jsonl"
    Work(path, "abc").campaign.go_on()
    assert list(Work(path, "cd").campaign.command(report_only=True)[0]) == ["c"]


def test_an_interrupted_campaign_keeps_what_is_done(tmp_path: Path) -> None:
    work = Work(tmp_path / "campaign.jsonl", "a!b")
    records, code = work.campaign.command(report_only=False)
    assert (list(records), code, work.closed) == (["a"], EXIT_CODE, 1)
    assert "Interrupted" in work.said[-1]
    assert Work(tmp_path / "campaign.jsonl", "ab").campaign.command(report_only=False)[1] == 0


def test_the_progress_bar() -> None:
    assert progress(0, 320) == "[....................]   0/320"
    assert progress(160, 320) == "[##########..........] 160/320"
    assert progress(320, 320) == "[####################] 320/320"
