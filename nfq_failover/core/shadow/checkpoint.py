"""The checkpoint: what the daemon's next life on this boot has to know. Whether this host served, and how to go on
translating.

The node says what to write and where (`SaveCheckpoint`); the shell keeps it in a file that is held in memory, as it has
to outlive the process, not the host. The file is a header, then one slot for each connection that was taken over. A
slot holds what never changes after the takeover (addresses, initial sequence numbers, options, timestamp offset), marks
(FINs, whether our TCP has all that was acknowledged), and offsets that say, to within 2^31, where both streams are. Our
own TCP is asked after the restart where exactly (resync.py). So a packet costs a comparison, not a write.

Timestamps need no writing either: the replica's clock ticks with the host's monotonic clock, which goes on.

Everything is checksummed and bound to one boot of the host (`life`) and to its epochs; what does not fit is not
believed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError
from zlib import crc32

from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import FlowKey

MAGIC = b"NFQFMEM1"
LIFE_BYTES = 32
HEADER_BYTES = 256
SLOT_BYTES = 192
_HEADER = Struct("!8s32sQQBBI")
# state, flags; flow; conn, irs, iss, tsval, mss, syn_wnd; wscale, own_wscale, options; the map; offsets; newest header
# fields of the client.
_SLOT = Struct("!BB4sH4sHIIIIHHBBB40sIIIId7qIII")
_CRC = Struct("!I")
_SACK, _TSVAL, _WSCALE, _MAP, _LAGGING, _HANDED, _FOREIGN = 1, 2, 4, 8, 16, 32, 64
_STATES = {1: Shadow.ACTIVE, 2: Shadow.DEAD}
_CODES = {state: code for code, state in _STATES.items()} | {Shadow.FED: 2}  # what is left to deliver is lost with us
_NEVER = -2  # no FIN yet
_FREE = bytes(SLOT_BYTES)
_NEAR_SHIFT = 28  # a slot is written again every 2^28 bytes: far less than 2^31

Write = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint that an earlier life of the daemon has left. `damage`: why it can't be believed as a whole; empty
    if it can.

    `serving`: this host served, and no connection was protected. `adopts_unknown`: see the gate's `Opening`.
    `slots`: those that are in order; `damaged`: how many are not.
    """

    damage: str = ""
    serving: bool = False
    epoch: int = 0
    previous_epoch: int = 0
    adopts_unknown: bool = False
    slots: tuple[bytes, ...] = ()
    damaged: int = 0

    def allows(self, stored_epoch: int, served: bool) -> bool:
        """Whether this host may go on serving, for what is on its disk (epoch, whether it served in it)."""
        return not self.damage and self.serving and served and stored_epoch in (self.epoch, self.previous_epoch)


def read_checkpoint(data: bytes, life: bytes) -> Checkpoint | None:
    """Read what was written (`data`). None if it is of another boot, whose connections are gone."""
    if len(data) < HEADER_BYTES or not _intact(data[:HEADER_BYTES]):
        return Checkpoint("it is damaged")
    magic, written_in, epoch, previous, serving, adopts_unknown, used = _HEADER.unpack_from(data)
    if magic != MAGIC:
        return Checkpoint("it is of another version")
    if written_in != life:
        return None
    slots, damaged = [], 0
    for at in range(HEADER_BYTES, HEADER_BYTES + used * SLOT_BYTES, SLOT_BYTES):
        slot = data[at : at + SLOT_BYTES]
        if slot == _FREE:
            continue
        if len(slot) == SLOT_BYTES and _intact(slot):
            slots.append(slot)
        else:
            damaged += 1
    return Checkpoint("", bool(serving), epoch, previous, bool(adopts_unknown), tuple(slots), damaged)


def _sealed(body: bytes, size: int) -> bytes:
    body = body.ljust(size - _CRC.size, b"\0")
    return body + _CRC.pack(crc32(body))


