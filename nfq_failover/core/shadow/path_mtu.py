"""Path MTU discovery (RFC 1191) for connections that were taken over.

A router that can't forward a segment quotes its SEQ, as the client would have seen it. Our TCP believes such a message
only if the SEQ is one that it has in flight, so it must be in the replica's own numbers. Untranslated, the message
would be ignored, and on a narrow path the connection would stand still for ever.
"""

from __future__ import annotations

from collections.abc import Mapping

from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import Shadow, ShadowConnection
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.icmp import IcmpError
from nfq_failover.wire.segment import FlowKey


def judge(event: PacketQueued, flows: Mapping[FlowKey, ShadowConnection], serving: bool, out: Outbox) -> None:
    """Give an inbound ICMP message its verdict. `flows`: the connections whose numbers need translation."""
    if not serving:
        out.drop(event.queue, event.packet_id, "not-serving")
        return
    try:
        error = IcmpError(event.packet)
    except MalformedSegment as malformed:
        out.counters[f"icmp-{malformed.reason}"] += 1  # another protocol, or nonsense: the kernel judges
        out.accept(event.queue, event.packet_id)
        return
    connection = flows.get((error.dst, error.dport, error.src, error.sport))
    if connection is None:
        out.accept(event.queue, event.packet_id)
        return
    if connection.state is not Shadow.ACTIVE:
        out.drop(event.queue, event.packet_id, "icmp-of-unknown")
        return
    if not error.checksum_ok():
        out.drop(event.queue, event.packet_id, "bad-checksum")
        return
    mapping = connection.mapping
    error.set_seq(mapping.own.seq(mapping.seen.offset(error.seq)))
    out.counters["icmp-translated"] += 1
    out.accept(event.queue, event.packet_id, error.buf)
