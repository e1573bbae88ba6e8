"""Bugs planted into the shadow: what a backup stores and confirms, its translation, the takeover, its checkpoint."""

from __future__ import annotations

from typing import Any

from nfq_failover.core import restart
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.injected import Injected
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow import checkpoint, connection, inward, output
from nfq_failover.core.shadow.backoff import BackoffRevert
from nfq_failover.core.shadow.connection import ShadowConnection
from nfq_failover.core.shadow.header import ClientHeader
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.shadow.opening import Openings
from nfq_failover.core.shadow.order import Order
from nfq_failover.core.shadow.recovery import Recovery
from nfq_failover.core.shadow.resending import AckWait, Resending
from nfq_failover.core.shadow.resets import Resets, Told, send_reset
from nfq_failover.core.shadow.strays import Strays
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.shadow.wholeness import Wholeness
from nfq_failover.core.tcp import translation
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.wire.records import Confirm
from nfq_failover.wire.segment import Segment

from .gate import UnwrappedSeqSpace
from .mutant import Mutant, Patch, nothing

CRASHES = ("crash-primary", "effect-primary")
CUTS = ("cut", "partition", "flapping")


def _taken_unseen(self: Wholeness, now: float) -> None:
    self._whole("an operator says so", now)


def _forgetful(self: Inward, offset: int, data: bytes, fin: bool, out: Outbox) -> None:
    """Logs zeros instead of what it was given, once there is something."""
    _store(self, offset, data, fin, out)
    if self.inbound.end > 3000:
        self.inbound._data[-1] = bytes(len(self.inbound._data[-1]))


_store = Inward.store


def _hasty(self: Inward, conn: int) -> Confirm:
    """Confirms what lies beyond a hole, too."""
    told = _confirm(self, conn)
    right = max((right for _, right in self.inbound.ranges(100)), default=self.held)
    return Confirm(told.conn, self.client.seq(right), told.rcv_edge, (), told.established)


_confirm = Inward.confirm


def _unfed(self: Inward, mapping: Translation, event: PacketQueued, seg: Segment, ack: int, out: Outbox) -> None:
    """What the client sends goes nowhere once the output differs."""
    if self.output.discarded:
        out.drop(event.queue, event.packet_id, "unfed")
    else:
        _deliver(self, mapping, event, seg, ack, out)


def _unfed_again(self: Inward, mapping: Translation, out: Outbox, *, probe: bool = False) -> None:
    """As `_unfed`, for what the replica's TCP has not taken."""
    if not self.output.discarded:
        _redeliver(self, mapping, out, probe=probe)


def _once(self: Resets, told: Told, now: float) -> None:
    """Tells a client once, and never again."""
    del now
    for seq in told.reset_places():
        send_reset(self.out, told.flow, seq, None if told.perhaps_opening else told.reset_ack())


_deliver, _redeliver = Inward.deliver, Inward.redeliver


class _Boundless(Journal):
    """A log without a limit."""

    def __init__(self, limit: int, start: int = 0) -> None:
        del limit
        super().__init__(1 << 40, start)


def _beside(
    self: Resending, mapping: Translation, out: Outbox, offset: int, data: bytes, flags: int, now: float
) -> None:
    """Data goes one byte beyond where it belongs."""
    _send(self, mapping, out, offset + bool(data), data, flags, now)


_send = Resending.send


def _keeps_all(self: ShadowTable, connection: ShadowConnection) -> None:
    """Forgets the flow, not the number."""
    if self.flows.get(connection.flow) is connection:
        del self.flows[connection.flow]


def _does_not_ask(*arguments: Any) -> ShadowConnection:
    """Believes the checkpoint's offsets instead of asking our TCP."""
    made = _unpack(*arguments)
    made.resync.give_up()
    return made


_unpack = checkpoint.unpack


def _quote_more(self: BackoffRevert, connections: list[ShadowConnection], now: float) -> None:
    """Quotes a byte that nobody has told the client to be here."""
    for each in connections:
        each.resending.told_ack += 1
    _begin(self, connections, now)


_begin = BackoffRevert.begin


def _at_once(self: AckWait) -> None:
    """Waits no time for the client's answer."""
    self.next_s = 0.0


