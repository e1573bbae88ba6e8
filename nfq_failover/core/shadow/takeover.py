"""What a connection does once the client hears its replica: translate outward, and resend what was suppressed.

The replica's TCP believes that its suppressed segments are in flight. Everything the client has not acknowledged is
sent again from our copy: about ten segments at once (RFC 6928), then twice what each ACK newly acknowledges, until the
copy is used up. Meanwhile new output is appended to the copy instead of overtaking it; retransmissions of what was
already resent pass. Then the replica's TCP is on its own.
"""

from __future__ import annotations

from nfq_failover.constants import ACK, FIN, PSH, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import BackupConnection, Shadow
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import set_wscale

INITIAL_SEGMENTS = 10
BURST_SEGMENTS = 64  # upon one acknowledgement, however much it says
STUCK_SIGHTINGS = 3


def take_over(connection: BackupConnection, out: Outbox, now: float) -> None:
    """Make a shadow connection heard: its client gets what is due, or at least a pure ACK."""
    connection.state = Shadow.ACTIVE
    connection.heard = True
    connection.floor = connection.cum
    mapping = connection.mapping
    mapping.take_over()
    mapping.edge_sent = connection.edge_confirmed  # at most this was promised by the primary
    if connection.c_ack < 0 or connection.ended:
        # Handshake not complete: our TCP repeats its SYN-ACK, or the client its SYN. Ended: nobody waits for anything.
        connection.resend_next = None
        return
    connection.resend_next = connection.c_ack
    if not resend(connection, out, INITIAL_SEGMENTS, now):
        at = connection.resend_next  # not None: the client's window is closed, and nothing beyond it would be accepted
        send(connection, out, max(connection.produced, connection.c_ack) if at is None else at, b"", ACK, now)
        probe(connection, out, now)


def probe(connection: BackupConnection, out: Outbox, now: float) -> None:
    """A client whose window is closed may have opened it meanwhile, and told nobody who is alive. Make it say so again:
    its TCP answers a segment from before its window with an acknowledgement (RFC 9293 section 3.10.7.4, first)."""
    if not connection.c_wnd:
        told = connection.ack_sent
        send(connection, out, connection.c_ack - 1, b"", ACK, now)
        connection.ack_sent = told  # of what is outside its window it takes no acknowledgement


def resend(connection: BackupConnection, out: Outbox, segments: int, now: float) -> int:
    """Send up to `segments` more of the suppressed output; returns how many went out. Ends the resending when done."""
    sent = 0
    while connection.resend_next is not None and sent < segments:
        at = max(connection.resend_next, connection.c_ack)
        room = connection.c_ack + (connection.c_wnd << connection.client_wscale) - at
        if room <= 0 and at < connection.produced:
            return sent
        if connection.compare is not None:
            room = min(room, connection.compare.compared - at)
            if room <= 0:
                return sent
        data = connection.output.read(at, min(connection.client_mss, room))
        after = at + len(data)
        fin = connection.fin_out == after and connection.c_ack <= after
        if not data and not fin:
            connection.resend_next = None
            return sent
        last = after >= connection.output.end
        send(connection, out, at, data, ACK | (PSH if last else 0) | (FIN if fin else 0), now)
        sent += 1
        connection.resent = max(connection.resent, after + fin)
        connection.resend_next = None if fin else after
    return sent


def send(connection: BackupConnection, out: Outbox, offset: int, data: bytes, flags: int, now: float) -> None:
    """Send the client a segment that we build ourselves."""
    mapping = connection.mapping
    ack = max(connection.k_ack, connection.floor)
    connection.ack_sent = ack
    window = mapping.seen_window(ack, connection.k_edge)
    timestamps = None
    if mapping.timestamps:
        timestamps = (mapping.seen_tsval(mapping.own_clock(now)), connection.c_tsval)
    client, client_port, server, server_port = connection.flow
    out.counters["resent"] += 1
    out.outward(
        build_segment(
            (server, server_port),
            (client, client_port),
            mapping.seen.seq(offset),
            connection.client.seq(ack),
            flags,
            window,
            ack_options(timestamps, []),
            data,
        )
    )


