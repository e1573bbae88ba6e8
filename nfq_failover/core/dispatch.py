"""Hands the peer's records to the shadow. A record that it does not take is let go: it is an old one, and what matters
is repeated."""

from __future__ import annotations

from nfq_failover.core.shadow.acceptance import on_sent
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.wire.records import (
    BytesSent,
    Close,
    Data,
    Digest,
    EndAsked,
    HandOver,
    Open,
    Progress,
    Record,
    SentUpTo,
    Unprotected,
    UnprotectedSeen,
)


def to_backup(record: Record, backup: BackupSide, now: float) -> None:
    """A record for a host that shadows."""
    if isinstance(record, Progress):
        backup.on_progress(record, now)
    elif isinstance(record, Open):
        backup.on_open(record, now)
    elif isinstance(record, Data):
        backup.on_data(record, now)
    elif isinstance(record, Close):
        backup.on_close(record, now)
    elif isinstance(record, Unprotected):
        backup.on_unprotected(record)
    elif isinstance(record, UnprotectedSeen):
        backup.on_told(record)
    elif isinstance(record, EndAsked):
        backup.on_end_asked(record, now)
    elif isinstance(record, Digest):
        backup.divergence.on_digest(record, now)
    elif isinstance(record, BytesSent):
        backup.divergence.on_bytes(record, now)
    elif isinstance(record, HandOver):
        backup.handed.on_hand_over(record, now)
    elif isinstance(record, SentUpTo) and record.conn in backup.numbers:
        on_sent(backup.numbers[record.conn], record)