SHADOW = (
    Mutant(
        "build segments that our own interface does not take",
        "does not fit",
        (Patch(ClientHeader, "fit", nothing),),
        ("crash-primary",),
        (168, "crash-primary"),
    ),
    Mutant(
        "wrong window after a takeover",
        "the right edge moves left",
        (Patch(Translation, "seen_window", lambda self, ack, edge: max(edge - ack, 0) >> (self.wscale + 3)),),
        hint=(67, "crash-primary"),
    ),
    Mutant(
        "skip the TSval translation",
        "TSval falls",
        (Patch(Translation, "seen_tsval", lambda self, tsval: tsval),),
        hint=(199, "crash-primary"),
    ),
    Mutant(
        "skip the TSecr translation",
        "did not end well",
        (Patch(Translation, "own_tsecr", lambda self, tsecr: tsecr),),
    ),
    Mutant(
        "wrap compared as int, in the shadow",
        "",
        (
            Patch(connection, "SeqSpace", UnwrappedSeqSpace),
            Patch(inward, "SeqSpace", UnwrappedSeqSpace),
            Patch(translation, "SeqSpace", UnwrappedSeqSpace),
        ),
    ),
    Mutant(
        "confirm before it is logged",
        "the backup has",
        (Patch(Inward, "confirm", _hasty),),
        hint=(112, "crash-primary"),
    ),
    Mutant(
        "log wrong bytes",
        "read wrong bytes",
        (Patch(Inward, "store", _forgetful),),
        hint=(10, "crash-primary"),
    ),
    Mutant(
        "keep the SYN of a new connection from the gate",
        "has not remembered a SYN",
        (Patch(ShadowTable, "gives_way", lambda *_: False),),
        kinds=("crash-primary", "effect-primary"),
    ),
    Mutant(
        "never deliver again",
        "did not end well",
        (Patch(Inward, "redeliver", nothing),),
        (*CRASHES, "none"),
        (15, "effect-primary"),
    ),
    Mutant(
        "never resend at a takeover",
        "quotes 0, the client has been told",
        (Patch(Resending, "resend", lambda *_: 1), Patch(Recovery, "begin", nothing)),
        CRASHES,
        (331, "crash-primary"),
    ),
    Mutant(
        "trust the mark alone",
        "",
        (Patch(Injected, "knows", lambda self, packet: False),),
        CRASHES,
    ),
    Mutant(
        "let out what newer segments have overtaken",
        "falls from",
        (Patch(Resending, "renew", lambda *_: False),),
        CRASHES,
        (52000008, "crash-primary"),
    ),
    Mutant(
        "resend beside the place", "wrong bytes", (Patch(Resending, "send", _beside),), CRASHES, (6, "crash-primary")
    ),
    Mutant(
        "keep the records of an old generation",
        "",
        (Patch(ShadowTable, "clear", nothing), Patch(ShadowTable, "invalidate", nothing)),
        (*CUTS, "kill-primary", "rejoin"),
        (19, "flapping"),
    ),
    Mutant(
        "believe the checkpoint's offsets",
        "",
        (Patch(restart, "unpack", _does_not_ask),),
        ("kill-survivor",),
        (126, "kill-survivor"),
    ),
    Mutant(
        "forget the clock at a restart",
        "",
        (Patch(Translation, "restore", nothing),),
        ("kill-survivor",),
        (632, "kill-survivor"),
    ),
    Mutant(
        "a log without a limit",
        "beyond the bound",
        (Patch(inward, "Journal", _Boundless), Patch(output, "Journal", _Boundless)),
        CRASHES,
        (133, "crash-primary"),
    ),
    Mutant("a table that only grows", "beyond the bound", (Patch(ShadowTable, "forget", _keeps_all),)),
    Mutant(
        "repeat at once, again and again",
        "stays in the past",
        (Patch(AckWait, "in_vain", _at_once),),
        CRASHES,
    ),
    Mutant(
        "input not fed after a divergence",
        "were acknowledged, b's application has",
        (Patch(Inward, "deliver", _unfed), Patch(Inward, "redeliver", _unfed_again)),
        ("lopsided-crash",),
        (6, "lopsided-crash"),
    ),
    Mutant(
        "speak out of turn",
        "before it could have been answered",
        (Patch(Order, "heard", nothing),),
        ("turns",),
        (2, "turns"),
    ),
    Mutant(
        "speak out of turn with what the primary has sent",
        "before it could have been answered",
        (Patch(Holding, "on_heard", nothing),),
        ("turns",),
        (2, "turns"),
    ),
    Mutant(
        "not open a connection late whose port was not free",
        "was only slow, and has missed input",
        (Patch(Openings, "waits", lambda *_: False),),
        ("replica-hangs",),
        (42000053, "replica-hangs"),
    ),
    Mutant(
        "reset sent once",
        "has not heard that its connection is over",
        (Patch(Resets, "tell", _once),),
        ("lopsided-crash",),
        (2, "lopsided-crash"),
    ),
    Mutant(
        "a client beyond the edge that is known is not asked where it is",
        "has not heard that its connection is over",
        (Patch(Resets, "_ask", nothing),),
        ("lopsided-crash",),
        (62, "lopsided-crash"),
    ),
    Mutant(
        "no word of connections without a replica",
        "has not heard that its connection is over",
        (Patch(Strays, "on_served", nothing),),
        ("lopsided-crash",),
        (23, "lopsided-crash"),
    ),
    Mutant(
        "quote another byte",
        "the client has been told",
        (Patch(BackoffRevert, "begin", _quote_more),),
        ("fence-cut", "fence-crash"),
        (12, "fence-cut"),
    ),
    Mutant(
        "an application that was started anew is not noticed",
        "application has forgotten others",
        (Patch(Wholeness, "begun", lambda *_: False),),
        ("app-crash",),
        (112, "app-crash"),
    ),
    Mutant(
        "what an operator says is not about a start of the replica that is seen a moment later",
        "is not protected, though all is well",
        (Patch(Wholeness, "said", _taken_unseen),),
        ("crash-primary",),
        (2, "crash-primary"),
    ),
    Mutant(
        "what an operator says on the backup is not about a start of the server that is seen a moment later",
        "is not protected, though all is well",
        (Patch(MissedInput, "on_believed", nothing),),
        ("crash-primary",),
        (2, "crash-primary"),
    ),
)
