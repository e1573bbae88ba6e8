"""Programs that the lab starts inherit nothing of its caller: no lock (`flock LOCK nfq-failover lab ...`), no pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import namespace
from tests.support.lab_world import SERVER, command, eventually, fresh_name, lab

pytestmark = pytest.mark.netns


def descriptors(pid: int) -> dict[int, str]:
    """What the process has open; nothing if it has ended, as what a daemon runs for a moment may have."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[int(entry.name)] = str(entry.readlink())
    return found


def command_line(pid: int) -> bytes:
    """The command line of the process; nothing if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Caller:
    """Runs commands of a lab, as a shell does inside `flock`: the lock is open, and inherited."""

    def __init__(self, name: str, lock: Path) -> None:
        self.argv = [sys.executable, "-m", "nfq_failover", "lab", "--name", name]
        self.lock = lock
        self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def run(self, *words: str) -> str:
        """The command to its end. It ends only when nobody holds its standard output any more."""
        done = subprocess.run(
            [*self.argv, *words], pass_fds=[self._descriptor], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """The same, without waiting for its end."""
        return subprocess.Popen([*self.argv, *words], pass_fds=[self._descriptor], stdin=subprocess.DEVNULL)

    def close(self) -> None:
        """The end of `flock`, which does not unlock."""
        os.close(self._descriptor)

    def assert_free(self, pids: list[int]) -> None:
        """None of the processes has the lock open, and another may take it."""
        assert pids
        assert {pid: held for pid in pids if (held := descriptors(pid)) and str(self.lock) in held.values()} == {}
        with self.lock.open() as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def caller(name: str, tmp_path: Path) -> Iterator[Caller]:
    made = Caller(name, tmp_path / "lock")
    with contextlib.closing(made):
        yield made


def inside(made: Lab) -> list[int]:
    return [pid for target in made.topology.namespaces(made.name) for pid in netns.pids(target)]


def test_what_is_served_and_detached_holds_nothing_of_its_caller(tmp_path: Path) -> None:
    with lab(Options(plain=True)) as made:
        with caller(made.name, tmp_path) as one:
            one.run("serve", "--", *SERVER)
            one.run("serve", "--", "sh", "-c", f"{' '.join(SERVER[:-1])} 7001 & exit 0")
            one.run("exec", "b", "--detach", "--", "sleep", "1000")
            one.run("crash", "a")
            one.run("restore", "a")
        assert len(inside(made)) == 5
        one.assert_free(inside(made))
        (sleeper,) = [pid for pid in inside(made) if b"sleep" in command_line(pid)]
        held = descriptors(sleeper)
        log = str(made.store.directory)
        assert sorted(held) == [0, 1, 2]
        assert held[0] == "/dev/null"
        assert held[1] == held[2]
        assert held[1].startswith(log)


def test_a_command_that_takes_the_place_of_exec_has_three_descriptors(tmp_path: Path) -> None:
    with lab(Options(plain=True)) as made:
        with caller(made.name, tmp_path) as one:
            process = one.start("exec", "client", "--", "sleep", "1000")
            client = namespace(made.name, "client")
            assert eventually(lambda: netns.pids(client) == [process.pid])
            assert eventually(lambda: b"sleep" in command_line(process.pid))
        try:
            assert sorted(descriptors(process.pid)) == [0, 1, 2]
            one.assert_free([process.pid])
        finally:
            process.kill()
            process.wait()


def test_daemons_stages_agent_and_witness_hold_nothing_of_their_caller(tmp_path: Path) -> None:
    made = Lab(fresh_name())
    try:
        with caller(made.name, tmp_path) as one:
            one.run("up", "--heartbeat-ms", "200", "--witness")
            one.run("serve", "--", *SERVER)
            one.run("crash", "b")
            one.run("restore", "b")
        words = b" ".join(command_line(pid) for pid in inside(made))
        assert all(name in words for name in (b"fence_agent", b"witness", b"scramble", b"config.toml", b"workloads"))
        one.assert_free(inside(made))
    finally:
        command(made.name, "down")
