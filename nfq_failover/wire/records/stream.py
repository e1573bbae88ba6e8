"""The dialogue about both streams of an open connection: what is confirmed, what is missing, how far each has come."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records.base import MAX_DATA, TWO, Record, Towards, declare

__all__ = ["AckAsked", "Confirm", "Data", "HeardBefore", "Missing", "Progress", "SentAsked", "SentUpTo"]

MAX_RANGES: Final = 4
_PROGRESS = Struct("!IIB")
_CONFIRM = Struct("!IIIBB")
_DATA = Struct("!IIB")


@declare(3, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Progress(Record):
    """Primary -> backup: my TCP has taken the client's bytes before `rcv_nxt`. Always answered by `Confirm`.

    `established`: the client has completed the handshake.
    """

    conn: int
    rcv_nxt: int
    established: bool

    def encode(self) -> bytes:
        return _PROGRESS.pack(self.conn, self.rcv_nxt, self.established)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, rcv_nxt, established = _PROGRESS.unpack(value)
        return cls(conn, rcv_nxt, bool(established))


@declare(4, Towards.GATE)
@dataclass(frozen=True, slots=True)
class Confirm(Record):
    """Backup -> primary: I hold every byte before `held`, and those in `ranges` (at most 4, left <= byte < right).

    A FIN counts as a byte. `rcv_edge`: the right edge that the backup's TCP accepts.
    """

    conn: int
    held: int
    rcv_edge: int
    ranges: tuple[tuple[int, int], ...] = ()
    established: bool = False

    def encode(self) -> bytes:
        ranges = self.ranges[:MAX_RANGES]
        head = _CONFIRM.pack(self.conn, self.held, self.rcv_edge, self.established, len(ranges))
        return head + b"".join(TWO.pack(*each) for each in ranges)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, held, rcv_edge, established, count = _CONFIRM.unpack_from(value)
        if len(value) != _CONFIRM.size + count * TWO.size or count > MAX_RANGES:
            raise MalformedDatagram("bad-confirm")
        if not count:  # nearly always
            return cls(conn, held, rcv_edge, (), bool(established))
        ranges = tuple(TWO.unpack_from(value, _CONFIRM.size + i * TWO.size) for i in range(count))
        return cls(conn, held, rcv_edge, ranges, bool(established))


@declare(5, Towards.GATE, "!III")
@dataclass(frozen=True, slots=True)
class Missing(Record):
    """Backup -> primary: send me the bytes [start, end) that your TCP has taken. Repeated until they are there."""

    conn: int
    start: int
    end: int


@declare(6, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Data(Record):
    """Primary -> backup: bytes that were missing; `fin` if the client's FIN follows them. At most 1300 bytes."""

    conn: int
    seq: int
    data: bytes
    fin: bool = False

    def encode(self) -> bytes:
        if len(self.data) > MAX_DATA:
            raise InternalError(f"a data record of {len(self.data)} bytes")
        return _DATA.pack(self.conn, self.seq, self.fin) + self.data

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, fin = _DATA.unpack_from(value)
        if len(value) > _DATA.size + MAX_DATA:
            raise MalformedDatagram("bad-data")
        return cls(conn, seq, value[_DATA.size :], bool(fin))


@declare(72, Towards.SHADOW, "!III")
@dataclass(frozen=True, slots=True)
class HeardBefore(Record):
    """Primary -> backup, before `Data`: what the client has sent from `seq` on, it has sent after it had acknowledged
    the server's bytes before `ack`. Its loss lets the replica have the bytes too early."""

    conn: int
    seq: int
    ack: int


@declare(40, Towards.GATE, "!I")
@dataclass(frozen=True, slots=True)
class SentAsked(Record):
    """Backup -> primary: how far has your server sent? The client acknowledges more than we know of."""

    conn: int


@declare(41, Towards.SHADOW, "!II")
@dataclass(frozen=True, slots=True)
class SentUpTo(Record):
    """Primary -> backup: answer to `SentAsked`. `seq`: the first number that the server has not sent."""

    conn: int
    seq: int


@declare(42, Towards.GATE, "!II")
@dataclass(frozen=True, slots=True)
class AckAsked(Record):
    """Backup -> primary: my server repeats what follows `seq`, so the client's acknowledgement of it may be lost: make
    the client say it again (a keep-alive probe, RFC 9293 section 3.8.4). `seq`: the first number that the client has
    not acknowledged, for all that I know."""

    conn: int
    seq: int
