"""Copies of the client's segments, made on their way to our own TCP, and the bytes that the backup gets from them.

Copies are made beside the packet's path, before our TCP judges the segment: a copy tells what our TCP may have taken.
Which copies it has certainly not taken, and which leave it open what it has taken, is found here. The checks follow RFC
9293 section 3.10.7.4 and RFC 5961; core/shadow/acceptance.py has those of a host that shadows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.constants import ACK, FIN, RST, URG
from nfq_failover.core.events import FrameCopied
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.claims import TWO_VERSIONS, URGENT, outdated
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.records import Data, HeardBefore, Missing
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import diff

MAX_LATE_BYTES: Final = 256 << 20  # of all connections, for replicas that are late
DATA_BYTES: Final = 1300
DATA_PER_REQUEST: Final = 32
UNSERVED_S: Final = 1.0
NO_ROOM: Final = "the replica had not caught up before there was no more room for what it lacks"
UNREAD_BYTES: Final = 1 << 26
"""More than our TCP can have sent since we last looked: an ACK number further ahead than this is of nothing sent."""
UNREAD_WINDOW: Final = 1 << 20  # how much further the window may be than we have seen it


def copy_refused(connection: GatedConnection, seg: Segment, now: float) -> str:
    """Why our TCP has certainly not taken a segment that was copied on its way in; empty if it may have.

    An ACK number that is too old is no reason: Linux's fast path for the segment that comes next does not look.
    """
    own = connection.own
    if not seg.flags & ACK:
        return "no-ack-flag"
    if diff(seg.ack, own.snd_nxt_seq) > UNREAD_BYTES:
        return "ack-of-unsent"
    timestamps = own.timestamps and own.tsecr
    return "old-timestamp" if timestamps and outdated(seg, own.tsecr, now - own.ts_at) else ""


def copy_contradiction(connection: GatedConnection, seg: Segment, now: float) -> str:
    """Why a copied segment leaves it open which bytes our TCP has taken; empty if it does not.

    What our TCP took some time ago is settled: copies may be read late, but not by that much.
    """
    own, fin, inbound = connection.own, connection.retained.fin_in, connection.retained.inbound
    settled = own.settled(now)
    offset = own.client.offset(seg.seq)
    stop = offset + seg.payload_len
    if stop < settled or offset > own.rcv_edge + UNREAD_WINDOW:
        return ""  # outside the window, so our TCP has not taken it
    if seg.flags & URG:
        return URGENT
    if fin is not None and own.rcv_nxt <= fin and (stop > fin or (seg.ends_stream and stop != fin)):
        return TWO_VERSIONS
    if seg.ends_stream and settled <= stop < inbound.end:
        return TWO_VERSIONS
    if stop <= settled or (offset >= inbound.end and not inbound.has_islands):
        return ""
    data = seg.payload()
    if offset < settled:
        data, offset = data[settled - offset :], settled
    return TWO_VERSIONS if inbound.differs(offset, data) else ""


class Copies:
    """Keeps what is copied, for the backup. `flows` and `numbers` are the gate's tables.

    `unprotect(connection, reason, now)` gives a connection up; `look_soon(now)` says that our TCP may have forgotten
    some; `missed` is told of what no replica gets. `wanted`: the next copies are to be read at once. `late_bytes`: how
    much is kept for replicas that are not ready; what they have got by now counts, for a while.
    """

    def __init__(
        self,
        out: Outbox,
        flows: dict[FlowKey, GatedConnection],
        numbers: dict[int, GatedConnection],
        missed: MissedInput,
        unprotect: Callable[[GatedConnection, str, float], None],
        look_soon: Callable[[float], None],
    ) -> None:
        self._missed = missed
        self.out = out
        self.wanted = False
        self.late_bytes = 0
        self._flows = flows
        self._numbers = numbers
        self._unprotect = unprotect
        self._look_soon = look_soon

    def copied(self, event: FrameCopied, protecting: bool, now: float) -> None:
        """Look at the copy of an inbound segment that our TCP may take."""
        try:
            seg = Segment(event.packet)
        except MalformedSegment as error:
            self.out.counters[f"copy-{error.reason}"] += 1
            return
        connection = self._flows.get((seg.src, seg.sport, seg.dst, seg.dport))
        if connection is None or connection.state is Gate.CLOSED:
            return
        if not event.checksum_pending and not seg.checksum_ok():
            self.out.counters["copy-bad-checksum"] += 1
            return
        if seg.flags & (RST | FIN):
            self._look_soon(now)
        if seg.flags & RST:
            connection.note_client_reset(seg)
        self.wanted = False
        if connection.missing_from is not None and seg.payload_len:
            stop = connection.own.client.offset(seg.seq) + seg.payload_len
            if stop <= connection.own.rcv_edge + UNREAD_WINDOW:
                connection.note_written(stop)
                self._missed.look(connection, now)
        if refused := copy_refused(connection, seg, now):
            self.out.counters[f"copy-{refused}"] += 1
        elif protecting and (connection.gated or connection.fed or self._keeps_ungated(connection, seg, now)):
            if (connection.gated or connection.fed) and (wrong := copy_contradiction(connection, seg, now)):
                self._unprotect(connection, wrong, now)
            kept = connection.retained.keep(seg, connection.acks.confirmed, self.out, now)
            if not kept and connection.awaited and not connection.gated:
                self._unprotect(connection, NO_ROOM, now)

    def _keeps_ungated(self, connection: GatedConnection, seg: Segment, now: float) -> bool:
        """Whether the backup may still have to get the client's bytes from us, though nothing is held back."""
        if connection.state is Gate.SYN_HELD:
            return True
        if not connection.awaited:
            return False
        if self.late_bytes + seg.payload_len > MAX_LATE_BYTES:
            self._unprotect(connection, NO_ROOM, now)
            self.out.counters["late-full"] += 1
            return False
        self.late_bytes += seg.payload_len
        return True

    def on_missing(self, record: Missing, now: float) -> None:
        """Send bytes that the backup's tap has lost."""
        connection = self._numbers.get(record.conn)
        if connection is None:
            return
        own, retained = connection.own, connection.retained
        at = start = own.client.offset(record.start)
        stop = min(own.client.offset(record.end), own.rcv_nxt)
        served = False
        for _ in range(DATA_PER_REQUEST):
            if at >= stop:
                break
            data, fin = retained.read(at, min(DATA_BYTES, stop - at))
            if not data and not fin:
                break
            served = True
            for since, ack in retained.heard.between(at, at + len(data) + fin):
                if ack > 0:
                    self.out.record(HeardBefore(connection.conn, own.client.seq(since), retained.server.seq(ack)))
            self.out.record(Data(connection.conn, own.client.seq(at), data, fin))
            at += len(data) + fin
        if retained.unserved is not None and connection.acks.confirmed > retained.unserved[0]:
            retained.note_unserved(None, now)  # it has got them elsewhere
        unserved = retained.unserved
        if served or at >= stop:
            if unserved is not None and start <= unserved[0]:
                retained.note_unserved(None, now)
        elif unserved is None:
            retained.note_unserved(at, now)  # the copy may still be on its way to us
            self.wanted = True
        elif now - unserved[1] > UNSERVED_S:
            self._unprotect(connection, "bytes that the backup misses were not retained", now)

    def forget_settled(self, now: float) -> None:
        """Drop what has been kept long enough, and count anew."""
        late_bytes = 0
        for connection in self._flows.values():
            connection.retained.forget_settled(connection.acks.confirmed, now)
            if not connection.gated and not connection.fed:
                late_bytes += connection.retained.inbound.size
        self.late_bytes = late_bytes
