"""The server side of all workloads: one thread per connection, plain blocking sockets.

What it sends on a connection is a function of what it read there, byte for byte, whatever the timing: it can be
replicated.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.workloads.content import REQUEST_SIZE, Content, Kind, Receipt, Request, WrongRecord, count_wrong

_CHUNK: Final = 262_144
_BACKLOG: Final = 1024
BAD_REQUEST: Final = b"a damaged request".ljust(REQUEST_SIZE, b"!")


class Server:
    """A listener on every port in `ports` of `host`; `close` ends the listening, open connections may finish."""

    def __init__(self, host: str, ports: Iterable[int]) -> None:
        self._listeners: list[socket.socket] = []
        for port in ports:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            except OSError as error:
                self.close()
                raise CommandError(
                    f"can't listen on {host} port {port}: {error.strerror}. Choose another --port, or stop what has it."
                ) from error
            self._listeners.append(listener)

    @property
    def ports(self) -> list[int]:
        """The ports in use; a requested port 0 shows the one that the kernel chose."""
        return [int(listener.getsockname()[1]) for listener in self._listeners]

    def start(self) -> None:
        """Accept on every port, each in a daemon thread."""
        for listener in self._listeners:
            threading.Thread(target=_accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            listener.close()


def run_server(host: str, ports: Iterable[int]) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = Server(host, ports)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    server.start()
    print("listening on", host, "ports", *server.ports, file=sys.stderr, flush=True)
    stop.wait()
    server.close()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _address = listener.accept()
        except OSError:
            return  # closed
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        contents: dict[int, Content] = {}
        while data := _read_exactly(connection, REQUEST_SIZE):
            try:
                request = Request.decode(data)
            except WrongRecord:
                connection.sendall(BAD_REQUEST)
                return
            if request.seed not in contents:
                contents = {request.seed: Content(request.seed)}
            _answer(connection, request, data, contents[request.seed])


def _answer(connection: socket.socket, request: Request, data: bytes, content: Content) -> None:
    if request.kind is Kind.ECHO:
        connection.sendall(data)
    elif request.kind is Kind.UPLOAD:
        connection.sendall(_receive(connection, request, content).encode())
    else:
        sent = 0
        while sent < request.size:
            step = min(_CHUNK, request.size - sent)
            connection.sendall(content.read(request.body_offset + sent, step))
            sent += step


def _receive(connection: socket.socket, request: Request, content: Content) -> Receipt:
    buffer = memoryview(bytearray(_CHUNK))
    digest = hashlib.sha256() if request.digest else None
    received = wrong = 0
    while received < request.size:
        size = connection.recv_into(buffer, min(_CHUNK, request.size - received))
        if size == 0:
            break  # a short upload: the receipt says how short
        chunk = buffer[:size]
        if digest:
            digest.update(chunk)
        wrong += count_wrong(chunk, content.read(request.body_offset + received, size))
        received += size
    return Receipt(request.number, received, wrong, digest.digest() if digest else bytes(32))


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or b"" at the end of the stream (also when it ends in the middle of a request)."""
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            return b""
        data += chunk
    return bytes(data)
