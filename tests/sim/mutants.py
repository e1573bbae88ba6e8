"""Bugs planted into the core, each as a patch of one name: what the simulator must be able to see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nfq_failover.core import restart
from nfq_failover.core.events import PacketQueued, Verdict
from nfq_failover.core.gate import client_stream
from nfq_failover.core.gate import connection as primary_connection
from nfq_failover.core.gate.connection import PrimaryConnection
from nfq_failover.core.gate.table import PrimarySide
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.membership import Do, Membership
from nfq_failover.core.pair.roles import Input, State
from nfq_failover.core.shadow import checkpoint as memory
from nfq_failover.core.shadow import connection as backup_connection
from nfq_failover.core.shadow import takeover
from nfq_failover.core.shadow.connection import BackupConnection
from nfq_failover.core.shadow.recovery import Recovery
from nfq_failover.core.shadow.table import BackupSide
from nfq_failover.core.tcp import translation as replica_map
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.translation import ReplicaMap
from nfq_failover.wire.records import Confirm
from nfq_failover.wire.segment import Segment

Patch = tuple[Any, str, Any]  # where, which name, what instead


@dataclass(frozen=True)
class Mutant:
    """One bug. `complaint`: a part of what the checkers say about it. `kinds`: seeds of these are tried."""

    name: str
    complaint: str
    patches: tuple[Patch, ...]
    kinds: Iterable[str] = ("crash-primary",)


def _ungated(self: PrimaryConnection, event: PacketQueued, seg: Segment, out: Outbox, *_: object) -> None:
    del self, seg
    out.accept(event.queue, event.packet_id)


def _unclamped(self: PrimaryConnection, event: PacketQueued, seg: Segment, out: Outbox, ack: int, *_: object) -> None:
    self._note_sent(ack, ack + (seg.wnd << self.wscale))
    out.accept(event.queue, event.packet_id)


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


class _AsInts(SeqSpace):
    """Sequence numbers that are compared as if they never wrapped."""

    def offset(self, seq: int) -> int:
        return seq - self.base


class _Boundless(Journal):
    """A log without a limit."""

    def __init__(self, limit: int, start: int = 0) -> None:
        del limit
        super().__init__(1 << 40, start)


def _beside(connection: BackupConnection, out: Outbox, offset: int, data: bytes, flags: int, now: float) -> None:
    """Data goes one byte beyond where it belongs."""
    _send(connection, out, offset + bool(data), data, flags, now)


_send = takeover.send


def _link_checked(self: Membership, ok: bool, detail: str) -> None:
    """Takes over at once: the fence may do its work later."""
    _checked(self, ok, detail)
    if self.state is State.FENCING:
        self._go(Input.FENCED, "not waited for")


_checked = Membership.link_checked


def _fenced(self: Membership, ok: bool, detail: str) -> None:
    """Takes a fence that has failed for one that has worked."""
    del ok
    _fence_finished(self, True, detail)


_fence_finished = Membership.fenced


def _enter(self: Membership, before: State, after: State) -> None:
    """Serves without having stored the epoch."""
    _entered(self, before, after)
    if after in (State.STORING, State.CLAIMING):
        self.actions.remove(Do.STORE)
        self.served = True
        self._go(Input.STORED, "not stored")


_entered = Membership._enter


def _hears_silence(self: Membership, monitor: Any, now: float) -> None:
    """Lets everything go as soon as the backup is silent, though it may still take over."""
    del monitor, now
    if self.state is State.BACKUP_LOST:
        self._go(Input.BACKUP_HARMLESS, "released at once")


def _twice(self: Outbox, queue: Any, packet_id: int, packet: bytearray | None = None) -> None:
    self.effects.append(Verdict(queue, packet_id, True, packet))
    self.effects.append(Verdict(queue, packet_id, True, packet))


def _never(self: Outbox, queue: Any, packet_id: int, why: str) -> None:
    del queue, packet_id
    self.counters[why] += 1


def _keeps_all(self: BackupSide, connection: BackupConnection) -> None:
    """Forgets the flow, not the number."""
    if self.flows.get(connection.flow) is connection:
        del self.flows[connection.flow]


def _nothing(*_: object, **__: object) -> None:
    return None


def _does_not_ask(*arguments: Any) -> BackupConnection:
    """Believes the record's offsets instead of asking our TCP."""
    made = _unpack(*arguments)
    made.resync = False
    return made


_unpack = memory.unpack


CRASHES = ("crash-primary", "effect-primary")
DOUBLE = ("effect-takeover", "rejoin")
CUTS = ("cut", "partition", "flapping")

