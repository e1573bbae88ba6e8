"""The runner of the tests: what it shows, what it ends with, and that tests which want to be alone are."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUNNER = (sys.executable, "-m", "tests.support.side_by_side", "--jobs", "2")
LOGS = """
import time
from pathlib import Path

import pytest

def note(name):
    with Path({log!r}).open("a") as log:
        log.write(f"begin {{name}}\\n")
        log.flush()
        time.sleep({seconds})
        log.write(f"end {{name}}\\n")
"""


def files(directory: Path, seconds: float = 0.0, **bodies: str) -> list[str]:
    """Files of tests, by their names, with a function `note` that writes into a log when it begins and ends."""
    head = LOGS.format(log=str(directory / "log"), seconds=seconds)
    made = {directory / f"test_{name}.py": head + body for name, body in bodies.items()}
    for path, text in made.items():
        path.write_text(text)
    return [str(path) for path in made]


def run(*paths: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUNNER, *paths], capture_output=True, text=True, timeout=60)


def test_good_file_is_one_line_and_a_failing_one_shows_everything(tmp_path: Path) -> None:
    good = "def test_one():\n    print('chatter')\n"
    bad = "def test_two():\n    print('what was wrong')\n    assert 1 + 1 == 3\n\ndef test_three():\n    pass\n"
    done = run(*files(tmp_path, good=good, bad=bad))
    assert done.returncode == 1
    assert re.search(r"^ok +\d+ s  \S*test_good\.py: 1 passed$", done.stdout, re.MULTILINE)
    assert re.search(r"^FAILED +\d+ s  \S*test_bad\.py: 1 failure, 1 passed$", done.stdout, re.MULTILINE)
    assert "what was wrong" in done.stdout and "assert (1 + 1) == 3" in done.stdout
    assert "chatter" not in done.stdout
    assert re.search(r"^1 failure, 2 passed in \d+ s$", done.stdout, re.MULTILINE)
    assert re.search(r"^FAILED, with their output above: \S*test_bad\.py$", done.stdout, re.MULTILINE)


def test_file_that_can_not_be_read_fails(tmp_path: Path) -> None:
    done = run(*files(tmp_path, good="def test_one():\n    pass\n", broken="import nothing_of_this_name\n"))
    assert done.returncode != 0
    assert "nothing_of_this_name" in done.stdout + done.stderr


def test_nothing_at_all_is_no_success(tmp_path: Path) -> None:
    done = run(*files(tmp_path, empty=""))
    assert done.returncode == 1 and "no test has run" in done.stdout


def test_files_run_side_by_side_and_those_alone_after_all_others(tmp_path: Path) -> None:
    body = "def test_it():\n    note('{0}')\n\n@pytest.mark.alone\ndef test_by_itself():\n    note('{0} alone')\n"
    done = run(*files(tmp_path, seconds=1.0, one=body.format("one"), two=body.format("two")))
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "log").read_text().splitlines()
    assert sorted(log[:2]) == ["begin one", "begin two"]
    assert sorted(log[2:4]) == ["end one", "end two"]
    assert log[4:] in (
        ["begin one alone", "end one alone", "begin two alone", "end two alone"],
        ["begin two alone", "end two alone", "begin one alone", "end one alone"],
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_what_runs(tmp_path: Path, number: signal.Signals) -> None:
    (path,) = files(tmp_path, seconds=30.0, slow="def test_it():\n    note('slow')\n")
    # As a job in the background has it: with SIGINT ignored.
    ignored = ("env", "--ignore-signal=INT", *RUNNER, path)
    runner = subprocess.Popen(ignored, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.05)
    began = time.monotonic()
    runner.send_signal(number)
    said, _ = runner.communicate(timeout=20)
    assert runner.returncode == 130 and said.strip() == "interrupted"
    assert time.monotonic() - began < 15
    assert (tmp_path / "log").read_text() == "begin slow\n"
