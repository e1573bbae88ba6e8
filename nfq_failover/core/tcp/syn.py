"""SYNs: what may be left in them and their answers, nothing that a takeover couldn't continue; and who refuses one."""

from __future__ import annotations

from nfq_failover.constants import ACK, RST
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import lower_mss, without


def strip(seg: Segment, keep: frozenset[int]) -> bool:
    """Take out options of kinds not in `keep`, and data; True if that changed the segment, which is sealed then.

    Data in a SYN belongs to TCP Fast Open: a kernel that is told to needs no option to take it (RFC 7413 section 4.2),
    and its SYN-ACK then acknowledges bytes that no backup has. Without it the client sends them again.
    """
    options = seg.options()
    kept = without(options, keep)
    if kept == options and not seg.payload_len:
        return False
    seg.buf[seg.tcp_off + 20 : seg.data_off] = kept
    if seg.payload_len:
        seg.drop_payload()
    seg.seal()
    return True


def hold_to_mss(seg: Segment, mss: int) -> bool:
    """Let a SYN-ACK announce an MSS of `mss` at most; True if that changed the segment, which is sealed then."""
    options = bytearray(seg.options())
    if not lower_mss(options, mss):
        return False
    seg.buf[seg.tcp_off + 20 : seg.data_off] = options
    seg.seal()
    return True


def refuses_syn(seg: Segment, snd_nxt_seq: int) -> bool:
    """Whether a segment of our TCP refuses a SYN from a port that it knows nothing of (RFC 9293 section 3.10.7.1), and
    is none of the connection that was there before, whose next sequence number was `snd_nxt_seq`."""
    return bool(seg.flags & RST and seg.flags & ACK) and seg.seq == 0 and snd_nxt_seq != 0
