"""What the hosts tell each other of themselves: how they are set up, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records.base import MAX_DATA, Record, Towards, declare

__all__ = [
    "MAX_FACT",
    "MAX_NEIGHBOURS",
    "Concerned",
    "Facts",
    "Hindered",
    "Listens",
    "OnLink",
    "ProbeAsked",
    "WallClock",
]

MAX_FACT: Final = 255  # bytes of a name or of a value
MAX_NEIGHBOURS: Final = 50  # of one record: IPv6 addresses would fit, too
_LENGTH = Struct("!B")
_WEIGHT = Struct("!B")
_RANGE = Struct("!HH")
MAX_RANGES: Final = MAX_DATA // _RANGE.size
_ADDRESS_BYTES: Final = (4, 16)


def _text(text: str, most: int = MAX_FACT) -> bytes:
    """One text with its length, cut off after `most` bytes and before half a character."""
    data = text.encode(errors="replace")[:most].decode(errors="ignore").encode()
    return _LENGTH.pack(len(data)) + data


def _read_bytes(value: bytes, at: int) -> tuple[bytes, int]:
    """What stands with its length at an offset, and the offset behind it. Raises `MalformedDatagram`."""
    if at >= len(value):
        raise MalformedDatagram("bad-host-record")
    stop = at + 1 + value[at]
    if stop > len(value):
        raise MalformedDatagram("bad-host-record")
    return value[at + 1 : stop], stop


def _read(value: bytes, at: int) -> tuple[str, int]:
    """The text at an offset, and the offset behind it. Raises `MalformedDatagram`."""
    data, stop = _read_bytes(value, at)
    try:
        return data.decode(), stop
    except UnicodeDecodeError:
        raise MalformedDatagram("bad-text") from None


@declare(60, Towards.HOST)
@dataclass(frozen=True, slots=True)
class Facts(Record):
    """Either way: how the sender is set up, as (name, value) pairs in any order. Repeated once a second.

    A receiver ignores names that it does not know, and must not take a name that is missing for any value: hosts of
    two versions tell each other different ones.
    """

    facts: tuple[tuple[str, str], ...]

    def encode(self) -> bytes:
        value = b"".join(_text(name) + _text(text) for name, text in self.facts)
        if len(value) > MAX_DATA:
            raise InternalError(f"facts of {len(value)} bytes")
        return value

    @classmethod
    def decode(cls, value: bytes) -> Self:
        facts, at = [], 0
        while at < len(value):  # Ends: each text takes a byte at least.
            name, at = _read(value, at)
            text, at = _read(value, at)
            facts.append((name, text))
        return cls(tuple(facts))


@declare(61, Towards.HOST)
@dataclass(frozen=True, slots=True)
class Concerned(Record):
    """Either way: what is wrong with the sender, as (weight, code, what, cure), the heaviest first. Repeated once a
    second. Those that there is no room for are left out."""

    concerns: tuple[tuple[int, str, str, str], ...]

    def encode(self) -> bytes:
        value = b""
        for weight, code, what, cure in self.concerns:
            more = _WEIGHT.pack(weight) + _text(code) + _text(what) + _text(cure)
            if len(value) + len(more) > MAX_DATA:
                break
            value += more
        return value

    @classmethod
    def decode(cls, value: bytes) -> Self:
        concerns, at = [], 0
        while at < len(value):  # Ends: each concern takes four bytes at least.
            weight = value[at]
            code, at = _read(value, at + 1)
            what, at = _read(value, at)
            cure, at = _read(value, at)
            concerns.append((weight, code, what, cure))
        return cls(tuple(concerns))


@declare(62, Towards.HOST)
@dataclass(frozen=True, slots=True)
class OnLink(Record):
    """Either way: what the sender knows of the service's segment. Repeated once a second.

    `hardware`: the hardware address of its own interface. `neighbours`: those that packets to its clients go to, as
    (address, hardware address); some of them, and others in the next record where there are many.
    """

    hardware: bytes
    neighbours: tuple[tuple[bytes, bytes], ...] = ()

    def encode(self) -> bytes:
        parts = [self.hardware, *(part for pair in self.neighbours[:MAX_NEIGHBOURS] for part in pair)]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        hardware, at = _read_bytes(value, 0)
        neighbours = []
        while at < len(value):  # Ends: each neighbour takes two bytes at least.
            address, at = _read_bytes(value, at)
            other, at = _read_bytes(value, at)
            if len(address) not in _ADDRESS_BYTES or not other:
                raise MalformedDatagram("bad-host-record")
            neighbours.append((address, other))
        return cls(hardware, tuple(neighbours))


@declare(63, Towards.HOST)
@dataclass(frozen=True, slots=True)
class Hindered(Record):
    """Either way: the concern `code`, which is told next, hinders the connections of these clients alone.

    A receiver of an earlier version ignores it, and shows the concern without.
    """

    code: str
    clients: tuple[bytes, ...]

    def encode(self) -> bytes:
        value = _text(self.code) + b"".join(_LENGTH.pack(len(client)) + client for client in self.clients)
        if len(value) > MAX_DATA:
            raise InternalError(f"{len(self.clients)} clients in a record")
        return value

    @classmethod
    def decode(cls, value: bytes) -> Self:
        code, at = _read(value, 0)
        clients = []
        while at < len(value):  # Ends: each client takes a byte at least.
            client, at = _read_bytes(value, at)
            if len(client) not in _ADDRESS_BYTES:
                raise MalformedDatagram("bad-host-record")
            clients.append(client)
        return cls(code, tuple(clients))


@declare(65, Towards.HOST, "!Q")
@dataclass(frozen=True, slots=True)
class WallClock(Record):
    """Either way: the sender's time of day, in milliseconds since 1970 (POSIX). Repeated once a second."""

    ms: int


@declare(64, Towards.HOST, "!I")
@dataclass(frozen=True, slots=True)
class ProbeAsked(Record):
    """Backup to primary: send a segment that tries the multicast tap, with this token. Not repeated: the next one is
    another. A host that knows this record also clones such segments (core/tap_probe.py)."""

    token: int


@declare(66, Towards.HOST)
@dataclass(frozen=True, slots=True)
class Listens(Record):
    """Either way: the ports of the service where the sender's application listens, as inclusive ranges in order.
    Repeated once a second. Those that there is no room for are left out."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def ports(self) -> Iterator[int]:
        """All of them, one by one."""
        return (port for low, high in self.ranges for port in range(low, high + 1))

    def encode(self) -> bytes:
        return b"".join(_RANGE.pack(*each) for each in self.ranges[:MAX_RANGES])

    @classmethod
    def decode(cls, value: bytes) -> Self:
        return cls(tuple(_RANGE.iter_unpack(value)))
