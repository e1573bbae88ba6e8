"""Bugs planted into what came later: applications that fail, the witness, the fence's retries."""

from __future__ import annotations

from typing import Any

from nfq_failover.core import node
from nfq_failover.core.gate.end_gate import EndGate, Judgement
from nfq_failover.core.gate.ends import PrimaryEnds
from nfq_failover.core.pair import witness
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.pact import Pact
from nfq_failover.core.pair.roles import Input, State
from nfq_failover.core.shadow.backoff import BackoffRevert
from nfq_failover.core.shadow.connection import BackupConnection

from .mutants import Mutant


def _no_mover(self: EndGate, *arguments: Any) -> Judgement:
    """Takes the application that has failed for the one that is right."""
    found = _judge(self, *arguments)
    return Judgement.REPLICA_FAILED if found is Judgement.APPLICATION_FAILED else found


_judge = EndGate.judge


def _careless_backup(self: Membership, monitor: Any, now: float) -> None:
    """A backup that goes on whatever its checks say."""
    if self.state is not State.SHADOWING:
        _watch_health(self, monitor, now)


_watch_health = Membership._watch_health


def _retry_unfenced(self: Membership) -> None:
    """Another attempt serves without a fence."""
    if self.state is State.RETRYING:
        self._go(Input.ACCEPTED, "tried often enough")
    else:
        _act_alone(self)


_act_alone = Membership._act_alone


def _quote_more(self: BackoffRevert, connections: list[BackupConnection], now: float) -> None:
    """Quotes a byte that the client has not sent to nobody."""
    for connection in connections:
        connection.ack_sent += 1
    _begin(self, connections, now)


_begin = BackoffRevert.begin


APP = ("app-primary", "app-crash")
PARTED = ("witness-partition", "witness-trouble")
FENCED = ("fence-cut", "fence-crash")

MORE_MUTANTS = (
    Mutant(
        "release the held end without asking",
        "FIN at the wrong place",
        ((PrimaryEnds, "outbound", lambda *_: False),),
        APP,
    ),
    Mutant("let the end of a failed application go", "FIN at the wrong place", ((EndGate, "judge", _no_mover),), APP),
    Mutant("never move", "", ((Membership, "application_failed", lambda *_: False),), APP),
    Mutant(
        "take a server that hangs for one that goes on",
        "resets a living, promised connection",
        ((PrimaryEnds, "_alive", lambda *_: True),),
        APP,
    ),
    Mutant(
        "move although the backup's application is unwell",
        "moves to a host whose application",
        (
            (Membership, "_peer_well", property(lambda self: True)),
            (Membership, "_watch_health", _careless_backup),
        ),
        ("app-both",),
    ),
    Mutant(
        "speak after having yielded",
        "",
        ((node, "_SERVING", node._SERVING | {State.YIELDED}),),
        APP,
    ),
    Mutant(
        "act without the witness",
        "two owners",
        ((Pact, "outlasted", lambda self, now: now >= self._outlast_at),),
        PARTED,
    ),
    Mutant(
        "act before the lease has ended", "two owners", ((Pact, "outlasted", lambda self, now: self.granted),), PARTED
    ),
    Mutant("a lease without an end", "two owners", ((Pact, "renew", lambda self: None),), PARTED),
    Mutant(
        "a witness that grants a pact twice",
        "two owners",
        ((witness, "decide", lambda last, host, low, high: witness.Grant(high, host)),),
        PARTED,
    ),
    Mutant("quote another byte", "the client has been told", ((BackoffRevert, "begin", _quote_more),), FENCED),
    Mutant("retry without a fence", "two owners", ((Membership, "_act_alone", _retry_unfenced),), FENCED),
)

MORE_HINTS = {
    "never move": (2, "app-primary"),
    "move although the backup's application is unwell": (451, "app-both"),
    "release the held end without asking": (2, "app-primary"),
    "let the end of a failed application go": (2, "app-primary"),
    "take a server that hangs for one that goes on": (7, "app-crash"),
    "speak after having yielded": (2, "app-primary"),
    "act without the witness": (2, "witness-partition"),
    "act before the lease has ended": (10, "witness-partition"),
    "a lease without an end": (7, "witness-trouble"),
    "a witness that grants a pact twice": (1, "witness-partition"),
    "quote another byte": (1, "fence-crash"),
    "retry without a fence": (10, "fence-cut"),
}
