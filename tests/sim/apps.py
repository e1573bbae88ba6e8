"""Deterministic servers and the clients that check every byte of them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2s
from itertools import accumulate
from random import Random

from .application import Application
from .clock import Clock
from .scenario import DOWNLOAD, ECHO, PUSH, TURNS, Connection, HostPlan
from .tcp import Tcp

HEADER = 8
MOST_BYTES = 60_000  # that a client sends, or asks for
LENGTH, DIGEST = 2, 8  # of a message's length, and of its answer
PUSH_BYTES, PUSH_PIECE, PUSH_EVERY_S = 50_000, 500, 0.02


def stream(count: int, salt: int) -> bytes:
    """Bytes that differ at every place."""
    return Random(salt).randbytes(count)


class Server:
    """One connection of the server application. It answers the same on every host, only not at the same time, nor in
    pieces of the same size; but not if it is `odd`."""

    def __init__(
        self, clock: Clock, tcp: Tcp, plan: HostPlan, random: Random, process: Application, odd: bool = False
    ) -> None:
        self.odd = odd
        self.process, self.written = process, 0
        self.clock, self.tcp, self.random, self.delay = clock, tcp, random, plan.app_delay
        self.read_size, self.write_size = plan.read_size or 1 << 30, plan.write_size or 1 << 30
        self.port = tcp.local[1]
        self.read = bytearray()
        self.pending = bytearray()
        self.turn = 0  # where the client's next message begins
        self.reset = False
        self._scheduled = False
        self._answered = self._due = False
        tcp.app = self
        if self.port == PUSH:
            self._push()

    def readable(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.clock.after(self.delay * self.random.random(), self._run)

    def closed(self, reset: bool) -> None:
        self.reset = reset

    def _run(self) -> None:
        self._scheduled = False
        if self.tcp.app is not self:
            return
        if self.process.state == "hung":
            self.process.stops(self)
            return
        if self._due:
            self._push()
        data = self.tcp.read(self.read_size)
        self.read += data
        if self.port == ECHO:
            self.pending += data
        elif self.port == TURNS:
            self._take_turns()
        elif len(self.read) >= HEADER and not self._answered:
            self._answer(int.from_bytes(self.read[:HEADER], "big"))
        size, exit_at = self.write_size, self.process.exit_at
        if exit_at is not None:
            size = min(size, max(exit_at - self.written, 0))
        taken = self.tcp.write(twisted(self.pending[:size]) if self.odd else bytes(self.pending[:size]))
        self.written += taken
        del self.pending[:taken]
        if exit_at is not None and self.written >= exit_at:
            self.process.exits(self.tcp)
            return
        if (self.pending and taken == self.write_size) or len(data) == self.read_size:
            self.readable()  # there is more to do, later
        if not self.pending and (self.tcp.at_end or (self._answered and self.port in (DOWNLOAD, PUSH))):
            self.tcp.close()

    def _take_turns(self) -> None:
        """Answer the message that is there. Its client waits for the answer: what lies behind the message is not his,
        or so a server may think, as PostgreSQL does of what follows a client's question whether it speaks TLS."""
        message = self.read[self.turn :]
        size = LENGTH + int.from_bytes(message[:LENGTH], "big")
        if not LENGTH < size <= len(message):
            return
        behind = len(message) - size + self.tcp.received.end - self.tcp.read_at
        silent = not self.process.host.serves  # after a takeover nobody tells what a client sends once more
        assert not (behind and silent), f"{behind} bytes of the client have come before it could have been answered"
        self.pending += blake2s(message).digest()[:DIGEST]
        self.turn += size

    def _push(self) -> None:
        """The next piece is due: nobody has asked for it. A process that hangs says it, and all others, later."""
        self._due = self.process.state == "hung"
        if self._due:
            self.process.stops(self)
            return
        at = self.written + len(self.pending)
        self.pending += stream(PUSH_BYTES, PUSH_BYTES)[at : at + PUSH_PIECE]
        self._answered = at + PUSH_PIECE >= PUSH_BYTES
        if not self._answered and self.tcp.app in (self, None):
            self.clock.after(PUSH_EVERY_S, self._push)
        self.readable()

    def _answer(self, count: int) -> None:
        if self.port == DOWNLOAD:
            self._answered = True
            self.pending += stream(count, count)
        elif len(self.read) >= HEADER + count:
            self._answered = True
            self.pending += blake2s(self.read[HEADER : HEADER + count]).digest()


