"""Bugs planted into the shadow: what a backup stores and confirms, its translation, the takeover, its checkpoint."""

from __future__ import annotations

from typing import Any

from nfq_failover.core import restart
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow import checkpoint, takeover
from nfq_failover.core.shadow import connection as shadow_connection
from nfq_failover.core.shadow.backoff import BackoffRevert
from nfq_failover.core.shadow.connection import BackupConnection
from nfq_failover.core.shadow.recovery import Recovery
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.core.tcp import translation
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.translation import ReplicaMap
from nfq_failover.wire.records import Confirm

from .gate import UnwrappedSeqSpace
from .mutant import Mutant, Patch, nothing

CRASHES = ("crash-primary", "effect-primary")
CUTS = ("cut", "partition", "flapping")


def _forgetful(self: BackupConnection, offset: int, data: bytes, fin: bool, out: Outbox) -> None:
    """Logs zeros instead of what it was given, once there is something."""
    _store(self, offset, data, fin, out)
    if self.journal.end > 3000:
        self.journal._data[-1] = bytes(len(self.journal._data[-1]))


_store = BackupConnection.store


def _hasty(self: BackupConnection) -> Confirm:
    """Confirms what lies beyond a hole, too."""
    told = _confirm(self)
    right = max((right for _, right in self.journal.ranges(100)), default=self.cum)
    return Confirm(told.conn, self.client.seq(right), told.edge, (), told.established)


_confirm = BackupConnection.confirm


class _Boundless(Journal):
    """A log without a limit."""

    def __init__(self, limit: int, start: int = 0) -> None:
        del limit
        super().__init__(1 << 40, start)


def _beside(connection: BackupConnection, out: Outbox, offset: int, data: bytes, flags: int, now: float) -> None:
    """Data goes one byte beyond where it belongs."""
    _send(connection, out, offset + bool(data), data, flags, now)


_send = takeover.send


def _keeps_all(self: BackupSide, connection: BackupConnection) -> None:
    """Forgets the flow, not the number."""
    if self.flows.get(connection.flow) is connection:
        del self.flows[connection.flow]


def _does_not_ask(*arguments: Any) -> BackupConnection:
    """Believes the record's offsets instead of asking our TCP."""
    made = _unpack(*arguments)
    made.resync = False
    return made


_unpack = checkpoint.unpack


def _quote_more(self: BackoffRevert, connections: list[BackupConnection], now: float) -> None:
    """Quotes a byte that nobody has told the client to be here."""
    for connection in connections:
        connection.ack_sent += 1
    _begin(self, connections, now)


_begin = BackoffRevert.begin


SHADOW = (
    Mutant(
        "wrong window after a takeover",
        "the right edge moves left",
        (Patch(ReplicaMap, "seen_window", lambda self, ack, edge: max(edge - ack, 0) >> (self.wscale + 3)),),
        hint=(67, "crash-primary"),
    ),
    Mutant(
        "skip the TSval translation",
        "TSval falls",
        (Patch(ReplicaMap, "seen_tsval", lambda self, tsval: tsval),),
        hint=(199, "crash-primary"),
    ),
    Mutant(
        "skip the TSecr translation",
        "did not end well",
        (Patch(ReplicaMap, "own_tsecr", lambda self, tsecr: tsecr),),
    ),
    Mutant(
        "wrap compared as int, in the shadow",
        "",
        (
            Patch(shadow_connection, "SeqSpace", UnwrappedSeqSpace),
            Patch(translation, "SeqSpace", UnwrappedSeqSpace),
        ),
    ),
    Mutant(
        "confirm before it is logged",
        "the backup has",
        (Patch(BackupConnection, "confirm", _hasty),),
        hint=(112, "crash-primary"),
    ),
    Mutant(
        "log wrong bytes",
        "read wrong bytes",
        (Patch(BackupConnection, "store", _forgetful),),
        hint=(89, "crash-primary"),
    ),
    Mutant(
        "never deliver again",
        "did not end well",
        (Patch(BackupConnection, "redeliver", nothing),),
        (*CRASHES, "none"),
        (53, "effect-primary"),
    ),
    Mutant(
        "never resend at a takeover",
        "did not end well",
        (Patch(takeover, "resend", lambda *_: 1), Patch(Recovery, "begin", nothing)),
        CRASHES,
        (331, "crash-primary"),
    ),
    Mutant("resend beside the place", "wrong bytes", (Patch(takeover, "send", _beside),), CRASHES),
    Mutant(
        "keep the records of an old generation",
        "",
        (Patch(BackupSide, "clear", nothing), Patch(BackupSide, "invalidate", nothing)),
        (*CUTS, "kill-primary", "rejoin"),
        (19, "flapping"),
    ),
    Mutant(
        "believe the record's offsets",
        "",
        (Patch(restart, "unpack", _does_not_ask),),
        ("kill-survivor",),
        (126, "kill-survivor"),
    ),
    Mutant(
        "forget the clock at a restart",
        "",
        (Patch(ReplicaMap, "recall", nothing),),
        ("kill-survivor",),
        (632, "kill-survivor"),
    ),
    Mutant(
        "a log without a limit",
        "beyond the bound",
        (Patch(shadow_connection, "Journal", _Boundless),),
        CRASHES,
        (133, "crash-primary"),
    ),
    Mutant("a table that only grows", "beyond the bound", (Patch(BackupSide, "forget", _keeps_all),)),
    Mutant(
        "quote another byte",
        "the client has been told",
        (Patch(BackoffRevert, "begin", _quote_more),),
        ("fence-cut", "fence-crash"),
        (1, "fence-crash"),
    ),
)
