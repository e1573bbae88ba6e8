"""Takeover after takeover on real kernels, by every kind of fault, in mixed workloads, on each tap, with loss.

    nfq-failover faults --count 1000 --seed 1            (script/faults)

It can be ended at any time and goes on where it was. Results: OUTPUT/faults.jsonl, report: OUTPUT/report.md;
an odd run keeps its capture, the daemons' logs and status, and its seeds in OUTPUT/anomalies/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab.campaign.crashes.plan import Journal
from nfq_failover.lab.campaign.crashes.run import progress
from nfq_failover.lab.campaign.faults.plan import BY_NAME, Record, Task, plan
from nfq_failover.lab.campaign.faults.report import write_report, write_summary
from nfq_failover.lab.campaign.faults.run import FaultRunner, Settings
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible


def run_tasks(tasks: Sequence[Task], settings: Settings, say: Callable[[str], None]) -> dict[str, Record]:
    """Runs what the journal does not have yet; returns the records of all tasks by key."""
    journal = Journal(settings.output / "faults.jsonl", Record)
    records = journal.read()
    pending = [task for task in tasks if task.key not in records]
    say(f"{len(tasks) - len(pending)} of {len(tasks)} runs are done already; {len(pending)} to go")
    began = time.monotonic()
    with FaultRunner(settings, say) as runner:
        for index, task in enumerate(pending):
            record = runner.run(task)
            journal.append(record)
            records[task.key] = record
            done = len(tasks) - len(pending) + index + 1
            left_s = (time.monotonic() - began) / (index + 1) * (len(pending) - index - 1)
            say(f"{progress(done, len(tasks))} {describe(record)}; {left_s / 60:.0f} min to go")
    return _of_tasks(tasks, records)


def describe(record: Record) -> str:
    """One run in a line."""
    verdict = "ok" if not record.oddities() else "BROKEN" if record.violations else "odd"
    silence = "" if record.silence_ms is None else f", silence {record.silence_ms:.0f} ms"
    rest = f" ({'; '.join(record.oddities())})" if record.oddities() else ""
    return f"{record.fault}, {record.conditions}, {record.mix}: {verdict}{rest}{silence}"


def _of_tasks(tasks: Sequence[Task], records: dict[str, Record]) -> dict[str, Record]:
    return {task.key: records[task.key] for task in tasks if task.key in records}


def add_parser(subparsers: Any) -> None:
    """Adds `faults` to the command line."""
    parser = subparsers.add_parser("faults", help="takeover after takeover in the lab, by all faults; a report")
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--count", type=int, default=1000, help="takeovers (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is random")
    parser.add_argument("--output", type=Path, default=Path("results-output/faults"), help="results, report, anomalies")
    parser.add_argument("--fault", action="append", choices=tuple(BY_NAME), help="only this fault; may be repeated")
    parser.add_argument("--only-number", type=int, metavar="N", help="only the run of this number, again")
    parser.add_argument("--heartbeat-ms", type=int, default=100)
    parser.add_argument("--rate", default="200mbit", help="of the client's link, in tc's syntax")
    parser.add_argument("--name", default="nfqffault", help="of the lab")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="also put the summary into this Markdown file")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report anew")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 if the contract held in every run, 1 if not, 2 misuse, 130 interrupted."""
    if os.geteuid() != 0 and not arguments.report_only:
        raise CommandError("The campaign makes network namespaces and needs root. Run: sudo script/faults")
    if arguments.count < 1:
        raise CommandError("--count must be at least 1.")
    tasks = plan(arguments.count, arguments.seed, arguments.fault or tuple(BY_NAME))
    output = arguments.output
    if arguments.only_number is not None:
        tasks = [task for task in tasks if task.number == arguments.only_number]
        if not tasks:
            raise CommandError(f"The plan of {arguments.count} takeovers has no run {arguments.only_number}.")
        output = output / f"again-{int(time.time())}"
    settings = Settings(
        arguments.name, output, arguments.heartbeat_ms, arguments.rate, commit=_commit(Path(__file__).parent)
    )

    def say(text: str) -> None:
        print(text, flush=True)

    code = 0
    journal = Journal(output / "faults.jsonl", Record)
    try:
        with interruptible():
            records = _of_tasks(tasks, journal.read()) if arguments.report_only else run_tasks(tasks, settings, say)
    except Interrupted:
        say("Interrupted; the lab is down. Run it again to go on.")
        records = _of_tasks(tasks, journal.read())
        code = EXIT_CODE
    say(f"report: {write_report(records, output, arguments.seed, arguments.count)}")
    if arguments.docs:
        write_summary(records, arguments.docs, arguments.seed, arguments.count)
    complete = len(records) == len(tasks)
    return code or (0 if complete and not any(record.violations for record in records.values()) else 1)


def _commit(directory: Path) -> str:
    """The checkout's commit, with a `+` if it has changes; empty outside a checkout."""
    try:
        command = ["git", "-C", str(directory), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m nfq_failover.lab.campaign.faults.command ...`, the same without the rest of the command line."""
    parser = argparse.ArgumentParser(prog="nfq-failover")
    add_parser(parser.add_subparsers(required=True))
    try:
        return run(parser.parse_args(["faults", *(sys.argv[1:] if argv is None else argv)]))
    except NfqFailoverError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