MUTANTS = (
    Mutant("skip the gate", "the backup has", ((PrimaryConnection, "outbound", _ungated),)),
    Mutant("skip the clamp", "the backup has", ((PrimaryConnection, "_send_changed", _unclamped),)),
    Mutant("forget the SACK edge", "SACK", ((PrimaryConnection, "_covered", lambda self, block: True),)),
    Mutant(
        "forget the window clamp",
        "the right edge moves left",
        ((PrimaryConnection, "edge_limit", property(lambda self: self.edge_kernel)),),
    ),
    Mutant(
        "wrong window after a takeover",
        "the right edge moves left",
        ((ReplicaMap, "seen_window", lambda self, ack, edge: max(edge - ack, 0) >> (self.wscale + 3)),),
    ),
    Mutant("skip the TSval translation", "TSval falls", ((ReplicaMap, "seen_tsval", lambda self, tsval: tsval),)),
    Mutant("skip the TSecr translation", "did not end well", ((ReplicaMap, "own_tsecr", lambda self, tsecr: tsecr),)),
    Mutant(
        "wrap compared as int, on the primary",
        "",
        ((client_stream, "SeqSpace", _AsInts), (primary_connection, "lt", lambda a, b: a < b)),
    ),
    Mutant(
        "wrap compared as int, on the backup",
        "",
        ((backup_connection, "SeqSpace", _AsInts), (replica_map, "SeqSpace", _AsInts)),
    ),
    Mutant("confirm before it is logged", "the backup has", ((BackupConnection, "confirm", _hasty),)),
    Mutant("log wrong bytes", "read wrong bytes", ((BackupConnection, "store", _forgetful),)),
    Mutant("never deliver again", "did not end well", ((BackupConnection, "redeliver", _nothing),), (*CRASHES, "none")),
    Mutant(
        "never resend at a takeover",
        "did not end well",
        ((takeover, "resend", lambda *_: 1), (Recovery, "begin", _nothing)),
        CRASHES,
    ),
    Mutant("resend beside the place", "wrong bytes", ((takeover, "send", _beside),), CRASHES),
    Mutant(
        "never continue a connection",
        "resets a living, promised connection",
        ((Membership, "may_continue", lambda self, now: False),),
    ),
    Mutant("take over before the fence", "two owners", ((Membership, "link_checked", _link_checked),), CUTS),
    Mutant("believe a failed fence", "two owners", ((Membership, "fenced", _fenced),), CUTS),
    Mutant("take over without storing", "epoch", ((Membership, "_enter", _enter),), DOUBLE),
    Mutant(
        "release before the fence",
        "goes on: acknowledged",
        ((Membership, "_lost_backup", _hears_silence),),
        ("clock", "cut"),
    ),
    Mutant(
        "keep the records of an old generation",
        "",
        ((BackupSide, "clear", _nothing), (BackupSide, "invalidate", _nothing)),
        (*CUTS, "kill-primary", "rejoin"),
    ),
    Mutant(
        "continue too late",
        "goes on: acknowledged",
        ((Membership, "may_continue", lambda self, now: not self.invalid),),
        ("pause", "clock"),
    ),
    Mutant(
        "a daemon that goes on whatever its record says",
        "",
        ((memory.Recollection, "allows", lambda self, epoch, served: served),),
        ("kill-any",),
    ),
    Mutant("believe the record's offsets", "", ((restart, "unpack", _does_not_ask),), ("kill-survivor",)),
    Mutant("forget the clock at a restart", "", ((ReplicaMap, "recall", _nothing),), ("kill-survivor",)),
    Mutant(
        "let strangers speak at once",
        "",
        ((PrimarySide, "strangers", property(lambda self: True, _nothing)),),
        ("kill-any", "kill-survivor"),
    ),
    Mutant("two verdicts", "a second verdict", ((Outbox, "accept", _twice),)),
    Mutant("no verdict", "no verdict", ((Outbox, "drop", _never),)),
    Mutant("a log without a limit", "beyond the bound", ((backup_connection, "Journal", _Boundless),), CRASHES),
    Mutant("a table that only grows", "beyond the bound", ((BackupSide, "forget", _keeps_all),)),
)

# A seed and kind that have caught it, to be tried first: it saves time, and is no more than that.
HINTS: dict[str, tuple[int, str]] = {
    "skip the clamp": (45, "crash-primary"),
    "forget the SACK edge": (199, "crash-primary"),
    "forget the window clamp": (134, "crash-primary"),
    "wrong window after a takeover": (67, "crash-primary"),
    "skip the TSval translation": (199, "crash-primary"),
    "confirm before it is logged": (112, "crash-primary"),
    "log wrong bytes": (89, "crash-primary"),
    "never deliver again": (53, "effect-primary"),
    "never resend at a takeover": (331, "crash-primary"),
    "take over before the fence": (27, "cut"),
    "believe a failed fence": (115, "cut"),
    "take over without storing": (12, "effect-takeover"),
    "keep the records of an old generation": (19, "flapping"),
    "continue too late": (1348, "pause"),
    "believe the record's offsets": (126, "kill-survivor"),
    "forget the clock at a restart": (632, "kill-survivor"),
    "release before the fence": (1033, "clock"),
    "a daemon that goes on whatever its record says": (39, "kill-any"),
    "a log without a limit": (133, "crash-primary"),
    "let strangers speak at once": (3603, "kill-any"),
}
