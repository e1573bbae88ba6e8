"""The control socket: one JSON object per line, `{"command": "status"}` and the like."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from nfq_failover.errors import CommandError
from nfq_failover.shell.privileged.files import plain

MAX_LINE = 4096
MAX_CLIENTS = 64
_PEER = struct.Struct("=iII")  # struct ucred: process, user, group
_NOT_YOU = b'{"error": "only root and the daemon\'s own user may ask: run this as root"}\n'
Handler = Callable[[str, dict[str, Any]], dict[str, Any]]

log = structlog.get_logger()


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)


class ControlServer:
    """Answers requests from inside the daemon's loop, without ever waiting for a client.

    It has a poll object of its own: `fileno()` is readable when there is something to do, `serve()` does it.
    """

    def __init__(self, path: Path, handler: Handler, users: frozenset[int] | None = None, group: bool = False) -> None:
        """`handler(command, request)` returns the answer. A stale socket file is replaced.

        `users`: the ids of the users who may ask, as the kernel names them; None: the owner, by the file's mode, and
        with `group` everybody whom the file's directory lets through.
        """
        self._users = users
        self.path = path
        self.handler = handler
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        old = os.umask(0o177 if users is None and not group else 0o111)
        try:
            self._socket.bind(str(path))
            self._socket.listen(16)
        except OSError as error:
            self._poll.close()
            self._socket.close()
            hint = ": set a 'state_dir' with a shorter path" if "too long" in str(error) else ""
            raise CommandError(f"can't make the control socket {plain(path)} ({error}){hint}") from None
        finally:
            os.umask(old)
        self._poll.register(self._socket, select.EPOLLIN)

    def fileno(self) -> int:
        """The descriptor, readable when there is something to do."""
        return self._poll.fileno()

    def serve(self) -> None:
        """Accept new clients, and do one step for each client that is ready: read, answer."""
        for fd, _ in self._poll.poll(0):
            client = self._clients.get(fd)
            if client is None:
                self._accept()
                continue
            try:
                going_on = self._step(client)
            except OSError:
                going_on = False
            if not going_on:
                self._drop(fd)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._socket.accept()
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                return
            connection.setblocking(False)
            if not self._admits(connection):
                with connection:
                    connection.send(_NOT_YOU)
                return
            self._clients[connection.fileno()] = _Client(connection)
            self._poll.register(connection, select.EPOLLIN)

    def _admits(self, connection: socket.socket) -> bool:
        if self._users is None:
            return True
        _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return uid in self._users

    def _step(self, client: _Client) -> bool:
        """Returns False when the client is finished. One that does not read its answer is not listened to."""
        if not client.outgoing:
            data = client.socket.recv(MAX_LINE)
            if not data:
                return False
            client.incoming += data
            # Ends: each turn takes a line out.
            while (stop := client.incoming.find(b"\n")) >= 0:
                line = bytes(client.incoming[:stop])
                del client.incoming[: stop + 1]
                client.outgoing += self._answer(line) + b"\n"
            if len(client.incoming) > MAX_LINE:
                return False
        if client.outgoing:
            with contextlib.suppress(BlockingIOError):
                del client.outgoing[: client.socket.send(client.outgoing)]
        self._poll.modify(client.socket, select.EPOLLOUT if client.outgoing else select.EPOLLIN)
        return True

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._poll.unregister(fd)
        client.socket.close()

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            command = request["command"]
            if not isinstance(command, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return json.dumps({"error": 'send one JSON object per line, like {"command": "status"}'}).encode()
        try:
            return json.dumps(self.handler(command, request)).encode()
        except Exception as error:  # a question must not end the daemon
            log.error("internal error", during=f"control command {command}", error=repr(error))
            return json.dumps({"error": f"internal error, see the daemon's log: {error!r}"}).encode()

    def close(self) -> None:
        """Remove the socket. Can be repeated."""
        if self._socket.fileno() < 0:
            return
        for fd in list(self._clients):
            self._drop(fd)
        self._poll.close()
        self._socket.close()
        self.path.unlink(missing_ok=True)


def status_directory(run_dir: Path) -> Path:
    """Where the sockets are at which members of the status group ask: one for each instance."""
    return run_dir.with_name(f"{run_dir.name}-status")


def status_only(handler: Handler) -> Handler:
    """The same for people who may look, and order nothing."""

    def answer(command: str, request: dict[str, Any]) -> dict[str, Any]:
        if command not in ("status", "ping"):
            return {"error": f"'{command}' is for root: members of the status group may ask for the status alone"}
        return handler(command, request)

    return answer


def ask(path: Path, command: str, timeout_s: float = 5.0, service: str = "", **more: Any) -> dict[str, Any]:
    """Returns a daemon's answer. Raises `CommandError` if there is none.

    `service`: the address of the one that is asked; it need not be named where there is one. `more`: what the command
    needs besides.
    """
    request = {"command": command, **({"service": service} if service else {}), **more}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout_s)
            s.connect(str(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused: the reason is there to read
                s.sendall(json.dumps(request).encode() + b"\n")
            with s.makefile("rb") as answers:
                answer = json.loads(answers.readline() or b"{}")
    except PermissionError:
        raise CommandError(f"{path} belongs to root: run this as root") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"no daemon answers at {path} ({error}): is 'nfq-failover run' running?") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise CommandError(f"the daemon refuses: {answer.get('error') if isinstance(answer, dict) else answer}")
    return answer
