"""The dialogues that end a connection, or its protection, and that compare where the two servers have ended it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Self

from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.records.base import Reasoned, Record, Towards, declare

__all__ = ["Close", "Closed", "End", "EndAsked", "EndKind", "Fed", "FedSeen", "Unprotected", "UnprotectedSeen"]

_END_ASKED = Struct("!IIB")
_END = Struct("!IIIBB")


@declare(7, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Close(Reasoned):
    """Primary -> backup: my TCP no longer has this connection. Repeated until `Closed`."""

    conn: int
    reason: str


@declare(8, Towards.GATE, "!I")
@dataclass(frozen=True, slots=True)
class Closed(Record):
    """Backup -> primary: answer to `Close`."""

    conn: int


@declare(9, Towards.EITHER)
@dataclass(frozen=True, slots=True)
class Unprotected(Reasoned):
    """Either way: this connection can't be continued by the backup, and why. Answered by `UnprotectedSeen`."""

    conn: int
    reason: str


@declare(10, Towards.EITHER, "!I")
@dataclass(frozen=True, slots=True)
class UnprotectedSeen(Record):
    """Answer to `Unprotected`."""

    conn: int


@declare(13, Towards.EITHER)
@dataclass(frozen=True, slots=True)
class Fed(Reasoned):
    """Either way: this connection can't be continued by the backup, and why; but its replica goes on getting what the
    client sends. Answered by `FedSeen`."""

    conn: int
    reason: str


@declare(14, Towards.EITHER, "!I")
@dataclass(frozen=True, slots=True)
class FedSeen(Record):
    """Answer to `Fed`."""

    conn: int


class EndKind(IntEnum):
    """How the server's stream of a connection has ended."""

    OPEN = 0  # it has not
    FIN = 1
    RST = 2


def _end_kind(value: int) -> EndKind:
    try:
        return EndKind(value)
    except ValueError:
        raise MalformedDatagram("bad-end") from None


@declare(20, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class EndAsked(Record):
    """Primary -> backup: where is the end of your replica's stream? Always answered by `End`.

    `seq` and `kind` are the primary's: the first byte that its server has not sent (the FIN's or RST's own number, if
    it has ended).
    """

    conn: int
    seq: int
    kind: EndKind

    def encode(self) -> bytes:
        return _END_ASKED.pack(self.conn, self.seq, self.kind)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, kind = _END_ASKED.unpack(value)
        return cls(conn, seq, _end_kind(kind))


@declare(21, Towards.GATE)
@dataclass(frozen=True, slots=True)
class End(Record):
    """Backup -> primary: the replica has sent everything before `seq`, and has ended there, or not.

    `taken`: the first byte of the client's stream that the replica's TCP has not taken. `well`: the replica's
    application has passed a health check since the primary's server ended (or nobody checks it).
    """

    conn: int
    seq: int
    taken: int
    kind: EndKind
    well: bool = True

    def encode(self) -> bytes:
        return _END.pack(self.conn, self.seq, self.taken, self.kind, self.well)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, taken, kind, well = _END.unpack(value)
        return cls(conn, seq, taken, _end_kind(kind), bool(well))
