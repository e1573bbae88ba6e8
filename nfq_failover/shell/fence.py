"""The fence: a command that makes sure that the peer is off. Exit code 0 says so; anything else is a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable

from nfq_failover.core.events import Event, Fence, FenceFinished
from nfq_failover.core.settings import Peer

_SAID_BYTES = 200


class RunningFence:
    """A fence command under way; wait on `fileno()` until `deadline` (monotonic seconds), then call `finish`."""

    def __init__(self, command: tuple[str, ...], peer: Peer, deadline_ms: int) -> None:
        """Start it, without a shell. `{peer}` and `{address}` in the words are replaced. Raises OSError."""
        self.peer = peer
        self.deadline = time.monotonic() + deadline_ms / 1000
        words = [word.replace("{peer}", peer.name).replace("{address}", peer.address) for word in command]
        # A file, not a pipe: a command that says a lot must not wait for us.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by finish
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            self._output.close()
            raise
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """Readable when the command has ended."""
        return self._pidfd

    def finish(self) -> FenceFinished:
        """The outcome; a command that still runs has missed its deadline and is killed, with its process group."""
        name = self.peer.name
        # Not reaped yet, so that the number of its group can't belong to somebody else when we kill it.
        if os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            outcome = FenceFinished(name, False, "the fence deadline has passed")
        else:
            status = self._process.wait()
            ending = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
            said = self._said()
            if status == 0:
                outcome = FenceFinished(name, True, said)
            else:
                outcome = FenceFinished(name, False, f"{ending}: {said}" if said else ending)
        os.close(self._pidfd)
        self._output.close()
        return outcome

    def _said(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(size - _SAID_BYTES, 0))
        return self._output.read().decode(errors="replace").strip()


class FenceKeeper:
    """Runs fences for the event loop: each `Fence` gets one `FenceFinished`, unless a newer one replaces it."""

    def __init__(
        self,
        command: tuple[str, ...],
        peers: tuple[Peer, ...],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        answer: Callable[[Event], None],
    ) -> None:
        self._command = command
        self._peers = {peer.name: peer for peer in peers}
        self._watch = watch
        self._unwatch = unwatch
        self._answer = answer
        self._running: dict[str, RunningFence] = {}

    def start(self, order: Fence) -> None:
        """Begin. A fence of the same peer that still runs is killed: its success would be of an earlier life."""
        old = self._running.pop(order.peer, None)
        if old is not None:
            self._unwatch(old.fileno())
            old.finish()
        try:
            fence = RunningFence(self._command, self._peers[order.peer], order.deadline_ms)
        except (OSError, IndexError) as error:
            self._answer(FenceFinished(order.peer, False, f"the fence command can't be started: {error}"))
            return
        self._running[order.peer] = fence
        self._watch(fence.fileno(), lambda: self._ended(order.peer))

    def _ended(self, peer: str) -> None:
        fence = self._running.pop(peer)
        self._unwatch(fence.fileno())
        self._answer(fence.finish())

    def tick(self, now: float) -> None:
        """End those whose deadline has passed."""
        for peer in [peer for peer, fence in self._running.items() if now >= fence.deadline]:
            self._ended(peer)

    def close(self) -> None:
        """Kill those that still run."""
        while self._running:
            _, fence = self._running.popitem()
            self._unwatch(fence.fileno())
            fence.finish()
