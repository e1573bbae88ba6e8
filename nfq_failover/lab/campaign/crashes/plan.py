"""What the campaign of crashes does, what it remembers, and what it reports: everything that needs no lab."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nfq_failover.lab.campaign.section import list_of_ms, median_and_worst

KINDS: Final = ("echo", "interactive", "bulk", "upload")
SIZES: Final = (1_000_000, 5_000_000, 20_000_000, 100_000_000)
WORKLOAD_S: Final = 3.0
# When the crash comes, in seconds after the connection is open: never after the workload's end.
EARLIEST_S: Final = 0.2
LATEST_S: Final = 2.2
# A silence longer than the detection time by more than this keeps its capture for a look.
ODD_SILENCE_MS: Final = 1000
ODD_CONNECT_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Cell:
    """A lab's conditions and how often each workload meets a crash in it. Losses in percent."""

    name: str
    tap: str
    loss: float
    tap_loss: float
    runs: int
    plain: bool = False


CELLS: Final = (
    Cell("clone", "clone", 0, 0, 20),
    Cell("multicast", "multicast", 0, 0, 20),
    Cell("clone, 1 % loss", "clone", 1, 0, 10),
    Cell("clone, 5 % loss", "clone", 5, 0, 10),
    Cell("clone, 10 % tap loss", "clone", 0, 10, 20),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One crash. `seed` is the campaign's; all that is random about the task follows from it and from `key`."""

    cell: Cell
    kind: str
    number: int
    seed: int

    @property
    def key(self) -> str:
        """The name of the task among those of a campaign."""
        return f"{self.cell.name}/{self.kind}/{self.number}"

    @property
    def delay_s(self) -> float:
        """From the open connection to the crash."""
        return random.Random(f"{self.seed}/{self.key}").uniform(EARLIEST_S, LATEST_S)

    @property
    def size(self) -> int:
        """Bytes of one bulk or upload; the sizes take turns, and a short one is repeated until the time is over."""
        return SIZES[self.number % len(SIZES)]

    def workload(self, port: str) -> list[str]:
        """The arguments of the workload's client."""
        arguments = [self.kind, "--port", port, "--seconds", str(WORKLOAD_S), "--seed", str(self.number + 1)]
        rate = {"echo": "200", "interactive": "100"}.get(self.kind)
        return arguments + (["--rate", rate] if rate else ["--size", str(self.size)])


def plan(cells: Sequence[Cell], seed: int) -> list[Task]:
    """All crashes, cell by cell; inside a cell the workloads take turns."""
    return [Task(cell, kind, number, seed) for cell in cells for number in range(cell.runs) for kind in KINDS]


@dataclass(frozen=True, slots=True)
class Record:
    """What one crash did to the client. Times in milliseconds; `error` is None if everything ended right.

    `silence_ms`: the longest that the client's application saw. `stall_ms`: the longest in its capture. `in_transfer`:
    the crash came while the workload ran. None where the run did not get so far.
    """

    key: str
    cell: str
    kind: str
    seed: int
    lab_seed: int
    detection_ms: int
    crashed: str | None = None
    delay_s: float = 0.0
    ok: bool = False
    in_transfer: bool = False
    error: str | None = None
    wrong_bytes: int = 0
    broken: int = 0
    resets: int = 0
    unseen_acknowledged: int = 0
    tshark_ack_lost: int = 0
    dropped_by_capture: int = 0
    bytes: int = 0
    connect_ms: float | None = None
    silence_ms: float | None = None
    stall_ms: float | None = None
    finished: str = ""

    def oddities(self) -> list[str]:
        """Why this run's capture should be looked at; empty for a run as it should be."""
        found = [] if self.error is None else [self.error]
        for name in ("wrong_bytes", "broken", "resets", "unseen_acknowledged", "dropped_by_capture"):
            if value := getattr(self, name):
                found.append(f"{name.replace('_', ' ')}: {value}")
        if not self.in_transfer:
            found.append("the crash did not come during the transfer")
        if self.silence_ms is not None and self.silence_ms > self.detection_ms + ODD_SILENCE_MS:
            found.append(f"silence of {self.silence_ms:.0f} ms")
        if self.connect_ms is not None and self.connect_ms > ODD_CONNECT_MS:
            found.append(f"{self.connect_ms:.0f} ms to connect")
        return found


def groups(cells: Iterable[Cell], records: Mapping[str, Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each (cell, kind), in the plan's order; an empty list where nothing has run."""
    found: dict[tuple[str, str], list[Record]] = {(cell.name, kind): [] for cell in cells for kind in KINDS}
    for record in records.values():
        if (record.cell, record.kind) in found:
            found[record.cell, record.kind].append(record)
    return found


def table(cells: Sequence[Cell], records: Mapping[str, Record]) -> str:
    """The results as a Markdown table, one row per cell and workload, and their sum."""
    lines = [
        "| tap, loss | workload | crashes | wrong bytes | broken connections | RST at the client "
        "| longest silence: median | worst | detection time |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    everything: list[Record] = []
    for (cell, kind), rows in groups(cells, records).items():
        everything += rows
        lines.append(_row(cell, kind, rows))
    lines.append(_row("**all**", "", everything))
    return "\n".join(lines)


def _row(cell: str, kind: str, rows: Sequence[Record]) -> str:
    median, worst = median_and_worst(rows)
    detection = list_of_ms(row.detection_ms for row in rows)
    sums = [sum(getattr(row, name) for row in rows) for name in ("wrong_bytes", "broken", "resets")]
    return f"| {cell} | {kind} | {len(rows)} | {' | '.join(map(str, sums))} | {median} | {worst} | {detection} |"


def all_good(records: Iterable[Record]) -> bool:
    """Whether there are records, and none of them has a wrong byte, a broken connection, a reset or an error."""
    rows = list(records)
    return bool(rows) and all(
        row.ok and row.in_transfer and not (row.wrong_bytes or row.broken or row.resets) for row in rows
    )
