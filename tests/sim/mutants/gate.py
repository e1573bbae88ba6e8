"""Bugs planted into the gate: what leaves for the client, and what the backup must have before it does."""

from __future__ import annotations

from typing import Any

from nfq_failover.core.events import PacketQueued, Verdict
from nfq_failover.core.gate import opening, own_tcp
from nfq_failover.core.gate.ack_gate import AckGate
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.gate.digests import GateDigests
from nfq_failover.core.gate.distance import Distance
from nfq_failover.core.gate.end_gate import EndGate, Judgement
from nfq_failover.core.gate.ends import GateEnds
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.gate.opening import Opening
from nfq_failover.core.gate.pace import Pacing
from nfq_failover.core.leftovers import LeftoverSweep
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.connection import ShadowConnection
from nfq_failover.core.shadow.wholeness import Wholeness
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.wire.segment import Segment

from .mutant import Mutant, Patch, nothing

APP = ("app-primary", "app-crash")
LOPSIDED = ("lopsided-hangs",)
HANGS = ("replica-hangs", "replica-hangs-crash")


def _ungated(self: AckGate, event: PacketQueued, seg: Segment, ack: int, out: Outbox, *_: object) -> None:
    del self, seg, ack
    out.accept(event.queue, event.packet_id)


def _unclamped(self: AckGate, event: PacketQueued, seg: Segment, out: Outbox, ack: int, *_: object) -> None:
    self._note_told(ack, ack + (seg.wnd << self._own.wscale))
    out.accept(event.queue, event.packet_id)


class UnwrappedSeqSpace(SeqSpace):
    """Sequence numbers that are compared as if they never wrapped."""

    def offset(self, seq: int) -> int:
        return seq - self.base


def _all_options(self: Opening, without: frozenset[int], mss: int | None) -> None:
    del without
    _fit_backup(self, frozenset(), mss)


_fit_backup = Opening.fit_backup


def _twice(self: Outbox, queue: Any, packet_id: int, packet: bytearray | None = None) -> None:
    self.effects.append(Verdict(queue, packet_id, True, packet))
    self.effects.append(Verdict(queue, packet_id, True, packet))


def _never(self: Outbox, queue: Any, packet_id: int, why: str) -> None:
    del queue, packet_id
    self.counters[why] += 1


def _no_mover(self: EndGate, *arguments: Any) -> Judgement:
    """Takes the application that has failed for the one that is right."""
    found = _judge(self, *arguments)
    return Judgement.REPLICA_FAILED if found is Judgement.APPLICATION_FAILED else found


_judge = EndGate.judge


def _sent_gated(self: GateDigests, connection: GatedConnection, seg: Segment, now: float) -> None:
    if connection.gated:
        _sent(self, connection, seg, now)


_sent = GateDigests.sent


GATE = (
    Mutant("skip the gate", "the backup has", (Patch(AckGate, "outbound", _ungated),)),
    Mutant(
        "skip the clamp",
        "the backup has",
        (Patch(AckGate, "_send_changed", _unclamped),),
        hint=(45, "crash-primary"),
    ),
    Mutant(
        "forget the SACK edge",
        "SACK",
        (Patch(AckGate, "_covered", lambda self, block: True),),
        hint=(199, "crash-primary"),
    ),
    Mutant(
        "forget the window clamp",
        "the right edge moves left",
        (Patch(AckGate, "edge_limit", property(lambda self: self._own.rcv_edge)),),
        hint=(134, "crash-primary"),
    ),
    Mutant(
        "wrap compared as int, in the gate",
        "",
        (
            Patch(own_tcp, "SeqSpace", UnwrappedSeqSpace),
            Patch(own_tcp, "lt", lambda a, b: a < b),
        ),
    ),
    Mutant(
        "let leftover connections speak at once",
        "",
        (
            Patch(Opening, "adopts_unknown", property(lambda self: True, nothing)),
            Patch(LeftoverSweep, "speaks", lambda *_: False),
        ),
        ("kill-any", "kill-survivor"),
        (32, "kill-any"),
    ),
    Mutant(
        "let clients send what the backup's interface does not take",
        "did not end well",
        (Patch(opening, "hold_to_mss", lambda seg, mss: False),),
        ("crash-primary",),
        (2, "crash-primary"),
    ),
    Mutant(
        "grant what the backup's TCP does not",
        "",
        (Patch(Opening, "fit_backup", _all_options),),
        ("crash-primary",),
        (47, "crash-primary"),
    ),
    Mutant("two verdicts", "a second verdict", (Patch(Outbox, "accept", _twice),)),
    Mutant("no verdict", "no verdict", (Patch(Outbox, "drop", _never),)),
    Mutant(
        "release the held end without asking",
        "FIN at the wrong place",
        (Patch(GateEnds, "outbound", lambda *_: False),),
        APP,
        (2, "app-primary"),
    ),
    Mutant(
        "let the end of a failed application go",
        "FIN at the wrong place",
        (Patch(EndGate, "judge", _no_mover),),
        APP,
        (2, "app-primary"),
    ),
    Mutant(
        "take a server that hangs for one that goes on",
        "resets a living, promised connection",
        (Patch(GateEnds, "_alive", lambda *_: True),),
        APP,
        (7, "app-crash"),
    ),
    Mutant(
        "move for one end to a replica that has missed input",
        "moves to one that has missed input",
        (Patch(GateEnds, "_all_ended", lambda *_: True),),
        ("lopsided",),
        (1100, "lopsided"),
    ),
    Mutant(
        "wait for a replica for ever",
        "has stood still",
        (Patch(Pacing, "_let_go_worst", nothing),),
        ("replica-hangs",),
        (3, "replica-hangs"),
    ),
    Mutant(
        "take every replica for one that keeps up",
        "is called protected, its replica is",
        (Patch(Pacing, "_judge", lambda *_: ""),),
        ("replica-hangs", "outrun"),
        (9, "replica-hangs"),
    ),
    Mutant(
        "protect again what was not compared meanwhile",
        "is called protected again, though",
        (
            Patch(GateDigests, "sent", _sent_gated),
            Patch(GateDigests, "agrees", lambda *_: True),
            Patch(ShadowConnection, "was_late", property(lambda self: False)),
        ),
        LOPSIDED,
        (38, "lopsided-hangs"),
    ),
    Mutant(
        "forget what was let go as soon as it has ended",
        "was only slow, and has missed input",
        (Patch(GatedConnection, "lacks_still", lambda *_: False),),
        ("replica-hangs",),
        (107, "replica-hangs"),
    ),
    Mutant(
        "give replicas up, and nobody counts what they miss",
        "and nobody says so",
        (Patch(MissedInput, "begins", nothing), Patch(Wholeness, "lacks", nothing)),
        ("outrun",),
        (25, "outrun"),
    ),
    Mutant(
        "let out an acknowledgement that newer segments have overtaken",
        "falls from",
        (Patch(AckGate, "renew", lambda *_: False),),
        ("crash-primary", "cut"),
        (52000070, "cut"),
    ),
    Mutant(
        "protect again before the backup knows",
        "will not continue it",
        (Patch(Distance, "agreed", property(lambda self: True)),),
        HANGS,
        (12, "replica-hangs-crash"),
    ),
)
