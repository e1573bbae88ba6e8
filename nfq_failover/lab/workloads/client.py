"""The client side of all workloads: one thread per connection, every byte checked, every silence timed."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nfq_failover.errors import NfqFailoverError
from nfq_failover.lab.workloads.content import (
    INTERACTIVE_REPLY_SIZE,
    REQUEST_SIZE,
    Content,
    Kind,
    Receipt,
    Request,
    WrongRecord,
)
from nfq_failover.lab.workloads.report import ConnectionReport, SilenceClock

_CHUNK: Final = 262_144
# struct tcp_info of linux/tcp.h: tcpi_bytes_acked is an unsigned 64-bit integer at byte 120.
_BYTES_ACKED: Final = struct.Struct("=Q")
_BYTES_ACKED_OFFSET: Final = 120


class WorkloadFailed(NfqFailoverError):
    """The connection did not do what it must do. The message is the report's `error`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client run does.

    `kinds` and `ports` are dealt out to the connections in turn. `size` is the body in bytes of bulk and upload. A
    connection ends after `count` exchanges, or with the first one that ends after `seconds`; `rate` limits its
    exchanges per second.
    """

    kinds: Sequence[Kind]
    host: str
    ports: Sequence[int]
    connections: int = 1
    size: int = 1_000_000
    count: int | None = 1
    seconds: float | None = None
    rate: float | None = None
    seed: int = 1
    digest: bool = True
    stall_timeout_s: float = 30.0

    def body_size(self, kind: Kind) -> int:
        """The request's `size` for this kind of exchange, in bytes."""
        return {Kind.ECHO: 0, Kind.INTERACTIVE: INTERACTIVE_REPLY_SIZE}.get(kind, self.size)


