"""Takeover after takeover on real kernels, by every kind of fault, in mixed workloads, on each tap, with loss.

    nfq-failover faults --count 1000 --seed 1            (script/faults)

It can be ended at any time and goes on where it was. Results: OUTPUT/faults.jsonl, report: OUTPUT/report.md;
an odd run keeps its capture, the daemons' logs and status, and its seeds in OUTPUT/anomalies/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab import power
from nfq_failover.lab.campaign.faults.judge import Evidence, judge
from nfq_failover.lab.campaign.faults.plan import ALL_PORTS, BY_NAME, SPENT_PORT, WORKLOAD_S, Record, Task, plan
from nfq_failover.lab.campaign.faults.report import describe, write_report, write_summary
from nfq_failover.lab.campaign.journal import Campaign, Journal, Settings, commit_of
from nfq_failover.lab.driver import ReusedLab
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Cut, Options
from nfq_failover.lab.testbed import Workload, wait_until

STALL_TIMEOUT_S: Final = 15.0
_TAKEOVER_DEADLINE_S: Final = 15.0
_MEND_DEADLINE_S: Final = 20.0
_SPENT_STALL_S: Final = 2.5
# A Python client needs about this long to start.
_CLIENT_START_S: Final = 0.35


class FaultRunner:
    """The runner of the campaign of faults."""

    def __init__(self, settings: Settings, lab: ReusedLab) -> None:
        self._settings = settings
        self._lab = lab
        self._driver = lab.driver

    def run(self, task: Task) -> Record:
        """Do the task, judge it, and leave a protected pair behind. What goes wrong is in the record."""
        began = time.monotonic()
        record = _blank(task, self._settings)
        with tempfile.TemporaryDirectory(prefix="nfq-failover-faults-") as scratch:
            capture = Path(scratch) / "client.pcap"
            try:
                self._prepare(task)
                record = replace(record, lab_seed=self._lab.seed)
                evidence, missing = self._observe(task, capture)
                with ThreadPoolExecutor(1) as beside:
                    judgement = beside.submit(judge, task, record, evidence, capture, missing)
                    trouble = self._mend()
                    record = judgement.result()
            except (LabError, CommandError) as error:
                trouble = f"lab: {error}"
            if trouble:
                record = replace(record, violations=[*record.violations, trouble])
            finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = replace(record, duration_s=round(time.monotonic() - began, 1), finished=finished)
            if record.oddities():
                place = self._settings.output / "anomalies" / f"{task.seed}-{task.number}-{task.fault.name}"
                self._lab.keep(place, asdict(record), record.oddities(), capture)
            if record.violations:
                self._lab.spoilt()
        return record

    def _prepare(self, task: Task) -> None:
        conditions = task.conditions
        options = Options(
            tap=conditions.tap,
            heartbeat_ms=self._settings.heartbeat_ms,
            rate=self._settings.rate,
            loss=conditions.loss,
            tap_loss=conditions.tap_loss,
        )
        self._lab.ready(options, task.key, conditions.name)

    # ------------------------------------------------------------------------------------------------- one task

    def _observe(self, task: Task, capture: Path) -> tuple[Evidence, int]:
        evidence = Evidence(self._driver.topology, self._driver.lab.resolve("primary"))
        with self._driver.capture(capture) as running:
            if task.fault.name == "rejoin":
                self._backup_lost(task, evidence)
            if task.fault.name == "twice":
                self._twice(task, evidence)
            else:
                self._once(task, evidence)
            self._snapshot(capture)
        return evidence, running.counts.missing if running.counts else 0

    def _once(self, task: Task, evidence: Evidence) -> None:
        known = self._connections()
        with self._started(task.workload()) as workload, self._latecomers(task) as late:
            time.sleep(task.delay_s)
            if task.mix not in ("opening", "ending"):
                evidence.found_unprotected(self._unprotected(known))
            self._strike(task, evidence)
            evidence.promise(self._result(workload), task.fault.stall_ms)
            for client in late():
                evidence.promise(self._result(client), task.fault.stall_ms)

    def _backup_lost(self, task: Task, evidence: Evidence) -> None:
        """The backup goes down and comes back while clients are served, for whom nothing may happen."""
        with self._started(task.workload()) as workload:
            time.sleep(task.delay_s)
            backup = self._driver.lab.resolve("backup")
            self._driver.crash(backup)
            evidence.promise(self._result(workload), task.fault.stall_ms)
        self._driver.restore(backup)

    def _twice(self, task: Task, evidence: Evidence) -> None:
        """The connections that outlive the first takeover are not protected at the second."""
        words = ["mixed", "--connections", "4", "--size", "50k", "--rate", "20", "--port", SPENT_PORT]
        words += ["--seconds", "60", "--seed", str(task.number + 900_001), "--stall-timeout", str(_SPENT_STALL_S)]
        with self._driver.start_workload(words) as spent:
            time.sleep(task.delay_s)
            self._strike(task, evidence)
            self._driver.restore(evidence.crashed[0])
            time.sleep(0.2)
            self._once(task, evidence)
            report = self._result(spent)
        evidence.spent.append(report)
        for row in report.get("each", []):
            if float(row["started"]) + float(row["duration_s"]) < evidence.faults_at[-1]:
                evidence.violations.append(f"a connection ended between the two takeovers: {row['error']}")
        if "each" not in report:
            evidence.violations.append(f"the first client did not report: {report['error']}")

    def _strike(self, task: Task, evidence: Evidence) -> None:
        """Make the fault happen, and wait for the takeover that has to follow."""
        lab, topology = self._driver.lab, self._driver.topology
        primary = lab.resolve("primary")
        expected = topology.other(evidence.crashed[-1]) if evidence.crashed else evidence.primary
        if primary != expected:
            evidence.violations.append(f"{primary} had become the primary before the fault")
        survivor = topology.other(primary)
        evidence.struck(primary, self._fault(task, primary))
        try:
            wait_until(
                lambda: self._driver.state(survivor) == "unprotected" and not power.is_on(lab.name, primary),
                _TAKEOVER_DEADLINE_S,
                f"{survivor} did not take over",
            )
        except LabError as error:
            told = {node: row["state"] for node, row in lab.status()["nodes"].items()}
            evidence.violations.append(f"{error} The hosts are {told}")

    def _fault(self, task: Task, primary: str) -> float:
        """Make it happen; returns the Unix time."""
        lab = self._driver.lab
        now = time.time()
        if task.fault.name in ("kill", "stop"):
            os.kill(lab.daemon_pid(primary), signal.SIGKILL if task.fault.name == "kill" else signal.SIGSTOP)
        elif task.fault.name in ("cut", "mute"):
            lab.cut(Cut(primary, None, "out" if task.fault.name == "mute" else None))
        elif task.fault.name == "sync":
            lab.cut(Cut(task.draw.choice(self._driver.hosts), "sync"))
        elif task.fault.name == "pause":
            with self._paused(self._driver.topology.other(primary), task.draw.uniform(0.05, 0.15)) as half_s:
                time.sleep(half_s)
                return self._driver.crash(primary)
        else:
            return self._driver.crash(primary)
        return now

    # ---------------------------------------------------------------------------------------------- the pieces

    @contextlib.contextmanager
    def _paused(self, node: str, seconds: float) -> Iterator[float]:
        """The node's daemon stands still; what is done inside begins in the middle of that time."""
        pid = self._driver.lab.daemon_pid(node)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield seconds / 2
            time.sleep(seconds / 2)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _started(self, arguments: list[str]) -> Workload:
        return self._driver.start_workload([*arguments, "--stall-timeout", str(self._settings.stall_timeout_s)])

    def _result(self, workload: Workload) -> dict[str, Any]:
        return workload.result(WORKLOAD_S + 4 * self._settings.stall_timeout_s)

    @contextlib.contextmanager
    def _latecomers(self, task: Task) -> Iterator[Callable[[], list[Workload]]]:
        """A client that opens its connections about when the fault comes, if the mix wants one.

        Yields what waits until they are open.
        """
        started: list[Workload] = []
        failed: list[NfqFailoverError] = []
        wait_s = max(0.0, task.delay_s - _CLIENT_START_S + task.draw.uniform(-0.25, 0.35))

        def start() -> None:
            time.sleep(wait_s)
            try:
                started.append(self._started(task.latecomers()))
            except LabError as error:
                failed.append(error)

        thread = threading.Thread(target=start)

        def late() -> list[Workload]:
            if thread.ident is not None:
                thread.join()
            if failed:
                raise failed[0]
            return started

        if task.mix == "opening":
            thread.start()
        try:
            yield late
        finally:
            if thread.ident is not None:
                thread.join()
            for workload in started:
                workload.stop()

    def _connections(self) -> set[str]:
        return {str(row["client"]) for row in self._driver.lab.status()["connections"]}

    def _unprotected(self, known: set[str]) -> list[str]:
        """Why connections that are not among `known` are not protected."""
        rows = self._driver.lab.status()["connections"]
        return [str(row["reason"]) for row in rows if row["client"] not in known and not row["protected"]]

    def _snapshot(self, capture: Path) -> None:
        """Write down what the daemons say of themselves now, beside the capture."""
        answers = {host: self._driver.status(host) for host in self._driver.hosts}
        capture.with_name(f"{capture.name}.status.json").write_text(json.dumps(answers, indent=1))

    def _mend(self) -> str | None:
        """Get back to a protected pair; returns why not, if that fails."""
        lab = self._driver.lab
        try:
            for node in {cut.node for cut in lab.store.read().cuts}:
                lab.heal(node)
            for host in self._driver.hosts:
                if not power.is_on(lab.name, host):
                    self._driver.restore(host)
            wait_until(self._is_protected, _MEND_DEADLINE_S, "The pair was not protected again")
        except (LabError, CommandError) as error:
            return f"rejoin: {error}"
        return None

    def _is_protected(self) -> bool:
        states = [str(self._driver.state(host)) for host in self._driver.hosts]
        return sorted(states) == ["protected", "shadowing"]


