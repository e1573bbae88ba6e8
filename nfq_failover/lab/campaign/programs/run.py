"""Real programs through a crash: the pair in the lab, a server and a client as the distribution has them, a power loss.

    nfq-failover programs            (script/programs)

It can be ended at any time and goes on where it was. The results are in results-output/programs.jsonl; a run that was
not as it should be keeps its capture, the daemons' logs and what the client got in results-output/programs/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.journal import Campaign, Journal, commit_of
from nfq_failover.lab.campaign.programs import databases, files, messages, web
from nfq_failover.lab.campaign.programs.case import BLOB_BYTES, PORT, PORTS, Program
from nfq_failover.lab.campaign.programs.judge import (
    AS_SAID,
    NOT_DONE,
    RIGHT,
    UNSEEN,
    Record,
    counted,
    judge,
    losses,
    reasons,
    reset_ports,
    silence_ms,
)
from nfq_failover.lab.campaign.programs.report import describe, table, write_report
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.measure.verdict import read_capture
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Options

PROGRAMS: Final[tuple[Program, ...]] = (
    *web.PROGRAMS,
    *databases.PROGRAMS,
    *messages.PROGRAMS,
    *files.PROGRAMS,
)
TAPS: Final = ("clone", "multicast")
AIM_LEAST_MS: Final = 3
ASK_S: Final = 0.05  # how long before the crash status is asked
CLIENT_S: Final = 75.0
PREPARE_S: Final = 120.0
_HOST_PRELUDE: Final = 'umask 022; cd "$(mktemp -d "$CASE/host-XXXXXX")"; chmod 755 .\n'
_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a program. `seed` decides when the crash comes; if `within_ms` is not 0, that many milliseconds after
    a full second at most."""

    key: str
    program: Program
    tap: str
    seed: int
    within_ms: int = 0

    def wait(self, now: float) -> tuple[float, float]:
        """When the crash comes, for a client that has started at the Unix time `now`; and when to ask what is protected
        just before."""
        dice = random.Random(self.seed)
        at = now + self.program.warm_s + dice.random() * self.program.spread_s
        if self.within_ms:
            at = math.ceil(at) + dice.uniform(AIM_LEAST_MS, max(self.within_ms, AIM_LEAST_MS)) / 1000
        return at, at - ASK_S


def plan(programs: Sequence[Program], runs: int, seed: int, within_ms: int = 0) -> list[Task]:
    """The tasks: every program once, then every one again, so that an early end has something of each."""
    aimed = f"-within-{within_ms}-ms" if within_ms else ""
    return [
        Task(f"{program.key}{aimed}/{number}", program, TAPS[number % len(TAPS)], seed + number, within_ms)
        for number in range(runs)
        for program in programs
    ]


def missing(program: Program) -> list[str]:
    """The programs that a case needs and that are not there."""
    return [need for need in program.needs if shutil.which(need, path=f"{os.environ.get('PATH', '')}:{_PATH}") is None]


def environment(data: Path, case: Path, service: str) -> dict[str, str]:
    """What the scripts know."""
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    own = {"VIP": service, "PORT": str(PORT), "DATA": str(data), "CASE": str(case), "HOME": str(case)}
    return {**os.environ, **own, "PATH": path, "LC_ALL": "C"}


def make_data(data: Path, script: str, env: dict[str, str]) -> None:
    """The files that a program serves. Raises LabError."""
    data.mkdir(mode=0o755)
    (data / "blob").write_bytes(hashlib.shake_128(b"blob").digest(BLOB_BYTES))
    (data / "small").write_text("".join(f"{line:09}\n" for line in range(1000)))
    if script:
        _shell(script, data, env, PREPARE_S, "the data could not be made")


