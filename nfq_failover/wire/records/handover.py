"""The dialogue that moves one connection to the backup while the pair stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Self

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records.base import (
    Record,
    Towards,
    declare,
    decode_flow,
    decode_text,
    encode_flow,
    encode_text,
    flow_fits,
)
from nfq_failover.wire.segment import FlowKey

__all__ = ["HandOver", "Handed", "HandedOver"]

_HAND_OVER = Struct("!IIIIB")
_HANDED_OVER = Struct("!IB")


@declare(50, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class HandOver(Record):
    """Primary -> backup: my server's end of this one connection has failed, and I am silent about it for good: go on
    with it. Repeated until `HandedOver`, and then slowly, to see that it still goes on.

    `irs` and `iss`, as in `Open`, tell it from others of the same addresses; `at`: the first byte that my server has
    not sent.
    """

    conn: int
    flow: FlowKey
    irs: int
    iss: int
    at: int

    def encode(self) -> bytes:
        if not flow_fits(self.flow):
            raise InternalError(f"a flow that has no encoding: {self}")
        head = _HAND_OVER.pack(self.conn, self.irs, self.iss, self.at, len(self.flow[0]))
        return head + encode_flow(self.flow)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, irs, iss, at, length = _HAND_OVER.unpack_from(value)
        flow, end = decode_flow(value, _HAND_OVER.size, length, "bad-hand-over")
        if len(value) != end:
            raise MalformedDatagram("bad-hand-over")
        return cls(conn, flow, irs, iss, at)


class Handed(IntEnum):
    """What became of a connection that was handed over."""

    ACTIVE = 0  # the backup's server has it
    REFUSED = 1  # the backup never had it, and never will
    OVER = 2  # it has ended


_OUTCOMES = frozenset(Handed)


@declare(51, Towards.GATE)
@dataclass(frozen=True, slots=True)
class HandedOver(Record):
    """Backup -> primary: answer to `HandOver`; `OVER` is told unasked, too."""

    conn: int
    state: Handed
    reason: str = ""

    def encode(self) -> bytes:
        return _HANDED_OVER.pack(self.conn, self.state) + encode_text(self.reason)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, state = _HANDED_OVER.unpack_from(value)
        if state not in _OUTCOMES:
            raise MalformedDatagram("bad-handed-over")
        return cls(conn, Handed(state), decode_text(value[_HANDED_OVER.size :]))
