"""Hands the peer's records to the side that they are for. A record that a role does not take is let go: it is an old
one, and what matters is repeated."""

from __future__ import annotations

from nfq_failover.core.gate.table import PrimarySide
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.acceptance import on_sent
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.wire.records import (
    AckAsked,
    BytesAsked,
    BytesSent,
    Close,
    Closed,
    Confirm,
    Data,
    Digest,
    DigestSeen,
    End,
    EndAsked,
    HandedOver,
    HandOver,
    Missing,
    Open,
    Opened,
    Progress,
    Record,
    SentAsked,
    SentUpTo,
    Unprotected,
    UnprotectedSeen,
)


def to_primary(record: Record, primary: PrimarySide, out: Outbox, now: float) -> None:
    """A record for a host that serves."""
    if isinstance(record, Confirm):
        primary.on_confirm(record, now)
    elif isinstance(record, Opened):
        primary.on_opened(record, now)
    elif isinstance(record, Missing):
        primary.on_missing(record, now)
    elif isinstance(record, Closed | UnprotectedSeen):
        primary.on_told(record)
    elif isinstance(record, Unprotected):
        primary.on_unprotected(record, now)
        out.record(UnprotectedSeen(record.conn))
    elif isinstance(record, End):
        primary.ends.on_end(record, now)
    elif isinstance(record, DigestSeen):
        primary.digests.on_seen(record, now)
    elif isinstance(record, BytesAsked):
        primary.digests.on_asked(record)
    elif isinstance(record, SentAsked):
        primary.on_sent_asked(record)
    elif isinstance(record, AckAsked):
        primary.on_ack_asked(record)
    elif isinstance(record, HandedOver):
        primary.handovers.on_handed(record, now)


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
