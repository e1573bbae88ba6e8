"""The control socket: one JSON object per line, `{"command": "status"}` and the like."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError

MAX_LINE = 4096
MAX_CLIENTS = 64
Handler = Callable[[str, dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Answers requests from inside the daemon's loop: `accept` and `serve` never block for long."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """`handler(command, request)` gives the answer. A stale socket file is replaced."""
        self.path = path
        self.handler = handler
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        old = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(old)
        self._socket.listen(16)
        self.clients: dict[int, tuple[socket.socket, bytearray]] = {}

    def fileno(self) -> int:
        """Readable when somebody connects."""
        return self._socket.fileno()

    def accept(self) -> list[int]:
        """Descriptors of new clients, to be watched."""
        new = []
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._socket.accept()
                if len(self.clients) >= MAX_CLIENTS:
                    client.close()
                    continue
                client.settimeout(0.2)
                self.clients[client.fileno()] = (client, bytearray())
                new.append(client.fileno())
        return new

    def serve(self, fd: int) -> bool:
        """Read and answer; False when the client is gone."""
        client, buffer = self.clients[fd]
        try:
            data = client.recv(MAX_LINE)
            buffer += data
            while (stop := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:stop])
                del buffer[: stop + 1]
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            if data and len(buffer) <= MAX_LINE:
                return True
        except OSError:
            pass
        client.close()
        del self.clients[fd]
        return False

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = request["command"]
            if not isinstance(command, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return {"error": 'send one JSON object per line, like {"command": "status"}'}
        return self.handler(command, request)

    def close(self) -> None:
        """Remove the socket."""
        for client, _ in self.clients.values():
            client.close()
        self.clients.clear()
        self._socket.close()
        self.path.unlink(missing_ok=True)


def ask(path: Path, command: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask a daemon. Raises `CommandError` if none answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout_s)
            s.connect(str(path))
            s.sendall(json.dumps({"command": command}).encode() + b"\n")
            with s.makefile("rb") as answers:
                answer = json.loads(answers.readline() or b"{}")
    except (OSError, ValueError) as error:
        raise CommandError(f"no daemon answers at {path} ({error}): is 'nfq-failover run' running?") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise CommandError(f"the daemon refuses: {answer.get('error') if isinstance(answer, dict) else answer}")
    return answer
