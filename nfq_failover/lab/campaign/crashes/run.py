"""Crash after crash in a running lab, with every workload, on each tap, with loss; a table at the end.

    nfq-failover campaign            (script/campaign)

It can be ended at any time and goes on where it was. The results are in results-output/campaign.jsonl; a run that was
not as it should be keeps its capture, the daemons' logs and its seeds in results-output/odd/.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab.campaign.crashes.plan import (
    CELLS,
    KINDS,
    WORKLOAD_S,
    Cell,
    Record,
    Task,
    all_good,
    groups,
    plan,
    table,
)
from nfq_failover.lab.campaign.journal import HEARTBEAT_COUNT, Campaign, Journal, Settings
from nfq_failover.lab.campaign.section import silences, write_section
from nfq_failover.lab.driver import ReusedLab
from nfq_failover.lab.measure.verdict import Measurement, measure, read_capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Options

PORT: Final = "7000"
STALL_TIMEOUT_S: Final = 30.0


class RunFailed(NfqFailoverError):
    """A run that could not be done in a lab that had come up."""


class CrashRunner:
    """The runner of the campaign of crashes."""

    def __init__(self, settings: Settings, lab: ReusedLab) -> None:
        self._settings = settings
        self._lab = lab
        self._driver = lab.driver

    def run(self, task: Task) -> Record:
        """Carry out one crash, then restore. What goes wrong is in the record; CommandError: no lab can be built."""
        record = Record(task.key, task.cell.name, task.kind, task.seed, 0, self._settings.detection_ms)
        with tempfile.TemporaryDirectory(prefix="nfq-failover-campaign-") as scratch:
            capture = Path(scratch) / "client.pcap"
            try:
                self._prepare(task)
                record = replace(record, lab_seed=self._lab.seed, delay_s=round(task.delay_s, 3))
                record = self._crash(task, record, capture)
                self._driver.restore(record.crashed or self._driver.hosts[0])
            except (LabError, RunFailed) as error:
                record = replace(record, ok=False, error=record.error or f"lab: {error}")
            record = replace(record, finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            if record.oddities():
                self._keep(record, capture)
            if not record.ok:
                self._lab.spoilt()
        return record

    def _prepare(self, task: Task) -> None:
        cell = task.cell
        options = Options(
            tap=cell.tap,
            heartbeat_ms=self._settings.heartbeat_ms,
            rate=self._settings.rate,
            loss=cell.loss,
            tap_loss=cell.tap_loss,
            plain=cell.plain,
        )
        self._lab.ready(options, f"{task.seed}/{task.key}", cell.name)

    def _crash(self, task: Task, record: Record, capture: Path) -> Record:
        arguments = [*task.workload(PORT), "--stall-timeout", str(self._settings.stall_timeout_s)]
        with self._driver.capture(capture) as running, self._driver.start_workload(arguments) as workload:
            time.sleep(task.delay_s)
            try:
                node = self._driver.lab.resolve("primary")
                crashed_at = self._driver.crash(node)
            except CommandError as error:
                raise RunFailed(str(error)) from error
            report = workload.result(WORKLOAD_S + 4 * self._settings.stall_timeout_s)
        record = replace(record, crashed=node, delay_s=round(task.delay_s, 3))
        missing = running.counts.missing if running.counts else 0
        return judge(record, report, crashed_at, measure(read_capture(capture, self._driver.service), missing))

    def _keep(self, record: Record, capture: Path) -> None:
        place = self._settings.output / "odd" / record.key.replace("/", "-").replace(" ", "_")
        self._lab.keep(place, asdict(record), record.oddities(), capture)


def judge(record: Record, report: dict[str, Any], crashed_at: float, result: Measurement) -> Record:
    """Complete a record from the client's report and its capture. `crashed_at`: Unix time of the crash."""
    problems = result.problems()
    ended = float(report.get("started", 0.0)) + float(report.get("duration_s", 0.0))
    silence = report.get("longest_silence_ms")
    return replace(
        record,
        ok=bool(report["ok"]) and not problems,
        in_transfer=ended > crashed_at,
        error=report["error"] or "; ".join(problems) or None,
        wrong_bytes=int(report["wrong_bytes"]),
        broken=int(report.get("failed_connections", 0)),
        resets=len(result.resets_from_service),
        unseen_acknowledged=len(result.unseen_acknowledged),
        tshark_ack_lost=len(result.ack_lost_segments),
        dropped_by_capture=result.dropped_by_capture or 0,
        bytes=int(report["bytes"]),
        connect_ms=report.get("connect_ms"),
        silence_ms=None if silence is None else round(float(silence), 1),
        stall_ms=result.stall.ms if result.stall else None,
    )


