"""Hashes of a stream's bytes, block by block: the same on both hosts, so that two outputs can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2s

from xxhash import xxh3_64, xxh3_64_intdigest

from nfq_failover.wire.records import DIGEST_BLOCK, TAIL_BYTES


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


def tail_hash(pieces: Sequence[bytes | memoryview], length: int, seed: int) -> int:
    """The hash of the last `TAIL_BYTES` of the concatenated pieces, or of the last `length` if those are fewer."""
    size = min(TAIL_BYTES, length)
    if pieces and len(pieces[-1]) >= size:
        return xxh3_64_intdigest(pieces[-1][len(pieces[-1]) - size :], seed)
    whole = b"".join(pieces)
    return xxh3_64_intdigest(whole[len(whole) - size :], seed)