def on_client_ack(connection: BackupConnection, newly: int, out: Outbox, now: float) -> None:
    """The client has acknowledged `newly` bytes: go on with the resending."""
    if connection.resend_next is None:
        return
    idle = connection.resend_next <= connection.c_ack
    segments = min(-(-2 * newly // connection.client_mss), BURST_SEGMENTS)
    resend(connection, out, max(segments, INITIAL_SEGMENTS if idle else 0), now)


def outward(
    connection: BackupConnection, event: PacketQueued, seg: Segment, offset: int, out: Outbox, now: float
) -> None:
    """Translate a segment of our TCP for the client (its content was learned already)."""
    if seg.seg_len and connection.withheld(offset + seg.seg_len):
        out.drop(event.queue, event.packet_id, "not-compared")
        _tell_news(connection, out, now)
        return
    if connection.resend_next is not None and seg.seg_len:
        if offset > connection.resend_next:
            out.drop(event.queue, event.packet_id, "resend-pending")
            _tell_news(connection, out, now)
            return
        # Not out of order: a retransmission of our TCP, perhaps its probe of a closed window.
        connection.resend_next = max(connection.resend_next, offset + seg.seg_len)
    if seg.seg_len and offset + seg.seg_len <= connection.c_ack:
        out.drop(event.queue, event.packet_id, "client-has-it")
        _tell_news(connection, out, now)
        return
    if offset < connection.c_ack and seg.payload_len and event.complete:
        out.drop(event.queue, event.packet_id, "client-has-its-head")
        _send_rest(connection, seg, offset, out, now)
        return
    if not seg.seg_len and connection.produced < connection.c_ack:
        # Our TCP is behind what the client has: its own SEQ is below the client's window, so its acknowledgement would
        # be refused (RFC 9293 section 3.10.7.4), and the client would repeat its data for ever. Otherwise a SEQ below
        # the window is meant so: it is a probe.
        offset = connection.c_ack
    _translate(connection, event, seg, offset, out)


def _tell_news(connection: BackupConnection, out: Outbox, now: float) -> None:
    """A data segment of our TCP is not sent: what it acknowledges is, if the client does not know."""
    if max(connection.k_ack, connection.floor) > connection.ack_sent:
        at = connection.resend_next
        send(connection, out, max(connection.produced, connection.c_ack) if at is None else at, b"", ACK, now)


def _send_rest(connection: BackupConnection, seg: Segment, offset: int, out: Outbox, now: float) -> None:
    """Send only what the client has not acknowledged of a segment."""
    data = seg.payload()[connection.c_ack - offset :]
    at = connection.c_ack
    flags = seg.flags & ~FIN
    while len(data) > connection.client_mss:
        send(connection, out, at, data[: connection.client_mss], flags, now)
        data = data[connection.client_mss :]
        at += connection.client_mss
    send(connection, out, at, data, seg.flags, now)


def outward_syn_ack(connection: BackupConnection, event: PacketQueued, seg: Segment, out: Outbox) -> None:
    """Our TCP repeats its SYN-ACK: the client must see the one that the primary sent."""
    if connection.open.wscale is not None and event.complete:
        options = bytearray(seg.options())
        set_wscale(options, connection.open.wscale)
        seg.buf[seg.tcp_off + 20 : seg.data_off] = options
    _translate(connection, event, seg, -1, out)


def _translate(connection: BackupConnection, event: PacketQueued, seg: Segment, offset: int, out: Outbox) -> None:
    if not event.complete:
        out.drop(event.queue, event.packet_id, "incomplete-packet")
        return
    mapping = connection.mapping
    seg.set_seq(mapping.seen.seq(offset))
    if seg.flags & ACK:
        ack = max(connection.client.offset(seg.ack), connection.floor)
        seg.set_ack(connection.client.seq(ack))
        connection.ack_sent = ack
        if not seg.flags & SYN:
            seg.set_wnd(mapping.seen_window(ack, connection.k_edge))
    if seg.ts_off:
        seg.set_timestamps(mapping.seen_tsval(seg.tsval), seg.tsecr)
    if not event.gso:
        seg.seal()
    out.accept(event.queue, event.packet_id, seg.buf)


def note_hole(connection: BackupConnection, offset: int, now: float, deadline_s: float) -> bool:
    """A client's data segment starts beyond what we hold. True if the hole can never be filled.

    A client that lacks our acknowledgement sends its first unacknowledged byte again and again (RFC 6298 section 5.4).
    If that byte lies beyond our hole, it has been told that we had the bytes in between.
    """
    head, times, since = connection.stuck or (offset, 0, now)
    if offset != head:
        if offset < head:
            connection.stuck = (offset, 1, now)
        return False
    connection.stuck = (head, times + 1, since)
    return times + 1 >= STUCK_SIGHTINGS and now - since >= deadline_s
