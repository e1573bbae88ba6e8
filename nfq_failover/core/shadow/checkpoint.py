"""What the daemon's next life on this boot has to know: whether this host served, and how to go on translating.

The node says what to write and where (`Remember`); the shell keeps it outside the process, as fast as memory (it need
outlive the process, not the host). A header, then one slot for each connection that was taken over. A slot holds what
never changes after the takeover (addresses, initial sequence numbers, options, timestamp offset), marks (FINs, whether
our TCP has all that was acknowledged), and offsets that say, to within 2^31, where both streams are. Where exactly,
our own TCP is asked after the restart (`BackupConnection.resync`). So a packet costs a comparison, not a write.

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
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.translation import ReplicaMap
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
_SACK, _TSVAL, _WSCALE, _MAP, _LAGGING, _HANDED = 1, 2, 4, 8, 16, 32
_STATES = {1: Shadow.ACTIVE, 2: Shadow.DEAD}
_CODES = {state: code for code, state in _STATES.items()}
_NEVER = -2  # no FIN yet
_FREE = bytes(SLOT_BYTES)
_NEAR_SHIFT = 28  # a slot is written again after so many bits' worth of bytes: far less than 2^31

Write = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Recollection:
    """What an earlier life of the daemon has left. `damage`: why it can't be believed as a whole; empty if it can.

    `serving`: this host served, and no connection was protected. `strangers`: see `Opening.adopts_unknown`.
    `slots`: those that are in order; `damaged`: how many are not.
    """

    damage: str = ""
    serving: bool = False
    epoch: int = 0
    previous_epoch: int = 0
    strangers: bool = False
    slots: tuple[bytes, ...] = ()
    damaged: int = 0

    def allows(self, stored_epoch: int, served: bool) -> bool:
        """Whether this host may go on serving, for what is on its disk (epoch, whether it served in it)."""
        return not self.damage and self.serving and served and stored_epoch in (self.epoch, self.previous_epoch)


def recall(data: bytes, life: bytes) -> Recollection | None:
    """Read what was written. None if it is of another boot, whose connections are gone."""
    if len(data) < HEADER_BYTES or not _intact(data[:HEADER_BYTES]):
        return Recollection("it is damaged")
    magic, written_in, epoch, previous, serving, strangers, used = _HEADER.unpack_from(data)
    if magic != MAGIC:
        return Recollection("it is of another version")
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
    return Recollection("", bool(serving), epoch, previous, bool(strangers), tuple(slots), damaged)


def _sealed(body: bytes, size: int) -> bytes:
    body = body.ljust(size - _CRC.size, b"\0")
    return body + _CRC.pack(crc32(body))


def _intact(block: bytes) -> bool:
    return block[-_CRC.size :] == _CRC.pack(crc32(block[: -_CRC.size]))


# ---------------------------------------------------------------------------------------------------- one connection


def pack(connection: BackupConnection) -> bytes:
    """The slot of a connection that was taken over."""
    opening, mapping = connection.open, connection.map
    flags = (
        _SACK * opening.sack_permitted | _TSVAL * (opening.tsval is not None) | _WSCALE * (opening.wscale is not None)
    )
    flags |= _MAP * (mapping is not None) | _LAGGING * (connection.k_ack < connection.floor)
    flags |= _HANDED * bool(connection.handed)
    client, client_port, server, server_port = opening.flow
    own_seq, own_wscale, clock = 0, 0, (0, 0, 0, 0.0)
    if mapping is not None:
        own_seq, own_wscale, clock = mapping.own.seq(-1), mapping.own_wscale, mapping.clock
    body = _SLOT.pack(
        *(_CODES[connection.state], flags, client, client_port, server, server_port),
        *(opening.conn, opening.irs, opening.iss, opening.tsval or 0, opening.mss, opening.syn_wnd),
        *(opening.wscale or 0, own_wscale, len(opening.syn_options), opening.syn_options),
        *(own_seq, *clock),
        *(connection.k_ack, connection.k_edge, connection.c_ack, connection.produced, connection.floor),
        _NEVER if connection.fin_in is None else connection.fin_in,
        _NEVER if connection.fin_out is None else connection.fin_out,
        *(connection.c_wnd, connection.c_tsval, connection.c_tsecr),
    )
    return _sealed(body, SLOT_BYTES)


def unpack(slot: bytes, settings: Settings, now: float) -> BackupConnection:
    """The connection of a slot, ACTIVE or DEAD, as far as the slot knows it. Raises `MalformedSegment`."""
    try:
        fields = _SLOT.unpack_from(slot)
    except StructError:
        raise MalformedSegment("bad-slot") from None
    code, flags, client, client_port, server, server_port, conn, irs, iss, tsval, mss, syn_wnd = fields[:12]
    wscale, own_wscale, length, options, own_seq, ts_offset, ts_first, ts_last, ts_last_at = fields[12:21]
    k_ack, k_edge, c_ack, produced, floor, fin_in, fin_out, c_wnd, c_tsval, c_tsecr = fields[21:]
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
    made = BackupConnection(opening, settings, now)
    made.state = _STATES.get(code, Shadow.DEAD)
    made.heard = True
    made.handed = conn if flags & _HANDED else 0
    made.compare = None
    made.k_ack, made.c_ack, made.produced, made.floor = k_ack, c_ack, produced, floor
    made.k_edge = made.edge_confirmed = k_edge
    made.k_una = min(c_ack, produced)
    made.ack_sent = floor
    made.client.near = k_ack
    made.journal = Journal(settings.max_log_bytes, k_ack)
    made.output = Journal(settings.max_unacked_bytes, produced)
    made.fin_in = None if fin_in == _NEVER else fin_in
    made.fin_out = None if fin_out == _NEVER else fin_out
    made.c_wnd, made.c_tsval, made.c_tsecr = c_wnd, c_tsval, c_tsecr
    made.widest = max(made.widest, c_wnd << made.client_wscale)
    if flags & _MAP:
        ts = (0, 0) if flags & _TSVAL else None
        made.map = mapping = ReplicaMap(iss, own_seq, made.open.wscale or 0, own_wscale, ts, now)
        mapping.seen.near, mapping.own.near = c_ack, produced
        made.seen = mapping.seen
        mapping.edge_sent = k_edge
        mapping.recall((ts_offset, ts_first, ts_last, ts_last_at), now)
    if made.state is Shadow.ACTIVE and (flags & _LAGGING or made.map is None):
        made.state = Shadow.DEAD
        made.reason = "acknowledged bytes were in the memory of the daemon alone when it died"
    elif made.state is Shadow.DEAD:
        made.reason = "it could not be continued before the daemon's restart, either"
    # Before the handshake is complete our TCP knows nothing that the slot does not, and repeats its SYN-ACK by itself.
    made.resync = made.state is Shadow.ACTIVE and c_ack >= 0 and not made.ended
    return made


# ------------------------------------------------------------------------------------------------------------ all


@dataclass(slots=True)
class Memory:
    """What is written at this moment; `writes` are those that the node has to hand out before any other effect.

    `life` (32 bytes): tells this boot of the host from all others.
    """

    life: bytes
    writes: list[Write] = field(default_factory=list)
    _slots: dict[FlowKey, tuple[int, tuple[object, ...]]] = field(default_factory=dict)
    _used: int = 0
    _free: list[int] = field(default_factory=list)
    _header: tuple[bool, int, bool] = (False, -1, False)
    _previous: int = 0

    def begin(self, connections: list[BackupConnection]) -> None:
        """These, and no others, have been taken over."""
        self._slots.clear()
        self._free.clear()
        for index, connection in enumerate(connections):
            self._slots[connection.flow] = (index, _marks(connection))
            self.writes.append((HEADER_BYTES + index * SLOT_BYTES, pack(connection)))
        self._used = len(connections)
        self._header = (False, -1, False)

    def add(self, connection: BackupConnection) -> None:
        """This one, too."""
        index = self._free.pop() if self._free else self._used
        self._slots[connection.flow] = (index, _marks(connection))
        self.writes.append((HEADER_BYTES + index * SLOT_BYTES, pack(connection)))
        if index == self._used:
            self._used += 1
            self._header = (False, -1, False)  # it says how many there are

    def review(self, connection: BackupConnection) -> None:
        """A packet of the connection was handled: write it down again if something that matters has changed."""
        known = self._slots.get(connection.flow)
        if known is None:
            return
        marks = _marks(connection)
        if marks != known[1]:
            self._slots[connection.flow] = (known[0], marks)
            self.writes.append((HEADER_BYTES + known[0] * SLOT_BYTES, pack(connection)))

    def forget(self, flow: FlowKey) -> None:
        """The connection is over."""
        known = self._slots.pop(flow, None)
        if known is not None:
            self._free.append(known[0])
            self.writes.append((HEADER_BYTES + known[0] * SLOT_BYTES, _FREE))

    def note(self, serving: bool, epoch: int, strangers: bool) -> None:
        """The state of the host; see `Recollection`."""
        header = (serving, epoch, strangers)
        if header == self._header:
            return
        if epoch != self._header[1] >= 0:
            self._previous = self._header[1]
        self._header = header
        body = _HEADER.pack(MAGIC, self.life, epoch, self._previous, serving, strangers, self._used)
        self.writes.append((0, _sealed(body, HEADER_BYTES)))


def _marks(connection: BackupConnection) -> tuple[object, ...]:
    return (
        connection.state,
        connection.fin_in,
        connection.fin_out,
        connection.ended,
        connection.k_ack < connection.floor,
        connection.c_ack < 0,
        connection.k_ack >> _NEAR_SHIFT,
        connection.c_ack >> _NEAR_SHIFT,
        connection.produced >> _NEAR_SHIFT,
    )
