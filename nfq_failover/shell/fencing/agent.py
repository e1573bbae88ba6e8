"""The fence: a program that makes sure that the peer is off.

Any command will do: exit code 0 means that the peer is off, anything else is a failure. A fence agent (the fence agent
API of the cluster projects, Debian's fence-agents) is asked on its standard input, so that no secret is in a process
list; its `off` is believed only when its `status` says off as well. Failures are tried again until the deadline.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.events import Fence, FenceFinished
from nfq_failover.core.settings import Peer
from nfq_failover.shell.answers import Answers
from nfq_failover.shell.loop import Loop

AGENT_ON, AGENT_FAILED, AGENT_OFF = 0, 1, 2  # exit codes of a fence agent's `status`
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
STATUS_POLLS = 3  # an `off` may need a moment; after that it is ordered again
_SAID_BYTES = 200


class FenceProgram:
    """One run of a program: wait on `fileno()`, then call `finish`."""

    def __init__(self, plan: FencePlan, peer: Peer, action: str) -> None:
        """Start the program, without a shell. `{peer}` and `{address}` are replaced. Raises OSError."""
        self.action = action
        self._plan = plan

        def fill(word: str) -> str:
            return word.replace("{peer}", peer.name).replace("{address}", peer.address)

        # A file, not a pipe: a command that says a lot must not wait for us. In memory: the disks may be full.
        self._output = os.fdopen(os.memfd_create("nfqf-fence-said"), "w+b")
        lines = [("action", action), *plan.parameters] if plan.agent else []
        try:
            given = _memory("".join(f"{name}={fill(value)}\n" for name, value in lines))
            try:
                self._process = subprocess.Popen(
                    [fill(word) for word in plan.command],
                    stdin=given if plan.agent else subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            finally:
                os.close(given)
        except OSError:
            self._output.close()
            raise
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """The descriptor, readable when the program has ended."""
        return self._pidfd

    def wait(self, seconds: float) -> tuple[int | None, str]:
        """Wait for the program's end, and `finish`."""
        select.select([self._pidfd], [], [], seconds)
        return self.finish()

    def finish(self) -> tuple[int | None, str]:
        """Returns (exit code, what it said). One that still runs is killed, with its process group: (None, ...)."""
        # Not reaped yet, so that the number of its group can't belong to somebody else when we kill it.
        killed = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        if killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        said = self._plan.hide(self._said())
        os.close(self._pidfd)
        self._output.close()
        return None if killed else status, said

    def _said(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        # With room for a secret that would be cut at the beginning, and then not be found.
        longest = max((len(secret.encode()) for secret in self._plan.secrets), default=0)
        self._output.seek(max(size - _SAID_BYTES - longest, 0))
        text = self._plan.hide(self._output.read().decode(errors="replace"))
        return text[-_SAID_BYTES:].strip()


def _memory(text: str) -> int:
    """Returns a descriptor to read `text` from, which has never been on a disk."""
    fd = os.memfd_create("nfqf-fence")
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _ending(status: int | None) -> str:
    if status is None:
        return "it did not end"
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}"


