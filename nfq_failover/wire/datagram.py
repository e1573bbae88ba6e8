"""The sync channel's datagrams: header and authentication. Their bodies: wire/heartbeat.py, wire/records/,
and wire/inquiry.py for those that belong to no session.

    version (1)  kind and direction (1)  session (8)  epoch (4)  counter (8)  body  MAC (16)

`VERSION` is that of the header, the handshake, the keys and the heartbeat: hosts of two versions refuse each other, and
say so. Records have no version: see wire/records/base.py, and docs/design/wire.md for the rules.

The MAC is keyed BLAKE2s (RFC 7693) over everything before it. The top bit of the kind is the direction (the sender's
name sorts after the receiver's), so a datagram sent back to its sender is refused. The key differs for handshake,
session and direction: see core/pair/session.py. Numbers are big-endian; one that does not fit its field is the caller's
bug and raises `struct.error`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from struct import Struct
from typing import Final

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.errors import InternalError, MalformedDatagram

VERSION: Final = 2
HEADER: Final = Struct("!BBQIQ")
MAC_BYTES: Final = 16
OVERHEAD: Final = HEADER.size + MAC_BYTES
MAX_BODY: Final = MAX_DATAGRAM - OVERHEAD
NONCE_BYTES: Final = 16
CHALLENGE_BYTES: Final = 8
_DIRECTION: Final = 0x80


class Kind(IntEnum):
    """What a datagram carries."""

    HELLO = 1
    REPLY = 2
    RECORDS = 3
    HEARTBEAT = 4
    ASK = 5
    TOLD = 6


_KINDS: Final = {kind | bit: (kind, bool(bit)) for kind in Kind for bit in (0, _DIRECTION)}


_ASKS: Final = frozenset(bytes((Kind.ASK | bit,)) for bit in (0, _DIRECTION))


@dataclass(slots=True)  # not frozen: that would cost a microsecond with every datagram
class Header:
    """A datagram's header.

    `direction` is the sender's; `session` is 64 bits, in a handshake the sender's present session (0 for none);
    `counter` (64 bits) grows in each lane: handshake, records, heartbeats.
    """

    kind: Kind
    direction: bool
    session: int
    epoch: int
    counter: int


def seal(header: Header, body: bytes, key: bytes) -> bytes:
    """A whole datagram. `key`: at most 32 bytes. Raises `InternalError` if the body is longer than `MAX_BODY`."""
    if len(body) > MAX_BODY:
        raise InternalError(f"a datagram's body of {len(body)} bytes")
    kind = header.kind | (_DIRECTION if header.direction else 0)
    data = HEADER.pack(VERSION, kind, header.session, header.epoch, header.counter) + body
    return data + blake2s(data, key=key, digest_size=MAC_BYTES).digest()


def read_header(data: bytes) -> Header:
    """The header, not yet authenticated. Raises `MalformedDatagram`."""
    if len(data) < HEADER.size + MAC_BYTES:
        raise MalformedDatagram("truncated")
    if len(data) > MAX_DATAGRAM:
        raise MalformedDatagram("oversized")
    version, kind, session, epoch, counter = HEADER.unpack_from(data)
    if version != VERSION:
        raise MalformedDatagram("bad-version")
    known = _KINDS.get(kind)
    if known is None:
        raise MalformedDatagram("unknown-kind")
    return Header(*known, session, epoch, counter)


def is_handshake(data: bytes) -> bool:
    """Whether a datagram, whose header could be read, is one of a handshake."""
    return data[1] & ~_DIRECTION in (Kind.HELLO, Kind.REPLY)


def is_question(data: bytes) -> bool:
    """Whether a datagram says that it is an ASK."""
    return data[1:2] in _ASKS


def open_body(data: bytes, key: bytes) -> bytes:
    """Check the MAC and return the body. Raises `MalformedDatagram`. Call `read_header` first: it checks the length."""
    signed = data[:-MAC_BYTES]
    if not hmac.compare_digest(blake2s(signed, key=key, digest_size=MAC_BYTES).digest(), data[-MAC_BYTES:]):
        raise MalformedDatagram("bad-mac")
    return signed[HEADER.size :]
