"""The witness's datagrams: a question and its answer, each authenticated.

    magic (4)  kind (1)  nonce (16)  low (8)  high (8)  granted (1)  names (...)  MAC (16)

The MAC is keyed BLAKE2s (RFC 7693) over everything before it. The nonce is the asker's, and comes back with the answer,
so an answer belongs to one question. A question may be repeated or replayed: see core/pair/witness.py. `names`: the
pair, and the host that asks (in an answer: the host that has the right), separated by a zero byte. Numbers are
big-endian.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import blake2s
from struct import Struct

from nfq_failover.errors import MalformedDatagram

MAGIC = b"nfqW"
NONCE_BYTES = 16
MAC_BYTES = 16
MAX_BYTES = 400
_ASK, _ANSWER = 1, 2
_HEAD = Struct("!4sB16sQQB")


@dataclass(frozen=True, slots=True)
class Question:
    """May `host` of `pair` act alone, whose peer may hold the pacts from `low` to `high`?

    With 0 for both it asks for no decision, only for an answer.
    """

    nonce: bytes
    pair: str
    host: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Answer:
    """It may, or `holder` may."""

    nonce: bytes
    pair: str
    holder: str
    high: int
    granted: bool


def witness_key(key: bytes) -> bytes:
    """The key of these datagrams, from the one that the hosts and the witness share."""
    return blake2s(key, person=b"nfqfwitn").digest()


def seal(message: Question | Answer, key: bytes) -> bytes:
    """A whole datagram."""
    if isinstance(message, Question):
        head = _HEAD.pack(MAGIC, _ASK, message.nonce, message.low, message.high, 0)
        names = f"{message.pair}\0{message.host}"
    else:
        head = _HEAD.pack(MAGIC, _ANSWER, message.nonce, 0, message.high, message.granted)
        names = f"{message.pair}\0{message.holder}"
    data = head + names.encode()
    return data + blake2s(data, key=key, digest_size=MAC_BYTES).digest()


def unseal(data: bytes, key: bytes) -> Question | Answer:
    """Raises `MalformedDatagram`."""
    if not _HEAD.size + MAC_BYTES < len(data) <= MAX_BYTES:
        raise MalformedDatagram("bad-length")
    signed = data[:-MAC_BYTES]
    if not hmac.compare_digest(blake2s(signed, key=key, digest_size=MAC_BYTES).digest(), data[-MAC_BYTES:]):
        raise MalformedDatagram("bad-mac")
    magic, kind, nonce, low, high, granted = _HEAD.unpack_from(signed)
    pair, zero, name = signed[_HEAD.size :].decode(errors="replace").partition("\0")
    if magic != MAGIC or not zero or not pair or not name:
        raise MalformedDatagram("bad-witness")
    if kind == _ASK and (0 < low <= high or low == high == 0):
        return Question(nonce, pair, name, low, high)
    if kind == _ANSWER:
        return Answer(nonce, pair, name, high, bool(granted))
    raise MalformedDatagram("bad-witness")