def run_client(plan: Plan, on_started: Callable[[], None] = lambda: None) -> list[ConnectionReport]:
    """Run all connections to their end. `on_started` is called once, when every connection is open (or has failed)."""
    runs = [
        _Connection(plan, index, plan.kinds[index % len(plan.kinds)], plan.ports[index % len(plan.ports)])
        for index in range(plan.connections)
    ]
    threads = [threading.Thread(target=run.run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for run in runs:
        run.opened.wait()
    on_started()
    for thread in threads:
        thread.join()
    return [run.report for run in runs]


class _Connection:
    """One connection of a plan, from connect to the end of the server's stream."""

    def __init__(self, plan: Plan, index: int, kind: Kind, port: int) -> None:
        self._plan = plan
        self._kind = kind
        self._seed = plan.seed * 100_003 + index  # every connection has a stream of its own
        self._content = Content(self._seed)
        self._digest = hashlib.sha256() if plan.digest else None
        self._buffer = memoryview(bytearray(_CHUNK))
        # Many uploads share one interpreter lock: look less often then.
        self._sample_s = 0.002 * min(10, max(1, plan.connections // 4))
        self._received = 0
        self.opened = threading.Event()
        self.report = ConnectionReport(kind=kind.name.lower(), port=port)

    def run(self) -> None:
        """Run it to its end. What the network or the server did wrong is in the report, and never raised."""
        began = time.monotonic()
        self._silence = SilenceClock(began)
        self.report.begin(began)
        try:
            with self._connect() as connection:
                connected = time.monotonic()
                self.report.connected(connected - began)
                self._silence = SilenceClock(connected)
                self.opened.set()
                for number in self._numbers():
                    self._exchange(connection, number)
                self._finish(connection)
            if self.report.wrong_bytes:
                raise WorkloadFailed(f"{self.report.wrong_bytes} wrong bytes")
            self.report.succeed()
        except TimeoutError:
            self.report.fail(f"stalled: nothing for {self._plan.stall_timeout_s:g} s after {self._received} bytes")
        except OSError as error:
            self.report.fail(f"broken after {self._received} bytes: {error.strerror or error}")
        except NfqFailoverError as error:
            self.report.fail(str(error))
        finally:
            self.opened.set()
        ended = time.monotonic()
        if self.report.error:
            self._silence.progress(ended)  # what it waited for in vain counts
        self.report.end(ended - began, self._silence, self._digest.hexdigest() if self._digest else None)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((self._plan.host, self.report.port), timeout=self._plan.stall_timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _numbers(self) -> Iterator[int]:
        """The numbers of the exchanges, each at its time."""
        began = due = time.monotonic()
        number = 0
        while self._plan.count is None or number < self._plan.count:
            if self._plan.seconds is not None and time.monotonic() - began >= self._plan.seconds:
                return
            if self._plan.rate:
                if (wait := due - time.monotonic()) > 0:
                    time.sleep(wait)
                due = max(due, time.monotonic() - 1 / self._plan.rate) + 1 / self._plan.rate  # no burst after a stall
            yield number
            number += 1

    def _exchange(self, connection: socket.socket, number: int) -> None:
        size = self._plan.body_size(self._kind)
        request = Request(self._kind, self._seed, number, size, self._plan.digest)
        data = request.encode()
        began = time.monotonic()
        self._silence.ask(began)
        connection.sendall(data)
        if self._kind is Kind.UPLOAD:
            self._upload(connection, request)
        elif self._kind is Kind.ECHO:
            self._read(connection, REQUEST_SIZE, lambda offset, length: data[offset : offset + length])
        else:
            start = request.body_offset
            self._read(connection, size, lambda offset, length: self._content.read(start + offset, length))
        self.report.exchanged(time.monotonic() - began)

    def _read(self, connection: socket.socket, size: int, expected: Callable[[int, int], bytes]) -> None:
        """Read and check `size` bytes; `expected(offset, length)` says what they must be."""
        done = 0
        while done < size:
            chunk = self._receive(connection, size - done)
            if self._digest:
                self._digest.update(chunk)
            self.report.read(chunk, expected(done, len(chunk)))
            done += len(chunk)

    def _receive(self, connection: socket.socket, limit: int) -> memoryview:
        size = connection.recv_into(self._buffer, min(_CHUNK, limit))
        if size == 0:
            raise WorkloadFailed(f"short: the stream ended after {self._received} bytes, {limit} or more were due")
        self._silence.progress(time.monotonic())
        self._received += size
        return self._buffer[:size]

    def _upload(self, connection: socket.socket, request: Request) -> None:
        """Send the body, watch how far the server acknowledges, and compare its receipt."""
        sent_digest = hashlib.sha256()
        sent = 0
        pending = memoryview(b"")
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLOUT)
        acked = _bytes_acked(connection)
        while True:
            events = poll.poll(self._sample_s * 1000)
            flags = events[0][1] if events else 0
            if flags & (select.POLLIN | select.POLLHUP | select.POLLERR):
                break
            if flags & select.POLLOUT:
                if not pending and sent < request.size:
                    chunk = self._content.read(request.body_offset + sent, min(_CHUNK, request.size - sent))
                    if self._digest:
                        sent_digest.update(chunk)
                        self._digest.update(chunk)
                    pending = memoryview(chunk)
                    sent += len(chunk)
                if pending:
                    pending = pending[connection.send(pending, socket.MSG_DONTWAIT) :]
                elif sent == request.size:
                    poll.modify(connection, select.POLLIN)
            acked = self._watch(connection, acked)
        self._check_receipt(connection, request, sent_digest.digest() if self._digest else bytes(32))

    def _watch(self, connection: socket.socket, acked: int) -> int:
        now = time.monotonic()
        if (fresh := _bytes_acked(connection)) != acked:
            self._silence.progress(now)
        elif now - self._silence.last > self._plan.stall_timeout_s:
            raise TimeoutError
        return fresh

    def _check_receipt(self, connection: socket.socket, request: Request, sha256: bytes) -> None:
        data = b""
        while len(data) < REQUEST_SIZE:
            data += self._receive(connection, REQUEST_SIZE - len(data))
        try:
            receipt = Receipt.decode(data)
        except WrongRecord as error:
            self.report.add_wrong(1)
            raise WorkloadFailed(f"the server's receipt is wrong: {error}") from error
        self.report.uploaded(receipt)
        if (receipt.number, receipt.received) != (request.number, request.size):
            raise WorkloadFailed(f"the server read {receipt.received} of {request.size} bytes")
        if receipt.sha256 != sha256:
            if not receipt.wrong_bytes:
                self.report.add_wrong(1)
            raise WorkloadFailed(f"the server's SHA-256 differs; it counts {receipt.wrong_bytes} wrong bytes")

    def _finish(self, connection: socket.socket) -> None:
        """Close our half and wait for the server's end: no more bytes, no reset."""
        self._silence.ask(time.monotonic())
        connection.shutdown(socket.SHUT_WR)
        extra = 0
        while size := connection.recv_into(self._buffer):
            extra += size
        self._silence.progress(time.monotonic())
        if extra:
            self.report.add_wrong(extra)
            raise WorkloadFailed(f"{extra} bytes more than asked for")


def _bytes_acked(connection: socket.socket) -> int:
    size = _BYTES_ACKED_OFFSET + _BYTES_ACKED.size
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_OFFSET)[0])
