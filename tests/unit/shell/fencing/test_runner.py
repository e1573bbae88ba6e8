"""The fence: real commands, their ends and their deadlines."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.events import Fence, FenceFinished
from nfq_failover.shell.fencing.agent import FenceKeeper
from tests.support import configured
from tests.support.turns import Turns

PEER = configured.peer()


class Fencing(Turns):
    """Fences of one plan, or of one command that is run once."""

    def __init__(self, plan: FencePlan | tuple[str, ...]) -> None:
        super().__init__()
        self.fences = FenceKeeper(plan, (PEER,), self.loop, self)

    def run(self, seconds: float = 10.0) -> FenceFinished:
        """Until the answer is there."""
        self.until_answered(self.fences.tick, seconds)
        (answer,) = self.answers
        assert isinstance(answer, FenceFinished)
        assert not self.watched
        return answer


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_exit_code_0_means_that_the_peer_is_off() -> None:
    fencing = Fencing(("echo", "power off at outlet 3"))
    fencing.fences.start(Fence("b", 5000))
    assert fencing.run() == FenceFinished("b", True, "power off at outlet 3")


def test_placeholders_are_filled_in_and_no_shell_reads_the_words() -> None:
    fencing = Fencing(("echo", "{peer}", "[{address}]", "$HOME", ";", "{other}"))
    fencing.fences.start(Fence("b", 5000))
    assert fencing.run().detail == "b [10.77.0.3] $HOME ; {other}"


def test_any_other_exit_code_is_a_failure() -> None:
    fencing = Fencing(("sh", "-c", "echo no such outlet >&2; exit 7"))
    fencing.fences.start(Fence("b", 5000))
    assert fencing.run() == FenceFinished("b", False, "exit code 7: no such outlet")


def test_so_is_death_by_a_signal() -> None:
    fencing = Fencing(("sh", "-c", "kill -TERM $$"))
    fencing.fences.start(Fence("b", 5000))
    assert fencing.run() == FenceFinished("b", False, "killed by signal 15")


@pytest.mark.parametrize("command", [("/no/such/program",), ("/etc/passwd",)])
def test_so_is_a_command_that_does_not_exist(command: tuple[str, ...]) -> None:
    fencing = Fencing(command)
    fencing.fences.start(Fence("b", 5000))
    answer = fencing.run()
    assert not answer.ok
    assert "can't be started" in answer.detail


def test_past_the_deadline_the_command_and_its_children_are_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    fencing = Fencing(("sh", "-c", f"sleep 60 & echo $! $$ >{pids}.new; mv {pids}.new {pids}; wait"))
    began = time.monotonic()
    fencing.fences.start(Fence("b", 400))
    answer = fencing.run()
    elapsed = time.monotonic() - began
    assert answer == FenceFinished("b", False, "the fence deadline has passed")
    assert 0.4 <= elapsed < 5
    started = [int(word) for word in pids.read_text().split()]
    assert len(started) == 2
    give_up = time.monotonic() + 5
    while any(alive(pid) for pid in started):
        assert time.monotonic() < give_up, "it still runs"
        time.sleep(0.01)


def test_a_command_that_says_a_lot_does_not_wait_for_us() -> None:
    fencing = Fencing(("sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo done"))
    fencing.fences.start(Fence("b", 8000))
    answer = fencing.run()
    assert answer.ok
    assert answer.detail.endswith("xdone")
    assert len(answer.detail) <= 200


def test_a_second_fence_replaces_the_first_whose_success_would_be_of_an_earlier_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fencing = Fencing(("sh", "-c", f"echo x >>{log}; [ $(wc -l <{log}) -gt 1 ] || sleep 60"))
    fencing.fences.start(Fence("b", 60_000))
    give_up = time.monotonic() + 5
    while not log.exists() or not log.read_text():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    fencing.fences.start(Fence("b", 5000))
    assert fencing.run() == FenceFinished("b", True, "")


def test_close_ends_what_runs_and_leaks_no_descriptor() -> None:
    gc.collect()  # the loops of other tests have descriptors, too
    fencing = Fencing(("sleep", "60"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    fencing.fences.start(Fence("b", 60_000))
    fencing.fences.close()
    assert not fencing.watched
    assert not fencing.answers
    assert len(list(Path("/proc/self/fd").iterdir())) == before
