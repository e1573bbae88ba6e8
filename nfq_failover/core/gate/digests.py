"""Digests of what our own server has sent, for the backup to compare with its replica's output.

Every segment's payload is remembered as it is (no copy: the packet's own buffer), and hashed a few milliseconds later
(with many connections: up to `FLUSH_MAX_S`), in blocks, so that a busy host pays for a bounded number of digests in a
second and not for one per response. The bytes are kept until the backup has compared them, as far as the limits allow:
where the hashes differ, the backup asks for them. What follows from differences is in shadow/divergence.py.

A connection that was let go, and may be protected again, is digested like any other: what its server says meanwhile is
compared as well. Nobody waits for that, so it is told in larger pieces, and repeated when the replica is near again.

With the policy `strict` a segment waits until the backup has found its bytes in the replica's output, too; it is then
built anew, from the bytes that were kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from nfq_failover.constants import FIN, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.gate.held_data import longest_data
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.tcp.hashes import block_hashes, cut, hash_seed, make_marks
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import DIGEST_BLOCK, MAX_HASHES, MAX_UNSEEN, BytesAsked, BytesSent, Digest, DigestSeen
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff

FLUSH_S = 0.003
FLUSH_MAX_S = 0.1
FLUSH_AT_ONCE = 8  # connections that are flushed every FLUSH_S; with more of them each has to wait longer
FLUSH_BYTES = MAX_HASHES * DIGEST_BLOCK
FLUSH_LATE_S = 0.25  # for replicas that are `LATE_UNSEEN` digests behind, and where nobody waits for the replica
LATE_UNSEEN = 1024
STRICT_UNSEEN = 32  # with more of them the client waits
KEEP_BYTES = 1 << 20  # per connection, of what the backup has not compared yet
KEEP_TOTAL = 64 << 20  # of all connections
KEEP_PIECES = 2048
MAX_UNSEEN_HASHES = 1 << 20  # of all connections: some 40 MB, for up to 1.3 GB of output that is not compared yet
RECORD_HASHES = 8  # a digest takes as much memory, its hashes apart; and so does a mark
REPEAT_FIRST_S = 0.03
REPEAT_MAX_S = 2.0
REPEAT_AT_ONCE = 8
_FLUSH, _FLUSH_LATE = -1, -2  # the keys of the timers that all streams share; connections count from 1

NOT_COMPARED = "there was no more room for what is to be compared with its replica's output"

Piece = tuple[int, memoryview]


def _weight(record: Digest) -> int:
    """How much memory a digest takes, in hashes."""
    return RECORD_HASHES * (1 + len(record.marks)) + len(record.hashes)


class SentStream:
    """What one server has sent, in offsets of its stream.

    `snd_nxt` is the end of it; [mark, snd_nxt) is not digested yet. `outbound` has the bytes that are kept, `compared`
    is the first byte that the backup has not compared, and `released` (strict) the first that the client may not have.
    `lost_to`: before it are bytes whose digests were dropped; the backup may have them, or not.
    """

    __slots__ = (
        "compared",
        "connection",
        "differences",
        "lost_to",
        "mark",
        "mss",
        "open",
        "outbound",
        "outbound_bytes",
        "pending",
        "released",
        "repeat_s",
        "said",
        "snd_nxt",
        "space",
        "unseen",
        "waits_since",
    )

    def __init__(self, connection: GatedConnection) -> None:
        self.connection = connection
        self.space = SeqSpace(connection.open.iss)
        self.snd_nxt = self.mark = self.compared = self.released = self.lost_to = 0
        self.pending: list[memoryview] = []
        self.outbound: deque[Piece] = deque()
        self.outbound_bytes = 0
        self.unseen: deque[Digest] = deque()
        self.repeat_s = REPEAT_FIRST_S
        self.waits_since = 0.0  # strict: since when nothing has been released
        self.mss = longest_data(connection.open)
        self.differences = 0
        self.open = False  # the last of them has not ended
        self.said = False  # whether any digest was sent

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes [start, end); empty unless all of them are kept."""
        parts = []
        at = start
        for offset, piece in self.outbound:
            if at >= end or offset > at:
                break
            if offset + len(piece) > at:
                part = piece[at - offset : end - offset]
                parts.append(part)
                at += len(part)
        return b"".join(parts) if at >= end else b""

    def forget_before(self, before: int) -> None:
        """Forget the bytes before an offset."""
        kept = self.outbound
        # Ends: each turn takes a piece out.
        while kept and kept[0][0] + len(kept[0][1]) <= before:
            self.outbound_bytes -= len(kept.popleft()[1])


