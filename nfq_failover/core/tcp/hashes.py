"""Hashes of a stream's bytes, block by block: the same on both hosts, so that two outputs can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s

from xxhash import xxh3_64, xxh3_64_intdigest

from nfq_failover.wire.records import DIGEST_BLOCK, EDGE_BYTES, MAX_MARKS, Mark


def hash_seed(key: bytes) -> int:
    """The seed of both hosts' hashes: without the shared key nobody can construct a collision offline."""
    return int.from_bytes(blake2s(key, digest_size=8, person=b"nfqfhash").digest(), "big")


def block_hashes(pieces: Iterable[bytes | memoryview], seed: int) -> list[int]:
    """The hash of each `DIGEST_BLOCK` bytes of the concatenated pieces, and of what is left."""
    found: list[int] = []
    hasher = None
    room = DIGEST_BLOCK
    for piece in pieces:
        at, size = 0, len(piece)
        if hasher is not None:
            at = min(room, size)
            hasher.update(piece[:at])
            room -= at
            if room:
                continue
            found.append(hasher.intdigest())
            hasher = None
        whole = size - (size - at) % DIGEST_BLOCK
        found += [xxh3_64_intdigest(piece[i : i + DIGEST_BLOCK], seed) for i in range(at, whole, DIGEST_BLOCK)]
        if whole < size:
            hasher = xxh3_64(piece[whole:], seed)
            room = DIGEST_BLOCK - (size - whole)
    if hasher is not None:
        found.append(hasher.intdigest())
    return found


def make_marks(pieces: Sequence[bytes | memoryview], seed: int) -> tuple[Mark, ...]:
    """The marks of pieces that follow each other, none of them empty; neighbours share one if there are too many."""
    share = -(-len(pieces) // MAX_MARKS)
    if share > 1:
        pieces = [b"".join(pieces[i : i + share]) for i in range(0, len(pieces), share)]
    return tuple(
        Mark(
            len(piece), short_hash(piece, seed), short_hash(piece[:EDGE_BYTES], seed), short_hash(tail_of(piece), seed)
        )
        for piece in pieces
    )


def tail_of(piece: bytes | memoryview) -> bytes | memoryview:
    """The last `EDGE_BYTES` of it."""
    return piece[max(len(piece) - EDGE_BYTES, 0) :]


def short_hash(data: bytes | memoryview, seed: int) -> int:
    """32 bits of the hash: where two blocks are known to differ, it says where."""
    return xxh3_64_intdigest(data, seed) & 0xFFFFFFFF


def cut(pieces: Sequence[bytes | memoryview], size: int) -> Iterator[list[bytes | memoryview]]:
    """The pieces in parts of `size` bytes together, the last one perhaps shorter; a piece between two is cut."""
    part: list[bytes | memoryview] = []
    room = size
    for piece in pieces:
        at = 0
        while at < len(piece):  # Ends: `at` grows, since there always is room
            taken = piece[at : at + room]
            part.append(taken)
            at += len(taken)
            room -= len(taken)
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part
