"""Checks of the application on this host: a command, and a connection to its port. Nothing here blocks the loop.

The connection goes over lo, which the rules leave alone. It proves more than that the port is open: the kernel
completes handshakes for a process that hangs, so the check waits until the application has accepted (its end of the
connection then belongs to a socket with an inode, linux/inet_diag.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import tempfile
import time

from nfq_failover.config import HealthConfig
from nfq_failover.core.events import HealthChecked
from nfq_failover.shell.answers import Answers
from nfq_failover.shell.host.connections import Peered, peered
from nfq_failover.shell.loop import Loop

_SAID_BYTES = 200


class CommandCheck:
    """A command under way: wait on `fileno()`, then call `finish`."""

    def __init__(self, command: tuple[str, ...]) -> None:
        """Start the command, without a shell. Raises OSError."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by finish
        try:
            self._process = subprocess.Popen(
                command,
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
        """The descriptor, readable when the command has ended."""
        return self._pidfd

    def ended(self) -> bool:
        """Whether it has ended. It is not reaped: the number of its group can't belong to somebody else before that."""
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def finish(self) -> str:
        """Returns what is wrong, '' for nothing. A command that still runs is killed, with its process group."""
        if not self.ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            wrong = "the command has not ended in time"
        else:
            status = self._process.wait()
            wrong = "" if status == 0 else f"the command has ended with {status}"
            if wrong and (said := self._said()):
                wrong += f": {said}"
        os.close(self._pidfd)
        self._output.close()
        return wrong

    def _said(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(size - _SAID_BYTES, 0))
        return self._output.read().decode(errors="replace").strip()


class ConnectCheck:
    """A connection to the application, over lo."""

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self._where = f"{address}:{port}"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._wrong = "not accepted in time"
        code = self._socket.connect_ex(self._target)
        self._refused(code)
        self._done = code not in (0, errno.EINPROGRESS)

    def _refused(self, code: int) -> None:
        if code not in (0, errno.EINPROGRESS):
            self._wrong = os.strerror(code).lower()

    def step(self) -> bool:
        """Look again. Returns True when the outcome is known."""
        if self._done:
            return True
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._refused(code)
            self._done = True
            return True
        try:
            self._socket.getpeername()
        except OSError:
            self._wrong = "no answer to a SYN"
            return False
        client, port = self._socket.getsockname()
        server, server_port = self._target
        try:
            state = peered((socket.inet_aton(client), port, socket.inet_aton(server), server_port))
        except OSError as error:
            self._wrong = f"the kernel can't be asked: {error}"
            return False
        # One that waits for data before it is shown to the application (TCP_DEFER_ACCEPT) proves no more than that the
        # port is open.
        self._done = state is not Peered.QUEUED
        if self._done:
            self._wrong = ""
        else:
            self._wrong = "the connection is not accepted"
        return self._done

    def finish(self) -> str:
        """Returns what is wrong, '' for nothing."""
        self._socket.close()
        return f"{self._where}: {self._wrong}" if self._wrong else ""


class HealthChecks:
    """Runs the checks for the event loop, one round after the other, each of which gets one `HealthChecked`."""

    def __init__(
        self,
        config: HealthConfig | None,
        address: str,
        loop: Loop,
        answers: Answers,
    ) -> None:
        self._config = config
        self._address = address
        self._loop = loop
        self._answers = answers
        self._command: CommandCheck | None = None
        self._connect: ConnectCheck | None = None
        self._wrong: list[str] = []
        self._running = False
        self._deadline = self._began = 0.0
        self._next = time.monotonic()

    def follow(self, config: HealthConfig | None) -> None:
        """Check by another plan from the next round on; one that is under way is given up."""
        self.close()
        self._config, self._next = config, time.monotonic()

    def tick(self, now: float) -> None:
        """Begin a round if it is due, and end what is finished or late."""
        config = self._config
        if config is None:
            return
        if not self._running:
            if now < self._next:
                return
            self._start(config, now)
        late = now >= self._deadline
        if self._connect is not None and (self._connect.step() or late):
            self._wrong.append(self._connect.finish())
            self._connect = None
        if self._command is not None and late:
            self._command_ended()
        self._report()

    def _start(self, config: HealthConfig, now: float) -> None:
        self._running = True
        self._wrong = []
        self._began = time.monotonic()
        self._deadline = now + config.timeout_ms / 1000
        self._next = now + config.interval_ms / 1000
        if config.port is not None:
            self._connect = ConnectCheck(self._address, config.port)
        if config.command:
            try:
                self._command = CommandCheck(config.command)
            except OSError as error:
                self._wrong.append(f"the command can't be started: {error}")
                return
            self._loop.watch(self._command.fileno(), self._command_readable)

    def _command_readable(self) -> None:
        self._command_ended()
        self._report()

    def _command_ended(self) -> None:
        command, self._command = self._command, None
        if command is not None:
            self._loop.unwatch(command.fileno())
            self._wrong.append(command.finish())

    def _report(self) -> None:
        if self._running and self._connect is None and self._command is None:
            self._running = False
            wrong = "; ".join(text for text in self._wrong if text)
            self._answers.answer(HealthChecked(not wrong, wrong, time.monotonic() - self._began))

    def close(self) -> None:
        """End what still runs."""
        if self._connect is not None:
            self._connect.finish()
            self._connect = None
        self._command_ended()
        self._running = False
        self._config = None