def messages(random: Random, salt: int) -> list[bytes]:
    """What the client of a server that takes turns sends."""
    sizes = [random.choice((1, 8, 300, 3000)) for _ in range(random.choice((1, 5, 30)))]
    return [size.to_bytes(LENGTH, "big") + stream(size, salt + at) for at, size in enumerate(sizes)]


def twisted(data: bytes | bytearray) -> bytes:
    """What an odd server sends instead."""
    return bytes(byte ^ 0x55 for byte in data)


class Client:
    """One connection of the client: what it sends, in pieces, and what it expects."""

    def __init__(self, clock: Clock, tcp: Tcp, plan: Connection) -> None:
        self.clock, self.tcp, self.pause, self.sip, self.early = clock, tcp, plan.pause, plan.sip, plan.early
        self.rests = plan.rests
        salt = plan.salt
        self.port = tcp.remote[1]
        self.odd = plan.odd
        rng = Random(salt)
        size = rng.choice((1, 400, 5000, 20_000, MOST_BYTES))
        self.expected = b""
        if self.port == ECHO:
            self.out = stream(size, salt)
            self.expected = self.out
        elif self.port == TURNS:
            turns = messages(rng, salt)
            self.out, self.turns = b"".join(turns), [0, *accumulate(map(len, turns))]
            self.expected = b"".join(blake2s(message).digest()[:DIGEST] for message in turns)
        elif self.port == PUSH:
            self.out = b""
            self.expected = stream(PUSH_BYTES, PUSH_BYTES)
        elif self.port == DOWNLOAD:
            self.out = size.to_bytes(HEADER, "big")
            self.expected = stream(size, size)
        else:
            body = stream(size, salt)
            self.out = size.to_bytes(HEADER, "big") + body
            self.expected = blake2s(body).digest()
        self.piece = rng.choice((max(size // 20, 150), 1 << 20))
        self.abort_at = plan.abort_at
        self.sent = 0
        self.got = bytearray()
        self.reset = self.over = self.aborted = False
        self.on_over: Callable[[], None] | None = None
        tcp.app = self
        self._scheduled = False

    def start(self) -> None:
        """The client connects."""
        self.tcp.connect()

    def readable(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            idle = self.piece < 1 << 20 and self.sent and len(self.got) >= min(self.sent, len(self.expected))
            self.clock.after(self.pause if idle else 0.0001, self._run)

    def _run(self) -> None:
        self._scheduled = False
        if self.over:
            return
        sip = self.tcp.read(self.sip or 1 << 30)
        self.got += sip
        if self.rests and sip:
            self._scheduled = True
            self.clock.after(self.rests, self._run)
            self.rests = 0.0
            return
        if self.sip and sip:
            self.clock.after(0.003, self.readable)  # a slow reader: the window closes
        if self.tcp.state == "closed" and self.tcp.at_end:
            self._end()
            return
        if self.tcp.at_end and len(self.got) < len(self.expected):
            self.tcp.close()  # too early; there is nothing to wait for
            return
        if self.abort_at is not None and len(self.got) >= self.abort_at:
            self.aborted = True
            self.tcp.abort()
            return
        done = len(self.got) >= len(self.expected)
        lockstep = self.port != ECHO or len(self.got) >= min(self.sent, len(self.expected))
        wrote = 0
        if self.port == TURNS and not done:
            turn = self.turns[len(self.got) // DIGEST + 1]
            self.sent += self.tcp.write(self.out[self.sent : turn])
        elif self.sent < len(self.out) and lockstep:
            wrote = self.tcp.write(self.out[self.sent : self.sent + self.piece])
            self.sent += wrote
        if self.sent >= len(self.out) and (done or self.early):
            self.tcp.close()
        elif wrote and self.sent < len(self.out) and self.port != ECHO:
            self.readable()

    def closed(self, reset: bool) -> None:
        self.reset = reset
        if reset or self.aborted or self.tcp.at_end:
            self._end()

    def _end(self) -> None:
        self.over = True
        if self.on_over:
            self.on_over()

    @property
    def ending(self) -> bool:
        """Whether nothing is left to happen."""
        return self.over or (self.tcp.state == "time-wait" and self.tcp.at_end)

    @property
    def finished(self) -> bool:
        """Whether every byte is there and the connection has ended in order (TIME_WAIT counts as over)."""
        ended = self.tcp.state in ("time-wait", "closed") and not self.reset
        return self.aborted or (ended and bytes(self.got) == self.expected)
