"""Questions to a daemon outside of any session, and its answers: the bodies of ASK and TOLD.

    ASK     nonce (16)  names
    TOLD    nonce (16), that of the question  part (1)  parts (1)  length of names (1)  names  records

The names are the sender's and the receiver's, with a zero byte between them. Both kinds are sealed with the key of the
handshake. A question may come from any port, and changes nothing at the host that answers; the answer is as fresh as
the nonce. Records are those of wire/records/host.py; a long answer has several parts, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.datagram import NONCE_BYTES, OVERHEAD
from nfq_failover.wire.records import Record, decode_records, encode_record

MAX_PARTS: Final = 8
_PART = Struct("!BBB")
Names = tuple[str, str]


def _pack_names(names: Names) -> bytes:
    return "\0".join(names).encode()


def _read_names(data: bytes) -> Names:
    sender, _, receiver = data.decode(errors="replace").partition("\0")
    return sender, receiver


@dataclass(frozen=True, slots=True)
class Question:
    """The body of an ASK: `names` are the asking host's and the asked one's."""

    nonce: bytes
    names: Names

    def encode(self) -> bytes:
        """The body's bytes."""
        return self.nonce + _pack_names(self.names)

    @classmethod
    def decode(cls, body: bytes) -> Question:
        """The inverse. Raises `MalformedDatagram`."""
        if len(body) <= NONCE_BYTES:
            raise MalformedDatagram("bad-question")
        return cls(body[:NONCE_BYTES], _read_names(body[NONCE_BYTES:]))


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a TOLD: part number `part` of `parts`, the first is 0. `names` are the answering host's and that of
    the host that has asked."""

    nonce: bytes
    names: Names
    part: int
    parts: int
    records: tuple[Record, ...]

    def encode(self) -> bytes:
        """The body's bytes."""
        names = _pack_names(self.names)
        head = self.nonce + _PART.pack(self.part, self.parts, len(names)) + names
        return head + b"".join(encode_record(record) for record in self.records)

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        """The inverse; records of unknown number are left out. Raises `MalformedDatagram`."""
        start = NONCE_BYTES + _PART.size
        if len(body) < start:
            raise MalformedDatagram("bad-answer")
        part, parts, length = _PART.unpack_from(body, NONCE_BYTES)
        if part >= parts or parts > MAX_PARTS or len(body) < start + length:
            raise MalformedDatagram("bad-answer")
        names = _read_names(body[start : start + length])
        return cls(body[:NONCE_BYTES], names, part, parts, tuple(decode_records(body[start + length :])))


def answers(nonce: bytes, names: Names, records: list[Record], datagram_bytes: int = MAX_DATAGRAM) -> list[Answer]:
    """The records in as few parts as possible, none of them longer than `datagram_bytes` when it is sealed. A record
    that is too long for that is left out, and so are those that come after `MAX_PARTS` parts."""
    room = datagram_bytes - OVERHEAD - NONCE_BYTES - _PART.size - len(_pack_names(names))
    groups: list[list[Record]] = [[]]
    left = room
    for record in records:
        size = len(encode_record(record))
        if size > room:
            continue
        if size > left:
            groups.append([])
            left = room
        groups[-1].append(record)
        left -= size
    groups = groups[:MAX_PARTS]
    return [Answer(nonce, names, part, len(groups), tuple(group)) for part, group in enumerate(groups)]
