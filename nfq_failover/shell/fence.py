"""The fence: a command that makes sure that the peer is off. Exit code 0 says so; anything else is a failure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from nfq_failover.core.events import FenceFinished
from nfq_failover.core.settings import Peer


class RunningFence:
    """A fence command under way; wait on `fileno()` until `deadline` (monotonic seconds), then call `finish`."""

    def __init__(self, command: tuple[str, ...], peer: Peer, deadline_ms: int) -> None:
        """Start it, without a shell. `{peer}` and `{address}` in the words are replaced. Raises OSError."""
        self.peer = peer
        self.deadline = time.monotonic() + deadline_ms / 1000
        words = [word.replace("{peer}", peer.name).replace("{address}", peer.address) for word in command]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """Readable when the command has ended."""
        return self._pidfd

    def finish(self) -> FenceFinished:
        """The outcome; a command that still runs has missed its deadline and is killed with its children."""
        timed_out = self._process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if timed_out:
            self._process.wait()
        os.close(self._pidfd)
        said = b""
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
            said = self._process.stdout.read(4096) or b""
            self._process.stdout.close()
        status = self._process.returncode
        if timed_out:
            return FenceFinished(self.peer.name, False, "the deadline has passed")
        text = said.decode(errors="replace").strip()[-200:]
        if status:
            return FenceFinished(
                self.peer.name, False, f"exit code {status}: {text}" if text else f"exit code {status}"
            )
        return FenceFinished(self.peer.name, True, text)
