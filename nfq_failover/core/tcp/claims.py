"""What a client's segment claims, and when that can't be believed, whoever looks at it."""

from __future__ import annotations

from typing import Final

from nfq_failover.core.tcp.seqspace import PAWS_IDLE_S
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import diff

PAWS_SLACK: Final = 600_000
"""A timestamp that is older than the newest by this much is refused (RFC 7323 section 5): ten minutes of a clock in
milliseconds; of one in microseconds longer than a copy may be unread. A segment that was only reordered is never that
old."""
TWO_VERSIONS: Final = "the client has sent different bytes for the same place"
URGENT: Final = "the client sends urgent data"


def outdated(seg: Segment, newest: int, age_s: float) -> bool:
    """Whether PAWS refuses the segment: its timestamp is older than `newest`, which was seen `age_s` ago."""
    return bool(seg.ts_off) and diff(seg.tsval, newest) < -PAWS_SLACK and age_s <= PAWS_IDLE_S