def _intact(block: bytes) -> bool:
    return block[-_CRC.size :] == _CRC.pack(crc32(block[: -_CRC.size]))


# ---------------------------------------------------------------------------------------------------- one connection


def pack(connection: ShadowConnection) -> bytes:
    """The slot of a connection that was taken over."""
    opening, mapping = connection.open, connection.map
    flags = (
        _SACK * opening.sack_permitted | _TSVAL * (opening.tsval is not None) | _WSCALE * (opening.wscale is not None)
    )
    flags |= _MAP * (mapping is not None) | _LAGGING * _lagging(connection)
    flags |= _HANDED * bool(connection.handed) | _FOREIGN * connection.output.foreign
    client, client_port, server, server_port = opening.flow
    own_seq, own_wscale, clock = 0, 0, (0, 0, 0, 0.0)
    if mapping is not None:
        own_seq, own_wscale, clock = mapping.own.seq(-1), mapping.own_wscale, mapping.clock
    rcv_nxt, rcv_edge, fin_in = connection.inward.saved
    snd_una, snd_nxt, fin_out = connection.output.saved
    body = _SLOT.pack(
        *(_CODES[connection.state], flags, client, client_port, server, server_port),
        *(opening.conn, opening.irs, opening.iss, opening.tsval or 0, opening.mss, opening.syn_wnd),
        *(opening.wscale or 0, own_wscale, len(opening.syn_options), opening.syn_options),
        *(own_seq, *clock),
        *(rcv_nxt, rcv_edge, snd_una, snd_nxt, connection.resending.floor),
        *(_NEVER if fin_in is None else fin_in, _NEVER if fin_out is None else fin_out),
        *connection.header.saved,
    )
    return _sealed(body, SLOT_BYTES)


def unpack(slot: bytes, settings: Settings, now: float) -> ShadowConnection:
    """The connection of a slot, ACTIVE or DEAD, as far as the slot knows it. Raises `MalformedSegment`."""
    try:
        fields = _SLOT.unpack_from(slot)
    except StructError:
        raise MalformedSegment("bad-slot") from None
    code, flags, client, client_port, server, server_port, conn, irs, iss, tsval, mss, syn_wnd = fields[:12]
    wscale, own_wscale, length, options, own_seq, ts_offset, ts_first, ts_last, ts_last_at = fields[12:21]
    rcv_nxt, rcv_edge, snd_una, snd_nxt, floor, fin_in, fin_out, wnd, client_tsval, client_tsecr = fields[21:]
    flow: FlowKey = (client, client_port, server, server_port)
    opening = Open(
        conn=conn,
        flow=flow,
        irs=irs,
        iss=iss,
        tsval=tsval if flags & _TSVAL else None,
        wscale=wscale if flags & _WSCALE else None,
        mss=mss,
        sack_permitted=bool(flags & _SACK),
        syn_wnd=syn_wnd,
        syn_options=options[:length],
    )
    state, reason = _STATES.get(code, Shadow.DEAD), ""
    if state is Shadow.DEAD:
        reason = "it could not be continued before the daemon's restart, either"
    elif flags & _LAGGING or not flags & _MAP:
        state, reason = Shadow.DEAD, "acknowledged bytes were in the memory of the daemon alone when it died"
    elif flags & _FOREIGN:
        state, reason = Shadow.DEAD, "bytes of the other server were in the memory of the daemon alone when it died"
    mapping = None
    if flags & _MAP:
        ts = (0, 0) if flags & _TSVAL else None
        mapping = Translation(iss, own_seq, opening.wscale or 0, own_wscale, ts, now)
        mapping.seen.follow(snd_una)
        mapping.own.follow(snd_nxt)
        mapping.restore((ts_offset, ts_first, ts_last, ts_last_at), rcv_edge, now)
    made = ShadowConnection(opening, settings, now, state, reason)
    made.header.restore(wnd, client_tsval, client_tsecr)
    made.output.restore(snd_una, snd_nxt, None if fin_out == _NEVER else fin_out)
    made.inward.restore(rcv_nxt, rcv_edge, None if fin_in == _NEVER else fin_in)
    made.resending.restore(floor)
    made.restore(mapping, conn if flags & _HANDED else 0)
    # Before the handshake is complete our TCP knows nothing that the slot does not, and repeats its SYN-ACK by itself.
    if state is Shadow.ACTIVE and snd_una >= 0 and not made.ended:
        made.resync.begin()
    return made


