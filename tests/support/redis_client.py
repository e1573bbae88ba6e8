"""A client of redis that takes whole answers (RESP2), whatever is in them."""

from __future__ import annotations

import socket


class RedisClient:
    """One connection to redis."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.name = "{}:{}".format(*connection.getsockname())
        self._file = connection.makefile("rb")

    def ask(self, *words: str) -> object:
        """Send a command; its answer."""
        parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)]
        self.socket.sendall(b"".join(parts))
        return self.answer()

    def answer(self) -> object:
        """The next answer: bytes, a number, None or a list."""
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        assert kind in b"+:-" and line, line
        return int(rest) if kind == b":" else rest
