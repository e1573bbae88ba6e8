"""Runs the tests side by side: as many pieces at a time as there are cores, each in a process of its own.

A piece is a file or directory. With `--kernel` it is each file, in namespaces of its own (`script/test --inside`): the
files share nothing but the processor, and each answers for what it leaves behind. A test that needs the processor for
itself has the marker `alone`, and says why; those run one after the other when everything else is done.

The output of a piece is kept until the piece has ended: it is one line if all went well, and complete otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SECONDS = ROOT / ".pytest_cache" / "seconds.json"  # what each file took last time: the longest go first
SEPARATE = ("--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
NOTHING_SELECTED = 5  # pytest's exit code
SLOWEST = 10


@dataclass
class Piece:
    """A run of pytest over a path. `kernel`: in namespaces of its own; `alone`: only the tests of this marker."""

    path: Path
    kernel: bool
    alone: bool = False
    code: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    tests: list[tuple[float, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its path, from the repository's root."""
        return os.path.relpath(self.path, ROOT) + (" (alone)" if self.alone else "")

    @property
    def good(self) -> bool:
        """Whether nothing failed, and nothing was left behind."""
        return self.code in (0, NOTHING_SELECTED)

    def command(self, directory: Path) -> list[str]:
        """What runs it. `directory`: for its report and its temporary files."""
        marker = "alone" if self.alone else "not alone"
        options = [
            "-v",
            "--no-header",
            "-m",
            marker,
            f"--junitxml={directory}/report.xml",
            f"--basetemp={directory}/tmp",
        ]
        if self.kernel:
            return ["unshare", *SEPARATE, "sh", "script/test", "--inside", *options, str(self.path)]
        return [sys.executable, "-m", "pytest", *options, str(self.path)]

    def read(self, report: Path) -> None:
        """Take counts and times from pytest's report."""
        if not report.exists():
            return
        for case in ElementTree.parse(report).iter("testcase"):
            found = {child.tag for child in case} & {"failure", "error", "skipped"}
            self.counts[min(found) if found else "passed"] += 1
            self.tests.append((float(case.get("time", "0")), f"{case.get('classname')}::{case.get('name')}"))


class Runner:
    """Runs pieces, and tells how each has ended. On an interrupt, what runs is killed with all that it has started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, pieces: Iterable[Piece], jobs: int) -> None:
        """Run all of them, `jobs` at a time."""
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._one, piece) for piece in pieces]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop()
                raise

    def _one(self, piece: Piece) -> None:
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        output, began = directory / "output", time.monotonic()
        with output.open("wb") as sink, self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(
                piece.command(directory), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
        piece.code = process.wait()
        piece.seconds = time.monotonic() - began
        piece.read(directory / "report.xml")
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                return
            said = ", ".join(f"{count} {what}" for what, count in sorted(piece.counts.items())) or "none"
            print(f"{'ok    ' if piece.good else 'FAILED'} {piece.seconds:5.0f} s  {piece.name}: {said}", flush=True)
            if not piece.good:
                print(output.read_text(errors="replace"), flush=True)

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # `--kill-child`: the namespaces' processes go as well


def longest_first(paths: Iterable[Path]) -> list[Path]:
    """By what they took last time. Before those: what has not run here, first what calls itself slow."""
    try:
        seconds = json.loads(SECONDS.read_text())
    except (OSError, ValueError):
        seconds = {}

    def expected(path: Path) -> float:
        slow = path.is_file() and "mark.slow" in path.read_text()
        return float(seconds.get(os.path.relpath(path, ROOT), 1e6 if slow else 1e5))

    return sorted(paths, key=lambda path: (-expected(path), path))


def remember(pieces: Iterable[Piece]) -> None:
    """For the next time's order."""
    seconds = dict(json.loads(SECONDS.read_text())) if SECONDS.exists() else {}
    seconds |= {piece.name: round(piece.seconds, 1) for piece in pieces if piece.path.is_relative_to(ROOT)}
    SECONDS.parent.mkdir(exist_ok=True)
    SECONDS.write_text(json.dumps(seconds, indent=1, sort_keys=True))


def with_tests_alone(paths: list[Path]) -> list[Path]:
    """The files and directories that mention the marker `alone`."""

    def mentions(path: Path) -> bool:
        files = [path] if path.is_file() else path.rglob("test_*.py")
        return any("mark.alone" in file.read_text() for file in files)

    return [path for path in paths if mentions(path)]


def main() -> int:
    """The command line: files and directories of tests. Ends with 1 if anything has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.side_by_side", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="files, or directories of files test_*.py")
    parser.add_argument("--kernel", action="store_true", help="each file in namespaces of its own (needs root)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: cores)")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths]
    if arguments.kernel:
        paths = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
    pieces = [Piece(path, arguments.kernel) for path in longest_first(paths)]
    alone = [Piece(path, arguments.kernel, True) for path in with_tests_alone(sorted(paths))]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # by name: a background job's parent has them ignored
        signal.signal(number, _interrupted)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as directory:
        runner = Runner(Path(directory))
        try:
            runner.run(pieces, arguments.jobs)
            runner.run(alone, 1)
        except KeyboardInterrupt:
            print("interrupted")
            return 130
    remember(pieces)
    return report([*pieces, *alone], time.monotonic() - began)


def _interrupted(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def report(pieces: list[Piece], seconds: float) -> int:
    """The summary: counts, what was slow, what has failed."""
    counts = sum((piece.counts for piece in pieces), Counter[str]())
    print("slowest:")
    for took, name in sorted((test for piece in pieces for test in piece.tests), reverse=True)[:SLOWEST]:
        print(f"{took:7.1f} s  {name}")
    print(f"{', '.join(f'{count} {what}' for what, count in sorted(counts.items()))} in {seconds:.0f} s")
    failed = [piece.name for piece in pieces if not piece.good]
    if failed:
        print(f"FAILED, with their output above: {', '.join(failed)}")
    if not counts["passed"]:
        print("no test has run")
    return 1 if failed or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