def _blank(task: Task, settings: Settings) -> Record:
    return Record(
        key=task.key,
        number=task.number,
        seed=task.seed,
        lab_seed=0,
        fault=task.fault.name,
        conditions=task.conditions.name,
        mix=task.mix,
        detection_ms=settings.detection_ms,
        delay_s=task.delay_s,
        commit=settings.commit,
    )


@contextlib.contextmanager
def runner(settings: Settings, say: Callable[[str], None]) -> Iterator[FaultRunner]:
    """A runner with its lab, which is gone at the end."""
    with ReusedLab(settings.name, ALL_PORTS, say) as lab:
        yield FaultRunner(settings, lab)


def campaign(tasks: Sequence[Task], settings: Settings, say: Callable[[str], None]) -> Campaign[Task, Record]:
    """The campaign of these tasks."""
    journal = Journal(settings.output / "faults.jsonl", Record)
    return Campaign(tasks, journal, lambda: runner(settings, say), describe, "runs", say)


def add_parser(subparsers: Any) -> None:
    """Add `faults` to the command line."""
    parser = subparsers.add_parser(
        "faults",
        help="takeover after takeover in the lab, by all faults; a report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    """Run it; exit code 0 if the contract held in every run, 1 if not, 2 misuse, 130 interrupted."""
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
    commit = commit_of(Path(__file__).parent)
    settings = Settings(
        arguments.name, output, arguments.heartbeat_ms, arguments.rate, stall_timeout_s=STALL_TIMEOUT_S, commit=commit
    )

    def say(text: str) -> None:
        print(text, flush=True)

    records, code = campaign(tasks, settings, say).command(arguments.report_only)
    say(f"report: {write_report(records, output, arguments.seed, arguments.count)}")
    if arguments.docs:
        write_summary(records, arguments.docs, arguments.seed, arguments.count)
    complete = len(records) == len(tasks)
    return code or (0 if complete and not any(record.violations for record in records.values()) else 1)
