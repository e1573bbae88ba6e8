"""The dialogue that compares what the two servers have sent, by hashes and, where they differ, by bytes."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, pack, unpack_from
from typing import Final, NamedTuple, Self

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records.base import MAX_DATA, THREE, TWO, Record, Towards, declare

__all__ = [
    "DIGEST_BLOCK",
    "EDGE_BYTES",
    "MAX_HASHES",
    "MAX_MARKS",
    "MAX_UNSEEN",
    "BytesAsked",
    "BytesSent",
    "Digest",
    "DigestSeen",
    "Mark",
]

DIGEST_BLOCK: Final = 1280
"""Bytes per hash. Less than a usual segment: a replica that may send one segment can always complete a block."""
MAX_HASHES: Final = 96
EDGE_BYTES: Final = 32
"""Both ends of a mark have hashes of their own: where one of them agrees, no difference goes on there."""
MAX_MARKS: Final = 16
MAX_UNSEEN: Final = 2048
"""Digests of one connection that the primary keeps, and repeats, until they are compared."""
_MARK: Final = Struct("!IIII")


class Mark(NamedTuple):
    """What the server has sent together, perhaps with what came next: `length` bytes, and 32 bits of the hashes of all
    of them, of the first `EDGE_BYTES` and of the last (of all, if there are fewer)."""

    length: int
    whole: int
    head: int
    tail: int


@declare(30, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Digest(Record):
    """Primary -> backup: hashes (XXH3, 64 bits) of what my server has sent, one for each `DIGEST_BLOCK` bytes from
    `seq` on, the last one for what is left of `length`. `marks`, `MAX_MARKS` at most, have the same bytes once more,
    cut where the segments end: after a crash they tell where a block differs, and a client has all of one, or nothing.
    Repeated until `DigestSeen` has passed it.

    Without hashes: these bytes can't be compared. A `length` of 0 says only that the server's output is digested.
    """

    conn: int
    seq: int
    length: int
    hashes: tuple[int, ...] = ()
    marks: tuple[Mark, ...] = ()

    def encode(self) -> bytes:
        count = len(self.hashes)
        if count > MAX_HASHES or (count and count != -(-self.length // DIGEST_BLOCK)):
            raise InternalError(f"a digest of {self.length} bytes with {count} hashes")
        if not _fit(self.length, self.marks, bool(count)):
            raise InternalError(f"a digest of {self.length} bytes with marks of {[mark.length for mark in self.marks]}")
        head = THREE.pack(self.conn, self.seq, self.length) + pack(f"!{count}Q", *self.hashes)
        return head + b"".join(_MARK.pack(*mark) for mark in self.marks)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, length = THREE.unpack_from(value)
        if len(value) == THREE.size:
            return cls(conn, seq, length)
        count = -(-length // DIGEST_BLOCK)
        at = THREE.size + 8 * count
        if not 0 < count <= MAX_HASHES or len(value) < at or (len(value) - at) % _MARK.size:
            raise MalformedDatagram("bad-digest")
        marks = tuple(map(Mark._make, _MARK.iter_unpack(value[at:])))
        if not _fit(length, marks, True):
            raise MalformedDatagram("bad-digest")
        return cls(conn, seq, length, unpack_from(f"!{count}Q", value, THREE.size), marks)


def _fit(length: int, marks: tuple[Mark, ...], hashed: bool) -> bool:
    """Whether marks have exactly the bytes of a digest, or there are none."""
    return not marks or (hashed and len(marks) <= MAX_MARKS and sum(mark.length for mark in marks) == length)


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
