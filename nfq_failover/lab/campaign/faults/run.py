"""One task of the campaign of faults after the other, in a lab that lives on: fault, takeover, judgement, rejoin."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from nfq_failover.errors import CommandError, NfqFailoverError
from nfq_failover.lab import nodes, power
from nfq_failover.lab.campaign.campaign_lab import CampaignLab
from nfq_failover.lab.campaign.driver import Workload
from nfq_failover.lab.campaign.faults.judge import Evidence, judge
from nfq_failover.lab.campaign.faults.plan import ALL_PORTS, SPENT_PORT, WORKLOAD_S, Record, Task
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.nodes import other, wait_until
from nfq_failover.lab.state import Cut, Options
from nfq_failover.lab.topology import SERVERS

HEARTBEAT_COUNT: Final = 3  # the daemon's default
_TAKEOVER_DEADLINE_S: Final = 15.0
_MEND_DEADLINE_S: Final = 20.0
_SPENT_STALL_S: Final = 2.5
# A Python client needs about so long to start.
_CLIENT_START_S: Final = 0.35


@dataclass(frozen=True, slots=True)
class Settings:
    """What all tasks share. `stall_timeout_s`: when a client gives a silent connection up."""

    name: str
    output: Path
    heartbeat_ms: int = 100
    rate: str = "200mbit"
    stall_timeout_s: float = 15.0
    commit: str = ""

    @property
    def detection_ms(self) -> int:
        """How long the backup waits before it takes the primary for dead."""
        return self.heartbeat_ms * HEARTBEAT_COUNT


class FaultRunner:
    """Runs tasks. A context manager: the lab is gone at its end."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._lab = CampaignLab(settings.name, ALL_PORTS, say)
        self._driver = self._lab.driver

    def __enter__(self) -> FaultRunner:
        self._lab.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lab.__exit__(kind, error, trace)

    def run(self, task: Task) -> Record:
        """The task, its judgement, and a protected pair after it. What goes wrong is in the record."""
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
        evidence = Evidence(self._driver.lab.resolve("primary"))
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
                evidence.unprotected += self._unprotected(known)
            self._strike(task, evidence)
            evidence.promised.append((self._result(workload), task.fault.stall_ms))
            evidence.promised += [(self._result(client), task.fault.stall_ms) for client in late()]

    def _backup_lost(self, task: Task, evidence: Evidence) -> None:
        """The backup goes down and comes back while clients are served, for whom nothing may happen."""
        with self._started(task.workload()) as workload:
            time.sleep(task.delay_s)
            backup = self._driver.lab.resolve("backup")
            self._driver.crash(backup)
            evidence.promised.append((self._result(workload), task.fault.stall_ms))
        self._driver.lab.restore(backup)

    def _twice(self, task: Task, evidence: Evidence) -> None:
        """The connections that outlive the first takeover are not protected at the second."""
        words = ["mixed", "--connections", "4", "--size", "50k", "--rate", "20", "--port", SPENT_PORT]
        words += ["--seconds", "60", "--seed", str(task.number + 900_001), "--stall-timeout", str(_SPENT_STALL_S)]
        with self._driver.start_workload(words) as spent:
            time.sleep(task.delay_s)
            self._strike(task, evidence)
            self._driver.lab.restore(evidence.crashed[0])
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
        """The fault, and the takeover that has to follow."""
        lab = self._driver.lab
        primary = lab.resolve("primary")
        expected = other(evidence.crashed[-1]) if evidence.crashed else evidence.primary
        if primary != expected:
            evidence.violations.append(f"{primary} had become the primary before the fault")
        survivor = other(primary)
        evidence.faults_at.append(self._fault(task, primary))
        evidence.crashed += primary
        try:
            wait_until(
                lambda: (
                    (nodes.ask_daemon(lab.store, survivor) or {}).get("state") == "unprotected"
                    and not power.is_on(lab.name, primary)
                ),
                _TAKEOVER_DEADLINE_S,
                f"{survivor} did not take over",
            )
        except LabError as error:
            told = {node: row["state"] for node, row in lab.status()["nodes"].items()}
            evidence.violations.append(f"{error} The hosts are {told}")

    def _fault(self, task: Task, primary: str) -> float:
        """Makes it happen; returns the Unix time."""
        lab = self._driver.lab
        now = time.time()
        if task.fault.name in ("kill", "stop"):
            os.kill(lab.daemon_pid(primary), signal.SIGKILL if task.fault.name == "kill" else signal.SIGSTOP)
        elif task.fault.name in ("cut", "mute"):
            lab.cut(Cut(primary, None, "out" if task.fault.name == "mute" else None))
        elif task.fault.name == "sync":
            lab.cut(Cut(task.draw.choice(SERVERS), "sync"))
        elif task.fault.name == "pause":
            with self._paused(other(primary), task.draw.uniform(0.05, 0.15)) as half_s:
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
        """What both daemons say of themselves now, beside the capture."""
        answers = {node: nodes.ask_daemon(self._driver.lab.store, node) for node in SERVERS}
        capture.with_name(f"{capture.name}.status.json").write_text(json.dumps(answers, indent=1))

    def _mend(self) -> str | None:
        """Back to a protected pair; why not, if that fails."""
        lab = self._driver.lab
        try:
            for node in {cut.node for cut in lab.store.read().cuts}:
                lab.heal(node)
            for node in SERVERS:
                if not power.is_on(lab.name, node):
                    lab.restore(node)
            wait_until(self._is_protected, _MEND_DEADLINE_S, "The pair was not protected again")
        except (LabError, CommandError) as error:
            return f"rejoin: {error}"
        return None

    def _is_protected(self) -> bool:
        states = [(nodes.ask_daemon(self._driver.lab.store, node) or {}).get("state") for node in SERVERS]
        return sorted(map(str, states)) == ["protected", "shadowing"]


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