class RunningFence:
    """A fence under way, over as many attempts as the plan and the deadline (monotonic seconds) allow.

    `fileno()` is that of the program that runs now, None in a pause; call `step` when it is readable or `due` has come.
    """

    def __init__(self, plan: FencePlan, peer: Peer, deadline_ms: int) -> None:
        """Begin the first attempt. Raises OSError."""
        self.plan = plan
        self.peer = peer
        self.deadline = time.monotonic() + deadline_ms / 1000
        self.due = self.deadline
        self._next = "off"
        self._attempts = 0
        self._polls = 0
        self._pause_s = FIRST_PAUSE_S
        self._failure = ""
        self._program: FenceProgram | None = None
        self._start("off")

    def fileno(self) -> int | None:
        """The descriptor of the program that runs now."""
        return self._program.fileno() if self._program else None

    def _start(self, action: str) -> None:
        if action == "off":
            self._attempts += 1
            self._polls = 0
        self._program = FenceProgram(self.plan, self.peer, action)
        self.due = self.deadline

    def step(self, now: float) -> FenceFinished | None:
        """Go on. Returns the outcome if there is one."""
        if self._program is None:
            if now >= self.deadline:
                return self._failed()
            try:
                self._start(self._next)
            except OSError as error:
                self._failure = f"can't be started: {error}"
                return self._failed()
            return None
        action = self._program.action
        status, said = self._program.finish()
        self._program = None
        if status is None:
            return self._failed()
        words = f"{_ending(status)}: {said}" if said else _ending(status)
        if not self.plan.agent:
            return self._done(said) if status == 0 else self._again(words)
        return self._after_off(status, words, said) if action == "off" else self._after_status(status, words)

    def _after_off(self, status: int, words: str, said: str) -> FenceFinished | None:
        if self.plan.verify:
            # Even after a failure: it may be off already, and only the waiting for it has failed.
            self._failure = f"off: {words}" if status else ""
            return self._then("status", 0.0)
        return self._done(said) if status == 0 else self._again(f"off: {words}")

    def _after_status(self, status: int, words: str) -> FenceFinished | None:
        if status == AGENT_OFF:
            return self._done("its status is off")
        self._polls += 1
        off_failed = bool(self._failure) and self._polls == 1
        if not self._failure or status == AGENT_ON:
            self._failure = "its status is still on" if status == AGENT_ON else f"status: {words}"
        if off_failed or self._polls >= STATUS_POLLS:
            return self._again(self._failure)
        return self._then("status", self._pause_s)

    def _done(self, detail: str) -> FenceFinished:
        if self._attempts > 1:
            detail = f"{detail} (after {self._attempts} attempts)".strip()
        return FenceFinished(self.peer.name, True, detail)

    def _again(self, failure: str) -> FenceFinished | None:
        self._failure = failure
        if self._attempts == self.plan.attempts:
            return self._failed(late=False)
        return self._then("off", self._pause_s)

    def _then(self, action: str, pause_s: float) -> FenceFinished | None:
        now = time.monotonic()
        if now + pause_s >= self.deadline:
            return self._failed()
        self._next = action
        self.due = now + pause_s
        if pause_s:
            self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            return None
        return self.step(now)

    def _failed(self, late: bool = True) -> FenceFinished:
        detail = "the fence deadline has passed" if late else self._failure
        if late and self._failure:
            detail = f"{detail}; {self._failure}"
        if self._attempts > 1:
            detail = f"{detail} ({self._attempts} attempts)"
        return FenceFinished(self.peer.name, False, detail)

    def abort(self) -> None:
        """Kill what runs."""
        if self._program is not None:
            self._program.finish()
            self._program = None


class FenceKeeper:
    """Runs fences for the event loop: each `Fence` gets one `FenceFinished`, unless a newer one replaces it."""

    def __init__(
        self,
        plan: FencePlan | tuple[str, ...],
        peers: tuple[Peer, ...],
        loop: Loop,
        answers: Answers,
    ) -> None:
        """`plan`: a tuple of words is a command, run once."""
        self._plan = plan if isinstance(plan, FencePlan) else FencePlan(plan, attempts=1)
        self._peers = {peer.name: peer for peer in peers}
        self._loop = loop
        self._answers = answers
        self._running: dict[str, RunningFence] = {}

    def follow(self, plan: FencePlan) -> None:
        """Fence by another plan from the next order on."""
        self._plan = plan

    def start(self, order: Fence) -> None:
        """Begin a fence. One of the same peer that still runs is killed: its success would concern an earlier life."""
        self._stop(order.peer)
        if not self._plan:
            self._answers.answer(FenceFinished(order.peer, False, "there is no fence"))
            return
        try:
            fence = RunningFence(self._plan, self._peers[order.peer], order.deadline_ms)
        except OSError as error:
            self._answers.answer(FenceFinished(order.peer, False, f"the fence command can't be started: {error}"))
            return
        self._running[order.peer] = fence
        self._watch_program(order.peer, fence)

    def _watch_program(self, peer: str, fence: RunningFence) -> None:
        fd = fence.fileno()
        if fd is not None:
            self._loop.watch(fd, lambda: self._step(peer))

    def _step(self, peer: str) -> None:
        fence = self._running[peer]
        fd = fence.fileno()
        if fd is not None:
            self._loop.unwatch(fd)
        outcome = fence.step(time.monotonic())
        if outcome is None:
            self._watch_program(peer, fence)
        else:
            del self._running[peer]
            self._answers.answer(outcome)

    def tick(self, now: float) -> None:
        """End the fences whose deadline has passed, and go on with those that have paused."""
        for peer in [peer for peer, fence in self._running.items() if now >= fence.due]:
            self._step(peer)

    def _stop(self, peer: str) -> None:
        fence = self._running.pop(peer, None)
        if fence is not None:
            fd = fence.fileno()
            if fd is not None:
                self._loop.unwatch(fd)
            fence.abort()

    def close(self) -> None:
        """Kill the fences that still run."""
        for peer in list(self._running):
            self._stop(peer)