def _shell(script: str, cwd: Path, env: dict[str, str], timeout_s: float, what: str) -> str:
    try:
        done = subprocess.run(
            ["sh", "-euc", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{what}: not within {timeout_s:g} s") from None
    if done.returncode:
        raise LabError(f"{what}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout.strip()


class ProgramRunner:
    """Carries the runs out, each in a lab of its own."""

    def __init__(self, name: str, output: Path) -> None:
        self._driver = LabDriver(name)
        self._output = output
        self._commit = commit_of(Path(__file__).parent)

    def run(self, task: Task) -> Record:
        """One run; whatever goes wrong in it is in the record."""
        program = task.program
        record = Record(task.key, program.name, "", task.tap, task.seed, NOT_DONE, commit=self._commit)
        with tempfile.TemporaryDirectory(prefix="nfq-failover-programs-") as scratch, self._driver:
            case = Path(scratch)
            case.chmod(0o755)
            try:
                record = self._through_a_crash(task, record, case)
            except (LabError, CommandError) as error:
                record = replace(record, why=str(error).splitlines()[0][:200] if str(error) else repr(error))
            if record.verdict != RIGHT:
                self._keep(record, case)
        return replace(record, finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def _through_a_crash(self, task: Task, record: Record, case: Path) -> Record:
        program, driver = task.program, self._driver
        driver.clear()
        env = environment(case / "data", case, driver.service)
        record = replace(record, version=_shell(program.version, case, env, PREPARE_S, "no version").splitlines()[0])
        make_data(case / "data", program.prepare, env)
        driver.up(Options(tap=task.tap, rate=program.rate, ports=(PORTS,)), task.seed)
        driver.lab.serve(["sh", "-euc", _HOST_PRELUDE + program.serve], str(case), env)
        client, capture = case / "client", case / "client.pcap"
        client.mkdir(mode=0o755)
        with driver.capture(capture), self._client(program.client, client, env) as process:
            at, ask_at = task.wait(time.time())
            _sleep_until(ask_at)
            if process.poll() is not None:
                raise LabError(f"the client ended before the crash: {_tail(case / 'client.log')}")
            crashed = driver.lab.resolve("primary")
            before = reasons(driver.lab.status()["connections"])
            _sleep_until(at)
            crashed_at = driver.crash(crashed)
            code = _ended(process, CLIENT_S)
        packets = read_capture(capture, driver.service)
        lost = reset_ports(packets, crashed_at)
        wrong = ""
        if code == 0:
            wrong = self._check(program.check, client, env)
        verdict, why = judge(code, wrong, before, lost)
        return replace(
            record,
            verdict=verdict,
            why=why,
            before=counted(before.values()),
            lost=counted(before.get(port, UNSEEN) for port in lost),
            client_code=code,
            wrong=wrong or ("" if code == 0 else _tail(case / "client.log")),
            crashed=crashed,
            silence_ms=silence_ms(packets, crashed_at),
        )

    @contextlib.contextmanager
    def _client(self, script: str, cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """The client, which is gone at the end, with all that it has started."""
        with (cwd.parent / "client.log").open("wb") as log:
            process = subprocess.Popen(
                self._driver.in_client("sh", "-euc", script),
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @staticmethod
    def _check(script: str, cwd: Path, env: dict[str, str]) -> str:
        """What is wrong with what the client has got; empty if nothing is."""
        done = subprocess.run(["sh", "-euc", script], cwd=cwd, env=env, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else (done.stdout.strip()[-300:] or "the check says no")

    def _keep(self, record: Record, case: Path) -> None:
        place = self._output / "programs" / record.key.replace("/", "-")
        shutil.rmtree(place, ignore_errors=True)
        self._driver.keep_logs(place)
        for path in (*case.glob("client.*"), *(p for p in case.glob("client/*") if p.is_file())):
            if path.stat().st_size < BLOB_BYTES:
                shutil.copy(path, place)
        (place / "record.json").write_text(json.dumps(asdict(record), indent=2) + "\n")


def _sleep_until(moment: float) -> None:
    """Sleep until a Unix time."""
    time.sleep(max(moment - time.time(), 0.0))


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """The exit code, or None if it does not end."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _tail(path: Path) -> str:
    return path.read_text(errors="replace").strip()[-200:] if path.exists() else ""


@contextlib.contextmanager
def runner(name: str, output: Path) -> Iterator[ProgramRunner]:
    """A runner."""
    yield ProgramRunner(name, output)


def add_parser(subparsers: Any) -> None:
    """Add `programs` to the command line."""
    parser = subparsers.add_parser(
        "programs",
        help="real programs through a crash in the lab, and a table; can be continued",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=4, help="of each program (4)")
    parser.add_argument("--only", metavar="TEXT", help="only programs whose name contains this")
    parser.add_argument("--list", action="store_true", help="say what there is, and what is missing, and run nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--after-second",
        type=int,
        default=0,
        metavar="MS",
        help="crash so many milliseconds after a full second at most, when clocks have just changed (at any moment)",
    )
    parser.add_argument("--name", default="nfqfprog", help="of the lab")
    parser.add_argument("--output", type=Path, default=Path("results-output"), help="results and odd runs")
    parser.add_argument("--docs", type=Path, default=Path("docs/results/README.md"), help="file that holds the section")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the report anew")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; exit code 0 if every promise was kept, 1 if one was not, 2 misuse, 130 interrupted."""
    programs = [p for p in PROGRAMS if arguments.only is None or arguments.only in p.name]
    if not programs:
        raise CommandError(f"No program matches {arguments.only!r}. There are: {'; '.join(p.name for p in PROGRAMS)}.")
    absent = [program for program in programs if missing(program)]
    packages = sorted({package for program in absent for package in program.packages})

    def say(text: str) -> None:
        print(text, flush=True)

    for program in absent:
        say(f"not run: {program.name}: there is no {', '.join(missing(program))}")
    if packages:
        say(f"apt-get install --no-install-recommends {' '.join(packages)}")
    if arguments.list:
        for program in programs:
            say(program.name)
        return 0
    if os.geteuid() != 0 and not arguments.report_only:
        raise CommandError("The programs run in network namespaces, which needs root. Run: sudo script/programs")
    return _campaign([p for p in programs if p not in absent], [p.name for p in absent], arguments, say)


def _campaign(
    programs: Sequence[Program], absent: Sequence[str], arguments: argparse.Namespace, say: Callable[[str], None]
) -> int:
    journal = Journal(arguments.output / "programs.jsonl", Record)
    tasks = plan(programs, arguments.runs, arguments.seed, arguments.after_second)
    campaign = Campaign(tasks, journal, lambda: runner(arguments.name, arguments.output), describe, "runs", say)
    records, code = campaign.command(arguments.report_only)
    say(table(records.values(), programs))
    say("{} of {} connections that were called protected have been reset.".format(*losses(records.values())))
    if arguments.only is None:
        command = f"script/programs --runs {arguments.runs}"
        write_report(records, programs, command, len(tasks), absent, arguments.docs)
    kept = all(record.verdict in (RIGHT, AS_SAID) for record in records.values())
    return code or (0 if kept and len(records) == len(tasks) else 1)
