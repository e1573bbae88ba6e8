"""Crash after crash in a running lab, with every workload, on each tap, with loss; a table at the end.

    nfq-failover campaign            (script/campaign)

It can be ended at any time and goes on where it was. The results are in results-output/campaign.jsonl; a run that was
not as it should be keeps its capture, the daemons' logs and its seeds in results-output/odd/.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab.campaign.campaign_lab import CampaignLab
from nfq_failover.lab.campaign.crashes.plan import (
    CELLS,
    KINDS,
    WORKLOAD_S,
    Cell,
    Journal,
    Record,
    Task,
    all_good,
    groups,
    plan,
    silences,
    table,
    write_section,
)
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible
from nfq_failover.lab.measure.verdict import Measurement, measure, read_capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import SERVICE_ADDRESS

HEARTBEAT_COUNT: Final = 3  # the daemon's default
PORT: Final = "7000"


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs of a campaign share. `stall_timeout_s`: when a client gives a silent connection up."""

    name: str
    output: Path
    heartbeat_ms: int = 50
    rate: str = "200mbit"
    stall_timeout_s: float = 30.0

    @property
    def detection_ms(self) -> int:
        """How long the backup waits before it takes the primary for dead."""
        return self.heartbeat_ms * HEARTBEAT_COUNT


class RunFailed(NfqFailoverError):
    """A run that could not be done in a lab that had come up."""


class Runner:
    """Runs tasks in one lab, which it builds when the conditions change or the lab has gone wrong."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._lab = CampaignLab(settings.name, PORT, say)
        self._driver = self._lab.driver

    def __enter__(self) -> Runner:
        self._lab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lab.__exit__(kind, error, trace)

    def run(self, task: Task) -> Record:
        """One crash and the restore after it. What goes wrong is in the record; CommandError: no lab can be built."""
        record = Record(task.key, task.cell.name, task.kind, task.seed, 0, self._settings.detection_ms)
        with tempfile.TemporaryDirectory(prefix="nfq-failover-campaign-") as scratch:
            capture = Path(scratch) / "client.pcap"
            try:
                self._prepare(task)
                record = replace(record, lab_seed=self._lab.seed, delay_s=round(task.delay_s, 3))
                record = self._crash(task, record, capture)
                self._driver.lab.restore(record.crashed or "a")
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
        return judge(record, report, crashed_at, measure(read_capture(capture, SERVICE_ADDRESS), missing))

    def _keep(self, record: Record, capture: Path) -> None:
        place = self._settings.output / "odd" / record.key.replace("/", "-").replace(" ", "_")
        self._lab.keep(place, asdict(record), record.oddities(), capture)


def judge(record: Record, report: dict[str, Any], crashed_at: float, result: Measurement) -> Record:
    """Completes a record from the client's report and its capture. `crashed_at`: Unix time of the crash."""
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


def run_campaign(tasks: Sequence[Task], settings: Settings, say: Callable[[str], None]) -> dict[str, Record]:
    """Runs what the journal does not have yet; returns all records by key."""
    journal = Journal(settings.output / "campaign.jsonl", Record)
    records = journal.read()
    pending = [task for task in tasks if task.key not in records]
    say(f"{len(tasks) - len(pending)} of {len(tasks)} crashes are done already; {len(pending)} to go")
    began = time.monotonic()
    with Runner(settings, say) as runner:
        for index, task in enumerate(pending):
            record = runner.run(task)
            journal.append(record)
            records[task.key] = record
            done = len(tasks) - len(pending) + index + 1
            left_s = (time.monotonic() - began) / (index + 1) * (len(pending) - index - 1)
            say(f"{progress(done, len(tasks))} {describe(record)}; {left_s / 60:.0f} min to go")
    return records


def progress(done: int, total: int) -> str:
    """`[####......]  40/100`."""
    full = 20 * done // total
    return f"[{'#' * full}{'.' * (20 - full)}] {done:>{len(str(total))}}/{total}"


def describe(record: Record) -> str:
    """One run in a line."""
    verdict = "ok" if not record.oddities() else f"ODD ({'; '.join(record.oddities())})"
    silence = "no silence measured" if record.silence_ms is None else f"silence {record.silence_ms:.0f} ms"
    return f"{record.cell}, {record.kind}: {verdict}; {record.crashed} crashed, {silence}"


def write_report(cells: Sequence[Cell], records: dict[str, Record], settings: Settings, docs: Path) -> None:
    """The section of docs/results/README.md, and the picture beside it."""
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
    """Adds `campaign` to the command line."""
    parser = subparsers.add_parser("campaign", help="crash after crash in the lab, and a table; can be continued")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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
    """Exit code 0 if every crash went well, 1 if one did not, 2 misuse, 130 interrupted."""
    cells = [cell for cell in CELLS if arguments.only is None or arguments.only in cell.name]
    if not cells:
        names = "; ".join(cell.name for cell in CELLS)
        raise CommandError(f"No conditions match {arguments.only!r}. There are: {names}.")
    if arguments.quick:
        cells = [replace(cell, runs=1) for cell in cells]
    if os.geteuid() != 0 and not arguments.report_only:
        raise CommandError("The campaign makes network namespaces and needs root. Run: sudo script/campaign")
    settings = Settings(arguments.name, arguments.output, arguments.heartbeat_ms, arguments.rate)
    tasks = [task for task in plan(cells, arguments.seed) if not arguments.kind or task.kind in arguments.kind]

    def say(text: str) -> None:
        print(text, flush=True)

    code = 0
    try:
        with interruptible():
            records = (
                Journal(settings.output / "campaign.jsonl", Record).read()
                if arguments.report_only
                else run_campaign(tasks, settings, say)
            )
    except Interrupted:
        say("Interrupted; the lab is down. Run it again to go on.")
        records = Journal(settings.output / "campaign.jsonl", Record).read()
        code = EXIT_CODE
    wanted = {task.key for task in tasks}
    shown = {key: record for key, record in records.items() if key in wanted}
    write_report(cells, shown, settings, arguments.docs)
    say(table(cells, shown))
    return code or (0 if all_good(shown.values()) and len(shown) == len(tasks) else 1)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m nfq_failover.lab.campaign.crashes.run ...`, the same without the rest of the command line."""
    parser = argparse.ArgumentParser(prog="nfq-failover")
    add_parser(parser.add_subparsers(required=True))
    try:
        return run(parser.parse_args(["campaign", *(sys.argv[1:] if argv is None else argv)]))
    except NfqFailoverError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
