"""The sync channel's datagrams: header, authentication, records and heartbeat.

    version (1)  kind and direction (1)  session (8)  epoch (4)  counter (8)  body  MAC (16)

The MAC is keyed BLAKE2s (RFC 7693) over everything before it. The top bit of the kind is the direction (the sender's
name sorts after the receiver's), so a datagram sent back to its sender is refused. The key differs for handshake,
session and direction: see core/pair/session.py. Records are (type, length, value); types that are not known are
skipped. Numbers are big-endian; one that does not fit its field is the caller's bug and raises `struct.error`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from struct import Struct, pack, unpack_from
from struct import error as StructError
from typing import Any, Final

from nfq_failover.constants import MAX_DATAGRAM, MAX_WSCALE
from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    MAX_HASHES,
    AckAsked,
    BytesAsked,
    BytesSent,
    Close,
    Closed,
    Confirm,
    Data,
    Digest,
    DigestSeen,
    End,
    EndAsked,
    EndKind,
    Handed,
    HandedOver,
    HandOver,
    Missing,
    Open,
    Opened,
    Progress,
    Record,
    SentAsked,
    SentUpTo,
    Unprotected,
    UnprotectedSeen,
)

VERSION: Final = 1
HEADER: Final = Struct("!BBQIQ")
MAC_BYTES: Final = 16
MAX_BODY: Final = MAX_DATAGRAM - HEADER.size - MAC_BYTES
NONCE_BYTES: Final = 16
CHALLENGE_BYTES: Final = 8
MAX_DATA: Final = 1300
MAX_TEXT: Final = 200  # bytes of a reason; the rest is cut off
_DIRECTION: Final = 0x80


class Kind(IntEnum):
    """What a datagram carries."""

    HELLO = 1
    REPLY = 2
    RECORDS = 3
    HEARTBEAT = 4


_KINDS: Final = {kind | bit: (kind, bool(bit)) for kind in Kind for bit in (0, _DIRECTION)}


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


def open_body(data: bytes, key: bytes) -> bytes:
    """Check the MAC and return the body. Raises `MalformedDatagram`. Call `read_header` first: it checks the length."""
    signed = data[:-MAC_BYTES]
    if not hmac.compare_digest(blake2s(signed, key=key, digest_size=MAC_BYTES).digest(), data[-MAC_BYTES:]):
        raise MalformedDatagram("bad-mac")
    return signed[HEADER.size :]


# ---------------------------------------------------------------------------------------------- heartbeat

_HEARTBEAT = Struct("!BBBIIHQQI")
_PACT = Struct("!QI")


@dataclass(frozen=True, slots=True)
class HeartbeatBody:
    """What a heartbeat says.

    `role`, `state`, `flags`: see core/pair/roles.py; `generation`: see core/pair/membership.py. `loop_age_ms`: how long
    ago the packet loop made progress, 65535 for anything longer. `sent_ms`: the sender's monotonic clock; `echo_ms`:
    the latest `sent_ms` that it has received, 0 for none. `release_after_ms`: the sender's setting. `pact` and
    `lease_ms`: see core/pair/pact.py; 0 without a witness.
    """

    role: int
    state: int
    flags: int
    stored_epoch: int
    generation: int
    loop_age_ms: int
    sent_ms: int
    echo_ms: int
    release_after_ms: int
    pact: int = 0
    lease_ms: int = 0

    def encode(self) -> bytes:
        """The body of a heartbeat datagram."""
        said = _HEARTBEAT.pack(
            self.role,
            self.state,
            self.flags,
            self.stored_epoch,
            self.generation,
            min(self.loop_age_ms, 0xFFFF),
            self.sent_ms,
            self.echo_ms,
            self.release_after_ms,
        )
        return said + _PACT.pack(self.pact, self.lease_ms) if self.pact or self.lease_ms else said

    @classmethod
    def decode(cls, body: bytes) -> HeartbeatBody:
        """Raises `MalformedDatagram`. Bytes that a later version appends are ignored."""
        if len(body) < _HEARTBEAT.size:
            raise MalformedDatagram("bad-heartbeat")
        fields = _HEARTBEAT.unpack_from(body)
        if len(body) < _HEARTBEAT.size + _PACT.size:
            return cls(*fields)
        return cls(*fields, *_PACT.unpack_from(body, _HEARTBEAT.size))


# ---------------------------------------------------------------------------------------------- records

_TLV = Struct("!BH")
_OPEN = Struct("!IIIBIBHBHB")
_OPENED = Struct("!IBI")
_PROGRESS = Struct("!IIB")
_CONFIRM = Struct("!IIIBB")
_MISSING = Struct("!III")
_DATA = Struct("!IIB")
_CONN = Struct("!I")
_END_ASKED = Struct("!IIB")
_END = Struct("!IIIBB")
_DIGEST = Struct("!III")
_BYTES = Struct("!II")
_SENT = Struct("!II")
_HAND_OVER = Struct("!IIIIB")
_HANDED = Struct("!IB")
_RANGE = Struct("!II")
_PORTS = Struct("!HH")
_NONE = 0xFF
_MAX_RANGES = 4
_ADDRESS_BYTES = (4, 16)
_HANDED_STATES = frozenset(Handed)


def _text(reason: str) -> bytes:
    data = reason.encode(errors="replace")
    if len(data) <= MAX_TEXT:
        return data
    return data[:MAX_TEXT].decode(errors="ignore").encode()  # without half a character at the end


def _read_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedDatagram("bad-text") from None


def _options_fit(options: bytes) -> bool:
    return len(options) <= 40 and len(options) % 4 == 0  # RFC 9293 section 3.1: data offset


def _encode_open(r: Open) -> bytes:
    client, client_port, server, server_port = r.flow
    if len(client) not in _ADDRESS_BYTES or len(server) != len(client) or not _options_fit(r.syn_options):
        raise InternalError(f"an opening that has no encoding: {r}")
    return (
        _OPEN.pack(
            r.conn,
            r.irs,
            r.iss,
            r.tsval is not None,
            r.tsval or 0,
            _NONE if r.wscale is None else r.wscale,
            r.mss,
            r.sack_permitted,
            r.syn_wnd,
            len(client),
        )
        + client
        + server
        + _PORTS.pack(client_port, server_port)
        + r.syn_options
    )


def _decode_open(v: bytes) -> Open:
    conn, irs, iss, has_ts, tsval, wscale, mss, sack, wnd, length = _OPEN.unpack_from(v)
    if length not in _ADDRESS_BYTES or MAX_WSCALE < wscale < _NONE:
        raise MalformedDatagram("bad-open")
    at = _OPEN.size
    client, server = v[at : at + length], v[at + length : at + 2 * length]
    client_port, server_port = _PORTS.unpack_from(v, at + 2 * length)
    options = v[at + 2 * length + _PORTS.size :]
    if not _options_fit(options):
        raise MalformedDatagram("bad-open")
    return Open(
        conn=conn,
        flow=(client, client_port, server, server_port),
        irs=irs,
        iss=iss,
        tsval=tsval if has_ts else None,
        wscale=None if wscale == _NONE else wscale,
        mss=mss,
        sack_permitted=bool(sack),
        syn_wnd=wnd,
        syn_options=options,
    )


def _decode_opened(v: bytes) -> Opened:
    conn, ready, edge = _OPENED.unpack_from(v)
    return Opened(conn, bool(ready), edge, _read_text(v[_OPENED.size :]))


def _encode_confirm(r: Confirm) -> bytes:
    ranges = r.ranges[:_MAX_RANGES]
    return _CONFIRM.pack(r.conn, r.cum, r.edge, r.established, len(ranges)) + b"".join(_RANGE.pack(*x) for x in ranges)


def _decode_confirm(v: bytes) -> Confirm:
    conn, cum, edge, established, count = _CONFIRM.unpack_from(v)
    if len(v) != _CONFIRM.size + count * _RANGE.size or count > _MAX_RANGES:
        raise MalformedDatagram("bad-confirm")
    if not count:  # nearly always
        return Confirm(conn, cum, edge, (), bool(established))
    ranges = tuple(_RANGE.unpack_from(v, _CONFIRM.size + i * _RANGE.size) for i in range(count))
    return Confirm(conn, cum, edge, ranges, bool(established))


def _decode_progress(v: bytes) -> Progress:
    conn, rcv_nxt, established = _PROGRESS.unpack(v)
    return Progress(conn, rcv_nxt, bool(established))


def _encode_data(r: Data) -> bytes:
    if len(r.data) > MAX_DATA:
        raise InternalError(f"a data record of {len(r.data)} bytes")
    return _DATA.pack(r.conn, r.seq, r.fin) + r.data


def _decode_data(v: bytes) -> Data:
    conn, seq, fin = _DATA.unpack_from(v)
    if len(v) > _DATA.size + MAX_DATA:
        raise MalformedDatagram("bad-data")
    return Data(conn, seq, v[_DATA.size :], bool(fin))


def _end_kind(value: int) -> EndKind:
    try:
        return EndKind(value)
    except ValueError:
        raise MalformedDatagram("bad-end") from None


def _decode_end_asked(v: bytes) -> EndAsked:
    conn, seq, kind = _END_ASKED.unpack(v)
    return EndAsked(conn, seq, _end_kind(kind))


def _decode_end(v: bytes) -> End:
    conn, seq, taken, kind, well = _END.unpack(v)
    return End(conn, seq, taken, _end_kind(kind), bool(well))


def _encode_digest(r: Digest) -> bytes:
    count = len(r.hashes)
    if count > MAX_HASHES or (count and count != -(-r.length // DIGEST_BLOCK)):
        raise InternalError(f"a digest of {r.length} bytes with {count} hashes")
    return _DIGEST.pack(r.conn, r.seq, r.length) + pack(f"!{count}Q", *r.hashes)


def _decode_digest(v: bytes) -> Digest:
    conn, seq, length = _DIGEST.unpack_from(v)
    count, rest = divmod(len(v) - _DIGEST.size, 8)
    if rest or count > MAX_HASHES or (count and count != -(-length // DIGEST_BLOCK)):
        raise MalformedDatagram("bad-digest")
    return Digest(conn, seq, length, unpack_from(f"!{count}Q", v, _DIGEST.size))


def _encode_bytes_sent(r: BytesSent) -> bytes:
    if len(r.data) > MAX_DATA:
        raise InternalError(f"a record of {len(r.data)} sent bytes")
    return _BYTES.pack(r.conn, r.seq) + r.data


def _decode_bytes_sent(v: bytes) -> BytesSent:
    conn, seq = _BYTES.unpack_from(v)
    if len(v) > _BYTES.size + MAX_DATA:
        raise MalformedDatagram("bad-bytes")
    return BytesSent(conn, seq, v[_BYTES.size :])


def _encode_hand_over(r: HandOver) -> bytes:
    client, client_port, server, server_port = r.flow
    if len(client) not in _ADDRESS_BYTES or len(server) != len(client):
        raise InternalError(f"a flow that has no encoding: {r}")
    head = _HAND_OVER.pack(r.conn, r.irs, r.iss, r.at, len(client))
    return head + client + server + _PORTS.pack(client_port, server_port)


def _decode_hand_over(v: bytes) -> HandOver:
    conn, irs, iss, at, length = _HAND_OVER.unpack_from(v)
    if length not in _ADDRESS_BYTES or len(v) != _HAND_OVER.size + 2 * length + _PORTS.size:
        raise MalformedDatagram("bad-hand-over")
    start = _HAND_OVER.size
    client, server = v[start : start + length], v[start + length : start + 2 * length]
    client_port, server_port = _PORTS.unpack_from(v, start + 2 * length)
    return HandOver(conn, (client, client_port, server, server_port), irs, iss, at)


def _decode_handed(v: bytes) -> HandedOver:
    conn, state = _HANDED.unpack_from(v)
    if state not in _HANDED_STATES:
        raise MalformedDatagram("bad-handed-over")
    return HandedOver(conn, Handed(state), _read_text(v[_HANDED.size :]))


def _decode_conn_text(cls: Callable[[int, str], Any]) -> Callable[[bytes], Any]:
    return lambda v: cls(_CONN.unpack_from(v)[0], _read_text(v[_CONN.size :]))


_ENCODERS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    Open: (1, _encode_open),
    Opened: (2, lambda r: _OPENED.pack(r.conn, r.ready, r.edge) + _text(r.reason)),
    Progress: (3, lambda r: _PROGRESS.pack(r.conn, r.rcv_nxt, r.established)),
    Confirm: (4, _encode_confirm),
    Missing: (5, lambda r: _MISSING.pack(r.conn, r.start, r.end)),
    Data: (6, _encode_data),
    Close: (7, lambda r: _CONN.pack(r.conn) + _text(r.reason)),
    Closed: (8, lambda r: _CONN.pack(r.conn)),
    Unprotected: (9, lambda r: _CONN.pack(r.conn) + _text(r.reason)),
    UnprotectedSeen: (10, lambda r: _CONN.pack(r.conn)),
    EndAsked: (20, lambda r: _END_ASKED.pack(r.conn, r.seq, r.kind)),
    End: (21, lambda r: _END.pack(r.conn, r.seq, r.taken, r.kind, r.well)),
    Digest: (30, _encode_digest),
    DigestSeen: (31, lambda r: _MISSING.pack(r.conn, r.compared, r.differences & 0xFFFFFFFF)),
    BytesAsked: (32, lambda r: _MISSING.pack(r.conn, r.start, r.end)),
    BytesSent: (33, _encode_bytes_sent),
    SentAsked: (40, lambda r: _CONN.pack(r.conn)),
    SentUpTo: (41, lambda r: _SENT.pack(r.conn, r.seq)),
    AckAsked: (42, lambda r: _SENT.pack(r.conn, r.seq)),
    HandOver: (50, _encode_hand_over),
    HandedOver: (51, lambda r: _HANDED.pack(r.conn, r.state) + _text(r.reason)),
}

_DECODERS: dict[int, Callable[[bytes], Record]] = {
    1: _decode_open,
    2: _decode_opened,
    3: _decode_progress,
    4: _decode_confirm,
    5: lambda v: Missing(*_MISSING.unpack(v)),
    6: _decode_data,
    7: _decode_conn_text(Close),
    8: lambda v: Closed(*_CONN.unpack(v)),
    9: _decode_conn_text(Unprotected),
    10: lambda v: UnprotectedSeen(*_CONN.unpack(v)),
    20: _decode_end_asked,
    21: _decode_end,
    30: _decode_digest,
    31: lambda v: DigestSeen(*_MISSING.unpack(v)),
    32: lambda v: BytesAsked(*_MISSING.unpack(v)),
    33: _decode_bytes_sent,
    40: lambda v: SentAsked(*_CONN.unpack(v)),
    41: lambda v: SentUpTo(*_SENT.unpack(v)),
    42: lambda v: AckAsked(*_SENT.unpack(v)),
    50: _decode_hand_over,
    51: _decode_handed,
}


def encode_record(record: Record) -> bytes:
    """One record with its type and length. Raises `InternalError` if it is one that no peer would accept."""
    number, encode = _ENCODERS[type(record)]
    value = encode(record)
    return _TLV.pack(number, len(value)) + value


def decode_records(body: bytes) -> list[Record]:
    """All records of a body, without those of unknown type. Raises `MalformedDatagram` if any is malformed."""
    records: list[Record] = []
    at, stop = 0, len(body)
    while at < stop:
        if at + _TLV.size > stop:
            raise MalformedDatagram("bad-record-length")
        number, length = _TLV.unpack_from(body, at)
        at += _TLV.size
        if at + length > stop:
            raise MalformedDatagram("bad-record-length")
        decode = _DECODERS.get(number)
        if decode is not None:
            try:
                records.append(decode(body[at : at + length]))
            except StructError:
                raise MalformedDatagram("bad-record") from None
        at += length
    return records
