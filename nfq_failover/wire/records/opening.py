"""The dialogue that opens a connection: the primary describes it, the backup says whether it can continue it."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from nfq_failover.constants import MAX_WSCALE
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

__all__ = ["Open", "Opened", "Served"]

_OPEN = Struct("!IIIBIBHBHB")
_OPENED = Struct("!IBI")
_SERVED = Struct("!IIIBB")
_NONE = 0xFF


def _options_fit(options: bytes) -> bool:
    return len(options) <= 40 and len(options) % 4 == 0  # RFC 9293 section 3.1: data offset


@declare(1, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Open(Record):
    """Primary -> backup: a connection is being opened. Repeated until `Opened`.

    `tsval` is the TSval of the primary's SYN-ACK, None without timestamps; `wscale` the primary's window shift, None
    without window scaling; `syn_wnd` and `syn_options` are the client's SYN as the primary's TCP was shown it.
    """

    conn: int
    flow: FlowKey
    irs: int  # client's initial sequence number
    iss: int  # primary's initial sequence number, as the client sees it
    tsval: int | None
    wscale: int | None
    mss: int
    sack_permitted: bool
    syn_wnd: int
    syn_options: bytes

    def encode(self) -> bytes:
        if not flow_fits(self.flow) or not _options_fit(self.syn_options):
            raise InternalError(f"an opening that has no encoding: {self}")
        head = _OPEN.pack(
            self.conn,
            self.irs,
            self.iss,
            self.tsval is not None,
            self.tsval or 0,
            _NONE if self.wscale is None else self.wscale,
            self.mss,
            self.sack_permitted,
            self.syn_wnd,
            len(self.flow[0]),
        )
        return head + encode_flow(self.flow) + self.syn_options

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, irs, iss, has_ts, tsval, wscale, mss, sack, wnd, length = _OPEN.unpack_from(value)
        if MAX_WSCALE < wscale < _NONE:
            raise MalformedDatagram("bad-open")
        flow, at = decode_flow(value, _OPEN.size, length, "bad-open")
        options = value[at:]
        if not _options_fit(options):
            raise MalformedDatagram("bad-open")
        return cls(
            conn=conn,
            flow=flow,
            irs=irs,
            iss=iss,
            tsval=tsval if has_ts else None,
            wscale=None if wscale == _NONE else wscale,
            mss=mss,
            sack_permitted=bool(sack),
            syn_wnd=wnd,
            syn_options=options,
        )


@declare(2, Towards.GATE)
@dataclass(frozen=True, slots=True)
class Opened(Record):
    """Backup -> primary: answer to `Open`. `ready`: the replica can continue the connection; else `reason`.

    `rcv_edge`: the right edge that the backup's TCP accepts (meaningful if ready).
    """

    conn: int
    ready: bool
    rcv_edge: int
    reason: str = ""

    def encode(self) -> bytes:
        return _OPENED.pack(self.conn, self.ready, self.rcv_edge) + encode_text(self.reason)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, ready, rcv_edge = _OPENED.unpack_from(value)
        return cls(conn, bool(ready), rcv_edge, decode_text(value[_OPENED.size :]))


@declare(18, Towards.SHADOW)
@dataclass(frozen=True, slots=True)
class Served(Record):
    """Primary -> backup: I serve this connection without a replica, so its client has to hear of a takeover. Repeated
    in turns.

    `seq`: the server's next sequence number; `ack`: the client's, as far as my TCP has taken its bytes; `wscale`: the
    client's window shift, 0 where it does not count.
    """

    conn: int
    flow: FlowKey
    seq: int
    ack: int
    wscale: int

    def encode(self) -> bytes:
        if not flow_fits(self.flow):
            raise InternalError(f"a flow that has no encoding: {self}")
        head = _SERVED.pack(self.conn, self.seq, self.ack, self.wscale, len(self.flow[0]))
        return head + encode_flow(self.flow)

    @classmethod
    def decode(cls, value: bytes) -> Self:
        conn, seq, ack, wscale, length = _SERVED.unpack_from(value)
        flow, end = decode_flow(value, _SERVED.size, length, "bad-served")
        if len(value) != end or wscale > MAX_WSCALE:
            raise MalformedDatagram("bad-served")
        return cls(conn, flow, seq, ack, wscale)
