"""What a sync record is: a value with a number, a codec and a direction, declared in one place.

A record is a frozen dataclass that says how it is encoded and decoded, and `declare` gives it its number on the wire
and the end of a connection that it is meant for. On the wire a record is (number, length, value). Integers are
big-endian; one that does not fit its field is the caller's bug and raises `struct.error`.

A number has one layout for ever (tests/unit/wire/golden.py). Who does not know a number skips the record, and counts
it; each host tells the other which numbers it knows, and a record that the peer does not know is not sent to it, but
what the record has `instead`. So a changed layout is a new record, with a new number and the old one instead.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from struct import Struct
from struct import error as StructError
from typing import ClassVar, Final, Self, TypeVar

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.segment import FlowKey

__all__ = [
    "DECLARED",
    "MAX_DATA",
    "MAX_TEXT",
    "Record",
    "Towards",
    "decode_records",
    "encode_record",
    "known_numbers",
    "read_numbers",
]

MAX_DATA: Final = 1300
MAX_TEXT: Final = 200  # bytes of a reason; the rest is cut off
CONN: Final = Struct("!I")
THREE: Final = Struct("!III")
TWO: Final = Struct("!II")
_TLV = Struct("!BH")
_PORTS = Struct("!HH")
_ADDRESS_BYTES = (4, 16)
_LAST: Final = 0xFF  # the highest number that fits


class Towards(Enum):
    """The end of a connection that a record is meant for."""

    GATE = "the host that serves"
    SHADOW = "the host that shadows"
    EITHER = "both"
    HOST = "the host, whatever its part is"


class Record:
    """A value inside a sync datagram. Every record may be lost, so whoever waits for an answer asks again.

    `conn`, of every record that is about a connection, is a number that the primary gives it; it is never reused within
    a session. Sequence numbers are as the client sees them.
    """

    __slots__: tuple[str, ...] = ()
    number: ClassVar[int]
    towards: ClassVar[Towards]
    layout: ClassVar[Struct | None] = None

    def encode(self) -> bytes:
        """The value's bytes: by default its fields as `layout` says. Raises `InternalError` for a value that no peer
        would accept."""
        if self.layout is None:
            raise InternalError(f"{type(self).__name__} has no encoding")
        return self.layout.pack(*(getattr(self, name) for name in self.__slots__))

    def instead(self) -> Record | None:
        """The record that says it to a peer of the version before, which does not know this one; None: it can't be said
        there."""
        return None

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """The inverse of `encode`. Raises `MalformedDatagram`, or `struct.error` for a wrong length."""
        if cls.layout is None:
            raise InternalError(f"{cls.__name__} has no decoding")
        return cls(*cls.layout.unpack(value))


class Reasoned(Record):
    """A record of a connection's number and a reason, in words."""

    __slots__ = ()
    conn: int
    reason: str

    def encode(self) -> bytes:
        return CONN.pack(self.conn) + encode_text(self.reason)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        return cls(CONN.unpack_from(value)[0], decode_text(value[CONN.size :]))  # type: ignore[call-arg]


R = TypeVar("R", bound=Record)
DECLARED: dict[int, type[Record]] = {}
"""All record types by their number."""


def declare(number: int, towards: Towards, layout: str = "") -> Callable[[type[R]], type[R]]:
    """Enter the decorated class among the records. Raises `InternalError` for a number that is taken.

    `layout`: the format of `struct` for all fields in their order; without one the class has a codec of its own.
    """

    def enter(cls: type[R]) -> type[R]:
        if number in DECLARED:
            raise InternalError(f"record number {number} is {DECLARED[number].__name__}'s")
        cls.number, cls.towards = number, towards
        if layout:
            cls.layout = Struct(layout)
        DECLARED[number] = cls
        return cls

    return enter


def encode_record(record: Record) -> bytes:
    """One record with its number and length. Raises `InternalError` if it is one that no peer would accept."""
    value = record.encode()
    return _TLV.pack(record.number, len(value)) + value


def decode_records(body: bytes, unknown: list[int] | None = None) -> list[Record]:
    """All records of a body, without those of unknown number, which `unknown` gets. Raises `MalformedDatagram` if any
    is malformed."""
    records: list[Record] = []
    at, stop = 0, len(body)
    # Ends: a record takes at least the bytes of its number and length.
    while at < stop:
        if at + _TLV.size > stop:
            raise MalformedDatagram("bad-record-length")
        number, length = _TLV.unpack_from(body, at)
        at += _TLV.size
        if at + length > stop:
            raise MalformedDatagram("bad-record-length")
        cls = DECLARED.get(number)
        if cls is not None:
            try:
                records.append(cls.decode(body[at : at + length]))
            except StructError:
                raise MalformedDatagram("bad-record") from None
        elif unknown is not None:
            unknown.append(number)
        at += length
    return records


def known_numbers() -> str:
    """The numbers of all records that are declared, for the peer: "1-10 13 14"."""
    numbers = sorted(DECLARED)
    firsts = [number for number in numbers if number - 1 not in DECLARED]
    lasts = [number for number in numbers if number + 1 not in DECLARED]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def read_numbers(text: str) -> frozenset[int] | None:
    """The inverse of `known_numbers`; None if it can't be read."""
    numbers: set[int] = set()
    for part in text.split():
        first, dash, last = part.partition("-")
        if not all(word.isascii() and word.isdigit() and len(word) <= 3 for word in (first, last if dash else first)):
            return None
        numbers.update(range(int(first), min(int(last or first), _LAST) + 1))
    return frozenset(numbers)


# ------------------------------------------------------------------------------------ parts that several records have


def encode_text(reason: str) -> bytes:
    """UTF-8, at most `MAX_TEXT` bytes and no half character; lone surrogates become question marks."""
    data = reason.encode(errors="replace")
    if len(data) <= MAX_TEXT:
        return data
    return data[:MAX_TEXT].decode(errors="ignore").encode()


def decode_text(data: bytes) -> str:
    """The inverse of `encode_text`. Raises `MalformedDatagram`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedDatagram("bad-text") from None


def flow_fits(flow: FlowKey) -> bool:
    """Whether both addresses are of one family, IPv4 or IPv6."""
    return len(flow[0]) in _ADDRESS_BYTES and len(flow[2]) == len(flow[0])


def encode_flow(flow: FlowKey) -> bytes:
    """Both addresses, then both ports; the record before it says how long an address is."""
    client, client_port, server, server_port = flow
    return client + server + _PORTS.pack(client_port, server_port)


def decode_flow(value: bytes, at: int, length: int, reason: str) -> tuple[FlowKey, int]:
    """The flow that begins at `at`, its addresses of `length` bytes, and the offset of what follows.

    Raises `MalformedDatagram(reason)` for a length that no address has.
    """
    if length not in _ADDRESS_BYTES:
        raise MalformedDatagram(reason)
    ports_at = at + 2 * length
    client_port, server_port = _PORTS.unpack_from(value, ports_at)
    return (value[at : at + length], client_port, value[at + length : ports_at], server_port), ports_at + _PORTS.size