class GateDigests:
    """Makes and repeats the digests of all connections. `part(connection, reason, now)` gives up the protection of one,
    whose replica is fed on."""

    def __init__(self, settings: Settings, out: Outbox, part: Callable[[GatedConnection, str, float], None]) -> None:
        self.out = out
        self.on = settings.divergence != "off"
        self._strict = settings.divergence == "strict"
        self._settings = settings
        self._part = part
        self._seed = hash_seed(settings.key)
        self._streams: dict[int, SentStream] = {}
        self._dirty: dict[int, SentStream] = {}
        self._dirty_late: dict[int, SentStream] = {}
        self._timers: TimerQueue[int] = TimerQueue()
        self._kept_total = self._hashes_total = 0

    # ------------------------------------------------------------------------------------ what our TCP sends

    def sent(self, connection: GatedConnection, seg: Segment, now: float) -> None:
        """Take in a segment of our TCP, of a connection that the backup may have to continue."""
        if not self.on:
            return
        stream = self._streams.get(connection.conn)
        if stream is None:
            stream = self._streams[connection.conn] = SentStream(connection)
            self._soon(stream, now)
        length = seg.payload_len
        if length:
            offset = stream.space.offset(seg.seq)
            end = offset + length
            if end <= stream.snd_nxt:
                return  # a retransmission
            if offset > stream.snd_nxt:
                self._skip(stream, offset, now)
            self._add(stream, memoryview(seg.buf)[seg.data_off + stream.snd_nxt - offset : seg.end], now)
        if seg.flags & (FIN | RST) or (length and self._strict and connection.gated):
            self._flush(stream, now)  # at once: the question about the end must not come first

    def holds(self, connection: GatedConnection, event: PacketQueued, seg: Segment, now: float) -> bool:
        """Whether the segment has to wait for the backup, with the policy `strict`. It is dropped then, and its bytes
        are sent anew; if they could not be kept, our TCP sends it again."""
        stream = self._streams.get(connection.conn) if self._strict and seg.payload_len else None
        if stream is None or stream.space.offset(seg.seq) + seg.payload_len <= stream.released:
            return False
        connection.note_ack(seg, now)
        self.out.drop(event.queue, event.packet_id, "strict-held")
        return True

    def _release(self, stream: SentStream, upto: int) -> None:
        """The client may have the bytes before an offset."""
        at = stream.released
        # Ends: `data` is not empty, so `at` comes nearer.
        while at < upto and (data := stream.read(at, min(at + stream.mss, upto))):
            stream.connection.acks.send_data(self.out, stream.space.seq(at), data)
            at += len(data)
        stream.released = max(upto, stream.released)

    def let_go(self, conn: int, awaited: bool = False) -> None:
        """The connection is not protected any more: nothing waits for the backup. `awaited`: it may be again."""
        stream = self._streams.get(conn)
        if stream is not None:
            if self._strict:
                self._release(stream, stream.snd_nxt)
            if not awaited:
                self.forget(conn)

    def hand_over(self, conn: int) -> None:
        """The connection moves to the backup, which needs digests until it has it; the client gets nothing more."""
        stream = self._streams.get(conn)
        if stream is not None:
            stream.released = stream.snd_nxt

    def let_all_go(self) -> None:
        """No connection is protected any more."""
        for conn in list(self._streams):
            self.let_go(conn)
        self.clear()

    def _add(self, stream: SentStream, data: memoryview, now: float) -> None:
        size = len(data)
        if stream.released == stream.snd_nxt:
            stream.waits_since = now
        stream.outbound.append((stream.snd_nxt, data))
        stream.outbound_bytes += size
        self._kept_total += size
        stream.pending.append(data)
        stream.snd_nxt += size
        stream.space.follow(stream.snd_nxt)
        if not stream.connection.gated:
            stream.released = stream.snd_nxt
        if stream.snd_nxt - stream.mark >= FLUSH_BYTES:
            self._flush(stream, now)
        elif stream.connection.conn not in self._dirty:
            self._soon(stream, now)

    def _soon(self, stream: SentStream, now: float) -> None:
        if not stream.connection.gated or (len(stream.unseen) >= LATE_UNSEEN and not self._strict):
            self._dirty_late[stream.connection.conn] = stream
            self._timers.set_earlier(_FLUSH_LATE, now + FLUSH_LATE_S)
            return
        if not self._dirty:
            crowd = len(self._streams) // FLUSH_AT_ONCE
            self._timers.set_earlier(_FLUSH, now + min(FLUSH_S * max(crowd, 1), FLUSH_MAX_S))
        self._dirty[stream.connection.conn] = stream

    def _skip(self, stream: SentStream, offset: int, now: float) -> None:
        """Bytes have passed that we have not seen whole: they can't be compared."""
        self._flush(stream, now)
        self.out.counters["digest-skipped"] += offset - stream.snd_nxt
        self._say(stream, Digest(stream.connection.conn, stream.space.seq(stream.snd_nxt), offset - stream.snd_nxt))
        stream.snd_nxt = stream.mark = offset
        stream.space.follow(offset)
        self._timers.set_earlier(stream.connection.conn, now + REPEAT_FIRST_S)
        self._soon(stream, now)

    def _flush(self, stream: SentStream, now: float) -> None:
        """Send the digest of what is new."""
        self._dirty.pop(stream.connection.conn, None)
        self._dirty_late.pop(stream.connection.conn, None)
        conn, start, size = stream.connection.conn, stream.mark, stream.snd_nxt - stream.mark
        if not size and stream.said:
            return
        if self._strict and stream.connection.gated and len(stream.unseen) >= STRICT_UNSEEN:
            self._dirty[conn] = stream  # what the backup has not seen is not forgotten: it would be passed over
            self._timers.set_earlier(_FLUSH, now + FLUSH_S)
            return
        stream.mark = stream.snd_nxt
        if not size:
            self._say(stream, Digest(conn, stream.space.seq(start), 0))
        for part in cut(stream.pending, FLUSH_BYTES):
            length = sum(map(len, part))
            hashes = tuple(block_hashes(part, self._seed))
            marks = make_marks(part, self._seed) if stream.connection.gated else ()  # for a takeover
            self._say(stream, Digest(conn, stream.space.seq(start), length, hashes, marks))
            start += length
        stream.pending.clear()
        self._bound(stream)
        if stream.connection.gated:
            self._timers.set_earlier(conn, now + stream.repeat_s)  # a replica that is behind is not told all the time

    def _say(self, stream: SentStream, record: Digest) -> None:
        stream.said = True
        stream.unseen.append(record)
        self._hashes_total += _weight(record)
        self.out.record(record)

    def _drop_first(self, stream: SentStream) -> int:
        """Repeat the oldest digest no more. Returns the end of its bytes."""
        record = stream.unseen.popleft()
        self._hashes_total -= _weight(record)
        return stream.space.offset(record.seq) + record.length

    def _bound(self, stream: SentStream) -> None:
        """Keep within the limits. What is dropped here can only be compared by its hash."""
        kept = stream.outbound
        # Ends: each turn takes a digest out.
        while stream.unseen and (len(stream.unseen) > MAX_UNSEEN or self._hashes_total > MAX_UNSEEN_HASHES):
            if self._strict and stream.connection.gated:
                break
            stream.lost_to = max(stream.lost_to, self._drop_first(stream))
            self.out.counters["digest-dropped"] += 1
        # Ends: each turn takes a piece out.
        while kept and (stream.outbound_bytes > KEEP_BYTES or len(kept) > KEEP_PIECES or self._kept_total > KEEP_TOTAL):
            size = len(kept.popleft()[1])
            stream.outbound_bytes -= size
            self._kept_total -= size
            self.out.counters["digest-bytes-dropped"] += size

    def _forget_bytes(self, stream: SentStream, before: int) -> None:
        size = stream.outbound_bytes
        stream.forget_before(before)
        self._kept_total -= size - stream.outbound_bytes

    # ------------------------------------------------------------------------------------ what the backup says

    def on_seen(self, record: DigestSeen, now: float) -> None:
        """The backup has compared everything before an offset."""
        stream = self._streams.get(record.conn)
        if stream is None:
            return
        before, compared = stream.compared, min(stream.space.offset(record.compared), stream.mark)
        stream.differences = max(stream.differences, record.differences)
        if compared >= stream.compared:
            stream.open = record.open
        if compared > stream.compared:
            stream.compared = compared
            stream.repeat_s = max(stream.repeat_s / 2, REPEAT_FIRST_S)
            if self._strict:
                self._release(stream, compared)
                stream.waits_since = now
            self._forget_bytes(stream, compared)
        unseen = stream.unseen
        # Ends: each turn takes a digest out.
        while unseen and stream.space.offset(unseen[0].seq) + unseen[0].length <= stream.compared:
            self._drop_first(stream)
        if not unseen:
            stream.repeat_s = REPEAT_FIRST_S
            self._timers.cancel(record.conn)
        elif stream.compared > before:
            self._timers.set(record.conn, now + stream.repeat_s)

    def on_asked(self, record: BytesAsked, _: float) -> None:
        """The hashes of a block differ: tell the bytes."""
        stream = self._streams.get(record.conn)
        if stream is None:
            return
        start, end = stream.space.offset(record.start), stream.space.offset(record.end)
        data = stream.read(start, end) if 0 < end - start <= DIGEST_BLOCK else b""
        self.out.record(BytesSent(record.conn, record.start, data))

    def agrees(self, connection: GatedConnection, seq: int) -> bool:
        """Whether everything that either server has sent before `seq` was compared, and the last difference is over."""
        if not self.on:
            return True
        stream = self._streams.get(connection.conn)
        if stream is None:  # our server has sent nothing
            return diff(seq, connection.open.iss) <= 1
        end = stream.space.offset(seq) - connection.own.fin_sent
        return not stream.open and stream.compared >= end

    def open(self, conn: int) -> bool:
        """Whether the connection's output differs, and the difference has not ended: a takeover would reset it."""
        stream = self._streams.get(conn)
        return stream is not None and stream.open

    def differences(self, conn: int) -> int:
        """In how many places the connection's output was different."""
        stream = self._streams.get(conn)
        return 0 if stream is None else stream.differences

    # ------------------------------------------------------------------------------------ time, end

    def forget(self, conn: int) -> None:
        """The connection is over, or the backup can't continue it any more."""
        stream = self._streams.pop(conn, None)
        if stream is not None:
            self._dirty.pop(conn, None)
            self._dirty_late.pop(conn, None)
            self._timers.cancel(conn)
            self._kept_total -= stream.outbound_bytes
            self._hashes_total -= sum(map(_weight, stream.unseen))

    def clear(self) -> None:
        """Forget everything."""
        self._streams.clear()
        self._dirty.clear()
        self._dirty_late.clear()
        self._timers.clear()
        self._kept_total = self._hashes_total = 0

    def on_timer(self, now: float) -> None:
        """Send what has been waiting, and repeat what was not answered."""
        for conn in self._timers.pop_due(now):
            if conn in (_FLUSH, _FLUSH_LATE):
                for stream in list((self._dirty if conn == _FLUSH else self._dirty_late).values()):
                    self._flush(stream, now)
                continue
            again = self._streams.get(conn)
            if again is None or not again.unseen:
                continue
            if not again.connection.gated:  # `remind` begins again
                continue
            if (
                self._strict
                and again.released < again.snd_nxt
                and now - again.waits_since > self._settings.out_of_step_ms / 1000
            ):
                self.out.counters["strict-given-up"] += 1
                self._part(again.connection, "the replica does not follow (policy: strict)", now)
                continue
            self._repeat(again, now)

    def _repeat(self, stream: SentStream, now: float) -> None:
        for record in islice(stream.unseen, REPEAT_AT_ONCE):
            self.out.record(record)
        stream.repeat_s = min(2 * stream.repeat_s, REPEAT_MAX_S)
        self._timers.set(stream.connection.conn, now + stream.repeat_s)

    def remind(self, connection: GatedConnection, now: float) -> None:
        """The connection was let go, and its replica is near again: say what is not said yet, and once more what the
        backup has still to compare. If not all of that is there, it can't be protected again: it is given up."""
        stream = self._streams.get(connection.conn)
        if stream is None:
            return
        if stream.lost_to > stream.compared:
            self._part(connection, NOT_COMPARED, now)
            return
        if stream.unseen:
            stream.repeat_s = REPEAT_FIRST_S
            self._repeat(stream, now)
        self._flush(stream, now)

    def poll_timeout(self) -> float | None:
        """Returns the earliest deadline."""
        return self._timers.next()
