"""What the workloads send: bytes that both ends compute from a seed, and the fixed-size request and receipt records.

A server's answer depends on the client's bytes alone, so two replicas of it answer alike.
"""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from nfq_failover.errors import NfqFailoverError

REQUEST_SIZE: Final = 150  # the paper's request
INTERACTIVE_REPLY_SIZE: Final = 10_000

_BLOCK: Final = 65_536
_INDEX: Final = struct.Struct(">Q")
_REQUEST: Final = struct.Struct(">4sBBHQQQ")
_RECEIPT: Final = struct.Struct(">4sBxHQQQ32s")
_REQUEST_MAGIC: Final = b"STRQ"
_RECEIPT_MAGIC: Final = b"STRC"
_FLAG_DIGEST: Final = 0x01


class WrongRecord(NfqFailoverError):
    """A request or receipt whose bytes are not what its sender wrote."""


class Kind(IntEnum):
    """The workloads. The value is what a request carries."""

    ECHO = 1
    INTERACTIVE = 2
    BULK = 3
    UPLOAD = 4


class Content:
    """An endless byte stream that is a pure function of `seed`, readable at any offset.

    It is made of 64 KiB blocks: the block's number (8 bytes), then a window into 128 KiB of pseudo-random bytes that
    starts at another place for each block. So no part of the stream can pass for another part, and making it costs two
    copies.
    """

    def __init__(self, seed: int) -> None:
        self._base = random.Random(seed).randbytes(2 * _BLOCK)

    def read(self, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`."""
        first, skip = divmod(offset, _BLOCK)
        last = (offset + size - 1) // _BLOCK
        if first == last:
            return self._block(first)[skip : skip + size]
        return b"".join(self._block(index) for index in range(first, last + 1))[skip : skip + size]

    def _block(self, index: int) -> bytes:
        start = (index * 40_503) % _BLOCK  # 40503 is odd: all starts come up before one repeats (Knuth, 16 bit)
        return _INDEX.pack(index) + self._base[start : start + _BLOCK - _INDEX.size]


def count_wrong(got: bytes | memoryview, expected: bytes | memoryview) -> int:
    """How many bytes differ. Both have the same length."""
    if got == expected:
        return 0
    return sum(a != b for a, b in zip(got, expected, strict=True))


def first_wrong(got: bytes | memoryview, expected: bytes | memoryview) -> int | None:
    """Index of the first byte that differs, or None."""
    return next((i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b), None)


@dataclass(frozen=True, slots=True)
class Request:
    """150 bytes that ask for one exchange.

    `size` is the length in bytes of the reply's body (interactive, bulk) or of the upload's body; 0 for echo. `number`
    counts the exchanges of a connection from 0. `digest` asks the server for a SHA-256 of the upload.
    """

    kind: Kind
    seed: int
    number: int
    size: int
    digest: bool = True

    @property
    def body_offset(self) -> int:
        """Where in the seed's stream the body of this exchange starts."""
        return self.number * self.size

    def encode(self) -> bytes:
        """The request's 150 bytes. What follows the header is a function of it, so that damage anywhere shows."""
        flags = _FLAG_DIGEST if self.digest else 0
        head = _REQUEST.pack(_REQUEST_MAGIC, self.kind, flags, REQUEST_SIZE, self.seed, self.number, self.size)
        return _fill(head)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Parse 150 bytes. Raises WrongRecord if a single one of them is wrong."""
        head = data[: _REQUEST.size]
        if len(data) != REQUEST_SIZE or data != _fill(head):
            raise WrongRecord("a damaged request")
        magic, kind, flags, size, seed, number, body = _REQUEST.unpack(head)
        if magic != _REQUEST_MAGIC or size != REQUEST_SIZE or kind not in list(Kind):
            raise WrongRecord("not a request")
        return cls(Kind(kind), seed, number, body, bool(flags & _FLAG_DIGEST))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's 150-byte answer to an upload: what it read, counted and digested byte by byte.

    `sha256` is 32 zero bytes if the request asked for no digest.
    """

    number: int
    received: int
    wrong_bytes: int
    sha256: bytes

    def encode(self) -> bytes:
        """The receipt's 150 bytes."""
        return _fill(
            _RECEIPT.pack(
                _RECEIPT_MAGIC, Kind.UPLOAD, REQUEST_SIZE, self.number, self.received, self.wrong_bytes, self.sha256
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """Parse 150 bytes. Raises WrongRecord if a single one of them is wrong."""
        head = data[: _RECEIPT.size]
        if len(data) != REQUEST_SIZE or data != _fill(head):
            raise WrongRecord("a damaged receipt")
        magic, kind, size, number, received, wrong, sha256 = _RECEIPT.unpack(head)
        if magic != _RECEIPT_MAGIC or kind != Kind.UPLOAD or size != REQUEST_SIZE:
            raise WrongRecord("not a receipt")
        return cls(number, received, wrong, sha256)


def _fill(head: bytes) -> bytes:
    return head + hashlib.shake_128(head).digest(REQUEST_SIZE - len(head))
