"""The dialogue that compares what the two servers have sent, by hashes and, where they differ, by bytes."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Final, Self

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records.base import MAX_DATA, THREE, TWO, Record, Towards, declare

__all__ = ["DIGEST_BLOCK", "MAX_HASHES", "MAX_UNSEEN", "TAIL_BYTES", "BytesAsked", "BytesSent", "Digest", "DigestSeen"]

DIGEST_BLOCK: Final = 1280
"""Bytes per hash. Less than a usual segment: a replica that may send one segment can always complete a block."""
MAX_HASHES: Final = 128
TAIL_BYTES: Final = 64
MAX_UNSEEN: Final = 2048  # digests of one connection that the primary keeps, and repeats, until they are compared
"""The end of a digest has a hash of its own: where it agrees, a difference before it has ended."""


@declare(30, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Digest(Record):
    """Primary -> backup: hashes (XXH3, 64 bits) of what my server has sent, one for each `DIGEST_BLOCK` bytes from
    `seq` on, the last one for what is left of `length`. `tail`: the hash of the last `TAIL_BYTES` of them, or of all if
    they are fewer. Repeated until `DigestSeen` has passed it.

    Without hashes: these bytes can't be compared. A `length` of 0 says only that the server's output is digested.
    """

    conn: int
    seq: int
    length: int
    hashes: tuple[int, ...] = ()
    tail: int = 0

    def encode(self) -> bytes:
        count = len(self.hashes)
        if count > MAX_HASHES or (count and count != -(-self.length // DIGEST_BLOCK)):
            raise InternalError(f"a digest of {self.length} bytes with {count} hashes")
        head = THREE.pack(self.conn, self.seq, self.length)
        return head + pack(f"!{count + 1}Q", *self.hashes, self.tail) if count else head

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, length = THREE.unpack_from(value)
        count, rest = divmod(len(value) - THREE.size, 8)
        if not count and not rest:
            return cls(conn, seq, length)
        if rest or not 1 < count <= MAX_HASHES + 1 or count - 1 != -(-length // DIGEST_BLOCK):
            raise MalformedDatagram("bad-digest")
        *hashes, tail = unpack_from(f"!{count}Q", value, THREE.size)
        return cls(conn, seq, length, tuple(hashes), tail)


_COUNT, _OPEN = 0x7FFFFFFF, 0x80000000  # in one field


@declare(31, Towards.GATE)
@dataclass(frozen=True, slots=True)
class DigestSeen(Record):
    """Backup -> primary: every byte before `compared` has been compared, and they differed in so many places.

    `open`: the last of these differences has not ended, so a takeover now would reset the connection.
    """

    conn: int
    compared: int
    differences: int
    open: bool = False

    def encode(self) -> bytes:
        return THREE.pack(self.conn, self.compared, self.differences & _COUNT | self.open * _OPEN)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, compared, differences = THREE.unpack(value)
        return cls(conn, compared, differences & _COUNT, bool(differences & _OPEN))


@declare(32, Towards.GATE, "!III")
@dataclass(frozen=True, slots=True)
class BytesAsked(Record):
    """Backup -> primary: what has your server sent in [start, end)? At most `DIGEST_BLOCK` bytes."""

    conn: int
    start: int
    end: int


@declare(33, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class BytesSent(Record):
    """Primary -> backup: what my server has sent from `seq` on; empty if that is not known any more."""

    conn: int
    seq: int
    data: bytes

    def encode(self) -> bytes:
        if len(self.data) > MAX_DATA:
            raise InternalError(f"a record of {len(self.data)} sent bytes")
        return TWO.pack(self.conn, self.seq) + self.data

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq = TWO.unpack_from(value)
        if len(value) > TWO.size + MAX_DATA:
            raise MalformedDatagram("bad-bytes")
        return cls(conn, seq, value[TWO.size :])
