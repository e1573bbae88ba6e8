"""Data of our server that waits for a replica that is behind.

A client that gets an answer asks for more, and so sets the pace, also for the replica. While a connection is slowed
(core/gate/pace.py), a segment with data leaves when the backup has confirmed what it acknowledges and the replica has
sent what precedes it: never further, so that neither waits for the other. It is dropped then and built anew later, from
the bytes that are kept here; our TCP takes it for sent.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from nfq_failover.core.gate.ack_gate import AckGate
from nfq_failover.core.outbox import Outbox
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff
from nfq_failover.wire.tcp_options import SynOptions

HELD_BYTES: Final = 256 << 10  # per connection; what finds no room our TCP sends again
HELD_PIECES: Final = 256
TIMESTAMPS_BYTES: Final = 12


def longest_data(opening: Open) -> int:
    """How many bytes a segment that we build may have, so that it fits the client and our own interface."""
    offered = SynOptions.parse(opening.syn_options).mss
    fits = min(offered, opening.mss) if opening.mss else offered  # what our TCP takes, its interface takes, too
    return fits - (TIMESTAMPS_BYTES if opening.tsval is not None else 0)


class HeldData:
    """What one client still has to get. `size`: how many bytes."""

    __slots__ = ("_acks", "_mss", "_pieces", "_stop", "size")

    def __init__(self, opening: Open, acks: AckGate) -> None:
        self._acks = acks
        self._mss = longest_data(opening)
        self._pieces: deque[tuple[int, int, bytes]] = deque()  # ack (an offset), sequence number, data
        self._stop = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def must_wait(self, seg: Segment, ack: int, sent_seq: int) -> bool:
        """Whether a segment of our TCP, which acknowledges everything before `ack`, may not leave yet. `sent_seq`: the
        end of what the replica has sent."""
        if self._pieces:
            return diff(seg.seq_end, self._pieces[0][1]) > 0  # else the client has it already
        return not self._due(ack, seg.seq, sent_seq)

    def _due(self, ack: int, seq: int, sent_seq: int) -> bool:
        return ack <= self._acks.confirmed and diff(sent_seq, seq) >= 0

    def keep(self, seg: Segment, ack: int, room: int) -> bool:
        """Keep a segment's data, unless it is there. False: there is no room, of which `room` bytes are left for all
        connections; our TCP has to send it again."""
        data, seq = seg.payload(), seg.seq
        if self._pieces and diff(self._stop, seq) > 0:
            data, seq = data[diff(self._stop, seq) :], self._stop
        if not data:
            return True
        if self._pieces and seq != self._stop:
            return False
        if len(data) > min(HELD_BYTES - self.size, room) or len(self._pieces) >= HELD_PIECES:
            return False
        self._pieces.append((ack, seq, data))
        self._stop = (seq + len(data)) & MASK
        self.size += len(data)
        return True

    def release(self, sent_seq: int, out: Outbox) -> None:
        """Send what need not wait any more."""
        while self._pieces and self._due(*self._pieces[0][:2], sent_seq):  # Ends: each turn takes one out
            self._send_first(out)

    def release_all(self, out: Outbox) -> None:
        """Send everything."""
        while self._pieces:  # Ends: each turn takes one out
            self._send_first(out)

    def _send_first(self, out: Outbox) -> None:
        _, seq, data = self._pieces.popleft()
        self.size -= len(data)
        for at in range(0, len(data), self._mss):
            self._acks.send_data(out, (seq + at) & MASK, data[at : at + self._mss])

    def discard(self) -> None:
        """Forget everything: the client gets nothing more from us."""
        self._pieces.clear()
        self.size = 0