# ------------------------------------------------------------------------------------------------------------ all


@dataclass(slots=True)
class CheckpointWriter:
    """The writer of the checkpoint; `writes` are those that the node has to hand out before any other effect.

    `life` (32 bytes): tells this boot of the host from all others.
    """

    life: bytes
    writes: list[Write] = field(default_factory=list)
    _slots: dict[FlowKey, tuple[int, tuple[object, ...]]] = field(default_factory=dict)
    _used: int = 0
    _free: list[int] = field(default_factory=list)
    _header: tuple[bool, int, bool] = (False, -1, False)
    _previous: int = 0

    def begin(self, connections: list[ShadowConnection]) -> None:
        """Write down `connections`, and no others: they have been taken over."""
        self._slots.clear()
        self._free.clear()
        for index, connection in enumerate(connections):
            self._slots[connection.flow] = (index, _marks(connection))
            self.writes.append((HEADER_BYTES + index * SLOT_BYTES, pack(connection)))
        self._used = len(connections)
        self._header = (False, -1, False)

    def add(self, connection: ShadowConnection) -> None:
        """Write down one more connection."""
        index = self._free.pop() if self._free else self._used
        self._slots[connection.flow] = (index, _marks(connection))
        self.writes.append((HEADER_BYTES + index * SLOT_BYTES, pack(connection)))
        if index == self._used:
            self._used += 1
            self._header = (False, -1, False)  # it says how many there are

    def review(self, connection: ShadowConnection) -> None:
        """Write a connection down again, after one of its packets, if something that matters has changed."""
        known = self._slots.get(connection.flow)
        if known is None:
            return
        marks = _marks(connection)
        if marks != known[1]:
            self._slots[connection.flow] = (known[0], marks)
            self.writes.append((HEADER_BYTES + known[0] * SLOT_BYTES, pack(connection)))

    def forget(self, flow: FlowKey) -> None:
        """Erase a connection: it is over."""
        known = self._slots.pop(flow, None)
        if known is not None:
            self._free.append(known[0])
            self.writes.append((HEADER_BYTES + known[0] * SLOT_BYTES, _FREE))

    def note(self, serving: bool, epoch: int, adopts_unknown: bool) -> None:
        """Write down the state of the host; see `Checkpoint`."""
        header = (serving, epoch, adopts_unknown)
        if header == self._header:
            return
        if epoch != self._header[1] >= 0:
            self._previous = self._header[1]
        self._header = header
        body = _HEADER.pack(MAGIC, self.life, epoch, self._previous, serving, adopts_unknown, self._used)
        self.writes.append((0, _sealed(body, HEADER_BYTES)))


def _lagging(connection: ShadowConnection) -> bool:
    """Whether bytes that were acknowledged at the takeover are in our log alone."""
    return connection.inward.rcv_nxt < connection.resending.floor


def _marks(connection: ShadowConnection) -> tuple[object, ...]:
    inward, output = connection.inward, connection.output
    return (
        connection.state,
        inward.fin_in,
        output.fin_out,
        connection.ended,
        inward.rcv_nxt < connection.resending.floor,
        output.snd_una < 0,
        output.foreign,
        inward.rcv_nxt >> _NEAR_SHIFT,
        output.snd_una >> _NEAR_SHIFT,
        output.snd_nxt >> _NEAR_SHIFT,
    )
