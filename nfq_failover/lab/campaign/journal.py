"""What every campaign does: one task after the other, a journal, and going on where it was.

A task says in its record what it did to the clients; the record is in the journal before the next task begins. So a
campaign can be ended at any time, and a second call does only what is not in the journal.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from nfq_failover.errors import CommandError
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible

HEARTBEAT_COUNT: Final = 3  # the daemon's default: this many missing heartbeats are a crash


@dataclass(frozen=True, slots=True)
class Settings:
    """What all tasks of a campaign share. `stall_timeout_s`: when a client gives a silent connection up."""

    name: str
    output: Path
    heartbeat_ms: int
    rate: str
    stall_timeout_s: float
    commit: str = ""

    @property
    def detection_ms(self) -> int:
        """How long the backup waits before it takes the primary for dead."""
        return self.heartbeat_ms * HEARTBEAT_COUNT


class Keyed(Protocol):
    """What has a key that names it in its campaign: a task, or the record of one."""

    @property
    def key(self) -> str:
        """The name."""


class Row(Keyed, Protocol):
    """A record that a journal can hold: a dataclass of JSON values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Keyed)
R = TypeVar("R", bound=Row)
T_contra = TypeVar("T_contra", bound=Keyed, contravariant=True)
R_co = TypeVar("R_co", bound=Row, covariant=True)


class Runner(Protocol[T_contra, R_co]):
    """What carries a task out."""

    def run(self, task: T_contra) -> R_co:
        """Do the task; what goes wrong is in its record. Raises CommandError if no lab can be built."""


class Journal(Generic[R]):
    """The finished tasks, one JSON object a line. What stands there is not done again."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path
        self._kind = kind

    def read(self) -> dict[str, R]:
        """Records by key. Raises CommandError if the file is damaged; a last line cut short by a crash is dropped."""
        if not self.path.exists():
            return {}
        records = {}
        lines = self.path.read_text().splitlines()
        for index, line in enumerate(lines):
            try:
                record = self._kind(**json.loads(line))
            except (ValueError, TypeError) as error:
                if index == len(lines) - 1:
                    self.path.write_text("".join(f"{good}\n" for good in lines[:-1]))
                    break
                raise CommandError(
                    f"{self.path} line {index + 1} is not a record of this version. Move the file away to start anew."
                ) from error
            records[record.key] = record
        return records

    def append(self, record: R) -> None:
        """Add one finished task."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def of(self, tasks: Iterable[Keyed]) -> dict[str, R]:
        """The records of these tasks, in the tasks' order, as far as they are done."""
        records = self.read()
        return {task.key: records[task.key] for task in tasks if task.key in records}


@dataclass(frozen=True)
class Campaign(Generic[T, R]):
    """A campaign is a list of tasks, who carries them out, and the journal. `noun`: what one task is, in the plural."""

    tasks: Sequence[T]
    journal: Journal[R]
    runner: Callable[[], AbstractContextManager[Runner[T, R]]]
    describe: Callable[[R], str]
    noun: str
    say: Callable[[str], None]

    def go_on(self) -> dict[str, R]:
        """Carry out what the journal does not have; returns the records of all tasks by key."""
        done, total = len(self.journal.of(self.tasks)), len(self.tasks)
        records = self.journal.read()
        pending = [task for task in self.tasks if task.key not in records]
        self.say(f"{done} of {total} {self.noun} are done already; {len(pending)} to go")
        began = time.monotonic()
        with self.runner() as runner:
            for index, task in enumerate(pending, 1):
                record = runner.run(task)
                self.journal.append(record)
                left_s = (time.monotonic() - began) / index * (len(pending) - index)
                self.say(f"{progress(done + index, total)} {self.describe(record)}; {left_s / 60:.0f} min to go")
        return self.journal.of(self.tasks)

    def command(self, report_only: bool) -> tuple[dict[str, R], int]:
        """Go on, or with `report_only` just read; an interruption ends it in an orderly way.

        Returns the records of the tasks and an exit code, 0 if it was not interrupted.
        """
        try:
            with interruptible():
                return (self.journal.of(self.tasks) if report_only else self.go_on()), 0
        except Interrupted:
            self.say("Interrupted; the lab is down. Run it again to go on.")
            return self.journal.of(self.tasks), EXIT_CODE


def progress(done: int, total: int) -> str:
    """`[####......]  40/100`."""
    full = 20 * done // total
    return f"[{'#' * full}{'.' * (20 - full)}] {done:>{len(str(total))}}/{total}"


def commit_of(directory: Path) -> str:
    """The checkout's commit, with a `+` if it has changes; empty outside a checkout."""
    try:
        command = ["git", "-C", str(directory), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
