"""The log: readable, and never in the daemon's way."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time

from nfq_failover.shell.logs import MAX_LINES, BackgroundWriter

SAY = """
from nfq_failover.shell import logs
import structlog
logs.configure({level!r}, {as_json})
log = structlog.get_logger()
log.debug("too quiet")
log.info("state", before="waiting", after="shadowing")
log.error("alarm", packet="4500")
"""


def said(level: str, as_json: bool) -> list[str]:
    program = SAY.format(level=level, as_json=as_json)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_lines_for_people_are_all_there_at_the_end_of_the_program() -> None:
    lines = said("info", False)
    assert len(lines) == 2
    assert "state" in lines[0]
    assert "after=shadowing" in lines[0]
    assert "error" in lines[1]


CRASH = """
try:
    raise RuntimeError("bug")
except RuntimeError as error:
    assert logs.crashed(error)
"""


class Journal:
    """A pipe that stands for systemd's stream to the journal; `other`: the variable names another one."""

    def __init__(self, program: str, other: bool = False) -> None:
        read_end, write_end = os.pipe()
        found = os.fstat(write_end)
        stream = f"{found.st_dev}:{found.st_ino + other}"
        env = os.environ | {"JOURNAL_STREAM": stream}
        done = subprocess.run([sys.executable, "-c", program], stderr=write_end, env=env, timeout=60)
        os.close(write_end)
        self.code = done.returncode
        with open(read_end) as file:
            self.lines = file.read().splitlines()


def test_journal_gets_priorities_and_no_second_time() -> None:
    journal = Journal(SAY.format(level="debug", as_json=False) + "log.warning('look')" + CRASH)
    assert [line[:3] for line in journal.lines[:4]] == ["<7>", "<6>", "<3>", "<4>"]
    assert all(line.startswith("<2>") for line in journal.lines[4:])  # each line of the traceback is an entry
    assert "RuntimeError: bug" in journal.lines[-1]
    assert not [line for line in journal.lines if re.search(r"\d\d:\d\d", line)]
    assert journal.code == 0


def test_another_stream_is_not_the_journal() -> None:
    lines = Journal(SAY.format(level="info", as_json=False), other=True).lines
    assert len(lines) == 2
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in lines)


def test_journal_in_json() -> None:
    for line in Journal(SAY.format(level="info", as_json=True)).lines:
        assert line[:3] in ("<6>", "<3>")
        assert "timestamp" in json.loads(line[3:])


MANY = """
from nfq_failover.shell import logs
import structlog
logs.configure("info", True)
log = structlog.get_logger()
for conn in range(4000):
    log.warning("connection unprotected", conn=conn, reason="no backup")
"""


def test_repeats_are_summed_up_and_a_bug_is_one_object() -> None:
    done = subprocess.run([sys.executable, "-c", MANY + CRASH], capture_output=True, text=True, timeout=60)
    first, bug, last = map(json.loads, done.stderr.splitlines())
    assert (first["conn"], last["conn"], last["more"]) == (0, 3999, 3999)
    assert (bug["level"], bug["error"]) == ("critical", "RuntimeError('bug')")
    assert "Traceback" in bug["exception"]


def test_last_words_have_the_form_of_the_log() -> None:
    say = "import os\nfrom nfq_failover.shell.logs import last_words\nos.write(2, last_words({}, 'no memory'))"
    assert Journal(say.format(False)).lines[0].startswith("<3>[error")
    assert json.loads(Journal(say.format(True)).lines[0][3:])["level"] == "error"
    assert json.loads(Journal(say.format(True), other=True).lines[0])["event"] == "no memory"
    assert Journal(say.format(False), other=True).lines == ["nfq-failover: no memory"]


def test_lines_for_programs() -> None:
    (line,) = said("error", True)
    record = json.loads(line)
    assert (record["event"], record["level"], record["packet"]) == ("alarm", "error", "4500")
    assert record["timestamp"].endswith("Z")


class Stuck(io.StringIO):
    """A terminal that somebody has stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.go_on.wait(30)
        return super().write(text)


def test_a_reader_that_is_stuck_keeps_nobody_waiting_and_losses_are_told() -> None:
    file = Stuck()
    writer = BackgroundWriter(file)
    began = time.monotonic()
    writer.write("line 0\n")
    while not writer._lines.empty():  # the thread has taken it, and is stuck with it
        time.sleep(0.001)
    for number in range(1, MAX_LINES + 500):
        writer.write(f"line {number}\n")
    assert time.monotonic() - began < 5
    file.go_on.set()
    while not writer._lines.empty():
        time.sleep(0.01)
    writer.write("the last\n")
    writer.close()
    lines = file.getvalue().splitlines()
    assert lines[0] == "line 0"
    assert lines[-1] == "the last"
    lost = int(lines[-2].split()[0].strip("("))
    assert lost + len(lines) - 2 == MAX_LINES + 500
    assert lost > 0


def test_a_reader_that_is_gone_does_not_matter() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as file:
        writer = BackgroundWriter(file)
        for _ in range(100):
            writer.write("x" * 1000 + "\n")
        writer.close()
        assert not writer._thread.is_alive()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), file.fileno())  # so that closing the file can flush what it could not write
