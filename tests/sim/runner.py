"""Runs scenarios and says what came of them: one after the other, or on several cores with a progress bar."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from .generate import from_seed
from .scenario import Scenario
from .world import SimWorld

ROOT = Path(__file__).parents[2]
CHUNK = 8
BAR = 30


@dataclass(frozen=True)
class Outcome:
    """What came of one run. `failure` is empty if all went well."""

    seed: int
    kind: str
    trace: str
    packets: int
    failure: str
    details: str = ""

    @property
    def line(self) -> str:
        """One line about the run."""
        verdict = f"FAILED {self.failure}" if self.failure else self.trace
        return f"seed {self.seed} {self.kind} {verdict} packets={self.packets}"


def run(scenario: Scenario, verbose: bool = False) -> Outcome:
    """Run one scenario; whatever goes wrong in it is in the outcome."""
    world = SimWorld(scenario)
    trace = failure = details = ""
    try:
        trace = world.run()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        details = traceback.format_exc()
    if verbose:
        logs = [(at, host.name, log) for host in world.hosts for at, log in host.logs]
        logs.sort(key=lambda entry: entry[0])
        lines = [f"{at:.4f} {name} {log.event} {log.fields}" for at, name, log in logs]
        details = "\n".join([str(scenario), *lines, details])
    return Outcome(scenario.seed, scenario.kind, trace, world.packets, failure, details)


def run_seed(seed: int, kind: str = "") -> Outcome:
    """Run one seed, of its own kind or of another."""
    return run(from_seed(seed, kind))


def commit() -> str:
    """The commit that is checked out, and whether the files differ from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True)
    return found.stdout.decode().strip() or "unknown"


def reproduce(seed: int, kind: str = "") -> str:
    """The commit, and the command that shows a seed (of a kind that is not its own) again."""
    return f"at commit {commit()}: python -m tests.sim --seed {seed}{f' --kind {kind}' if kind else ''} --verbose"


def sweep(seeds: range, jobs: int, kind: str = "", hashes: Path | None = None) -> int:
    """Run many seeds on `jobs` cores, with a progress bar. Ctrl-C ends it early. Returns the number of failures.

    `hashes`: a file that gets a line for each seed, in their order: seed, kind, trace hash (or FAILED).
    """
    began = time.perf_counter()
    kinds: Counter[str] = Counter()
    failures: list[Outcome] = []
    lines: dict[int, str] = {}
    packets = 0
    bar = Bar(len(seeds))
    interrupted = False
    try:
        for outcome in _outcomes(seeds, jobs, kind):
            kinds[outcome.kind] += 1
            packets += outcome.packets
            lines[outcome.seed] = f"{outcome.seed} {outcome.kind} {outcome.trace or 'FAILED'}\n"
            if outcome.failure:
                failures.append(outcome)
                bar.say(f"{outcome.line}\n  {reproduce(outcome.seed, kind)}")
            bar.show(sum(kinds.values()), len(failures))
    except KeyboardInterrupt:
        interrupted = True
    bar.clear()
    if hashes is not None:
        hashes.write_text("".join(lines[seed] for seed in sorted(lines)))
    done, seconds = sum(kinds.values()), time.perf_counter() - began
    good = done - len(failures)
    print(f"{', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}")
    print(f"{good} of {done} good in {seconds:.1f} s on {jobs} cores, {packets} packets, commit {commit()}", end="")
    print(f"; ended early, {len(seeds)} were asked for" if interrupted else "")
    if failures:
        print(f"failed: {' '.join(str(outcome.seed) for outcome in sorted(failures, key=lambda o: o.seed))}")
    return len(failures) + interrupted


def _outcomes(seeds: Iterable[int], jobs: int, kind: str) -> Iterator[Outcome]:
    one = partial(run_seed, kind=kind)
    if jobs == 1:
        yield from map(one, seeds)
        return
    with get_context("fork").Pool(jobs, _leave_interrupts) as pool:
        yield from pool.imap_unordered(one, seeds, CHUNK)


def _leave_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us


class Bar:
    """`[####......] 400/1000`, on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.began, self.next = total, time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()

    def show(self, done: int, failed: int) -> None:
        """Draw the bar, at most ten times a second (each half minute, if it is not a terminal)."""
        now = time.monotonic()
        if now < self.next and done < self.total:
            return
        self.next = now + (0.1 if self.terminal else 30)
        full = BAR * done // self.total
        left = (now - self.began) / done * (self.total - done)
        line = f"[{'#' * full}{'.' * (BAR - full)}] {done}/{self.total}, {failed} failed, {left:.0f} s to go"
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.clear()
        print(text, flush=True)

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