@contextlib.contextmanager
def runner(settings: Settings, say: Callable[[str], None]) -> Iterator[CrashRunner]:
    """A runner with its lab, which is gone at the end."""
    with ReusedLab(settings.name, PORT, say) as lab:
        yield CrashRunner(settings, lab)


def campaign(tasks: Sequence[Task], settings: Settings, say: Callable[[str], None]) -> Campaign[Task, Record]:
    """The campaign of these crashes."""
    journal = Journal(settings.output / "campaign.jsonl", Record)
    return Campaign(tasks, journal, lambda: runner(settings, say), describe, "crashes", say)


def describe(record: Record) -> str:
    """One run in a line."""
    verdict = "ok" if not record.oddities() else f"ODD ({'; '.join(record.oddities())})"
    silence = "no silence measured" if record.silence_ms is None else f"silence {record.silence_ms:.0f} ms"
    return f"{record.cell}, {record.kind}: {verdict}; {record.crashed} crashed, {silence}"


def write_report(cells: Sequence[Cell], records: dict[str, Record], settings: Settings, docs: Path) -> None:
    """Write the section of docs/results/README.md, and the picture beside it."""
    from nfq_failover.lab.measure.plots import plot_silences

    wanted = len(plan(cells, 0))
    found = groups(cells, records)
    have = sum(len(rows) for rows in found.values())
    text = [
        "## Crashes at random moments",
        "",
        f"From `script/campaign`: {have} of {wanted} crashes done. Each is a power loss of the primary in a running "
        f"lab (the hosts' sequence numbers and timestamps scrambled, {settings.rate}, a heartbeat every "
        f"{settings.heartbeat_ms} ms, {HEARTBEAT_COUNT} missing ones are a crash) at a random moment of a transfer, "
        "followed by a restore; so each host is the primary in turn. The client checks every byte; resets are counted "
        "in its capture. The longest silence is what the client's application sat through while it waited for "
        "something, losses before and after the crash included.",
        "",
        table(cells, records),
    ]
    if have:
        docs.parent.mkdir(parents=True, exist_ok=True)
        picture = docs.parent / "silences"
        values = {f"{cell}: {kind}": silences(rows) for (cell, kind), rows in found.items() if rows}
        plot_silences(values, settings.detection_ms, picture, title=f"Longest silence of each of {have} crashes")
        text += ["", f"![Longest silences beside the detection time]({picture.name}.svg)"]
        last = max(record.finished for rows in found.values() for record in rows)
        text += ["", f"Kernel {platform.release()}, last run {last}."]
    write_section(docs, "campaign", "\n".join(text))


def add_parser(subparsers: Any) -> None:
    """Add `campaign` to the command line."""
    parser = subparsers.add_parser(
        "campaign",
        help="crash after crash in the lab, and a table; can be continued",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one crash of each sort instead of 10 or 20")
    parser.add_argument("--only", metavar="TEXT", help="only conditions whose name contains this")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this workload; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heartbeat-ms", type=int, default=50)
    parser.add_argument("--rate", default="200mbit", help="of the client's link, in tc's syntax")
    parser.add_argument("--name", default="nfqfcamp", help="of the lab")
    parser.add_argument("--output", type=Path, default=Path("results-output"), help="results and odd runs")
    parser.add_argument("--docs", type=Path, default=Path("docs/results/README.md"), help="file that holds the section")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report anew")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; exit code 0 if every crash went well, 1 if one did not, 2 misuse, 130 interrupted."""
    cells = [cell for cell in CELLS if arguments.only is None or arguments.only in cell.name]
    if not cells:
        names = "; ".join(cell.name for cell in CELLS)
        raise CommandError(f"No conditions match {arguments.only!r}. There are: {names}.")
    if arguments.quick:
        cells = [replace(cell, runs=1) for cell in cells]
    if os.geteuid() != 0 and not arguments.report_only:
        raise CommandError("The campaign makes network namespaces and needs root. Run: sudo script/campaign")
    settings = Settings(
        arguments.name, arguments.output, arguments.heartbeat_ms, arguments.rate, stall_timeout_s=STALL_TIMEOUT_S
    )
    tasks = [task for task in plan(cells, arguments.seed) if not arguments.kind or task.kind in arguments.kind]

    def say(text: str) -> None:
        print(text, flush=True)

    records, code = campaign(tasks, settings, say).command(arguments.report_only)
    write_report(cells, records, settings, arguments.docs)
    say(table(cells, records))
    return code or (0 if all_good(records.values()) and len(records) == len(tasks) else 1)
