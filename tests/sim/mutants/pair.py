"""Bugs planted into the pair: who may be heard, when, and what must have happened before."""

from __future__ import annotations

from nfq_failover.core import node, ports
from nfq_failover.core.pair import witness
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.pact import Pact
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.reach import Reach
from nfq_failover.core.pair.roles import Do, Input, State
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.pair.silence import Silence
from nfq_failover.core.ports import Ports
from nfq_failover.core.shadow.checkpoint import Checkpoint

from .mutant import Mutant, Patch, nothing

CUTS = ("cut", "partition", "flapping")
APP = ("app-primary", "app-crash")
PARTED = ("witness-partition", "witness-trouble")


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


def _hears_silence(self: Silence, generation: int, in_doubt: bool, now: float) -> None:
    """Lets everything go as soon as the backup is silent, though it may still take over."""
    del generation, now
    if not in_doubt:
        self._go(Input.BACKUP_HARMLESS, "released at once")


def _everything(self: Sharing, follows: bool) -> Ports | None:
    """Asks for rules for all ports, whatever the other host has."""
    del follows
    return ports.union(self._settings.ports)


def _promised(self: Sharing) -> tuple[tuple[str, str], ...]:
    """Tells of ports at once."""
    everything = ports.text(ports.union(self._settings.ports))
    return ("ports", everything), ("ports-added", ""), ("ports-wanted", everything), ("ports-all", everything)


def _careless_backup(self: Membership, now: float) -> None:
    """A backup that goes on whatever its checks say."""
    if self.state is not State.SHADOWING:
        _watch_health(self, now)


_watch_health = Membership._watch_health


def _retry_unfenced(self: Silence, again: bool, valid_until: float, now: float) -> None:
    """Another attempt serves without a fence."""
    if again and self._reach.passed and self._act_at is not None and now >= self._act_at:
        self._go(Input.ACCEPTED, "tried often enough")
    else:
        _silent_primary(self, again, valid_until, now)


_silent_primary = Silence.silent_primary


def _asked(self: Reach, ok: bool, detail: str, now: float) -> None:
    """Does not hear that it is cut off."""
    del ok, detail
    _answered(self, True, "", now)


_answered = Reach.asked


PAIR = (
    Mutant(
        "hold our own silence against the peer",
        "but was cut off itself",
        (Patch(Reach, "asked", _asked), Patch(Reach, "told", nothing)),
        ("strand",),
        (1, "strand"),
    ),
    Mutant(
        "act as soon as we are no longer cut off",
        "but was cut off itself",
        (Patch(Reach, "_proof_s", property(lambda self: 0.0, lambda self, value: None)),),
        ("strand",),
        (1, "strand"),
    ),
    Mutant(
        "divert and clone a port that the other host may not have",
        "clones ports",
        (Patch(Sharing, "for_rules", _everything),),
        ("rejoin", "crash-backup", "kill-backup"),
        (26, "rejoin"),
    ),
    Mutant(
        "tell of ports before the rules are there",
        "clones ports",
        (Patch(Sharing, "facts", _promised),),
        ("none", "crash-backup", "kill-backup"),
        (55, "none"),
    ),
    Mutant(
        "never divert a port that was added",
        "does not divert the port",
        (Patch(Sharing, "told", lambda self, theirs: ()),),
        ("none",),
        (0, "none"),
    ),
    Mutant(
        "never continue a connection",
        "resets a living, promised connection",
        (Patch(Membership, "may_continue", lambda self, now: False),),
    ),
    Mutant(
        "take over before the fence",
        "two owners",
        (Patch(Membership, "link_checked", _link_checked),),
        CUTS,
        (27, "cut"),
    ),
    Mutant("believe a failed fence", "two owners", (Patch(Membership, "fenced", _fenced),), CUTS, (115, "cut")),
    Mutant(
        "take over without storing",
        "epoch",
        (Patch(Membership, "_enter", _enter),),
        ("effect-takeover", "rejoin"),
        (12, "effect-takeover"),
    ),
    Mutant(
        "release before the fence",
        "goes on: acknowledged",
        (Patch(Silence, "lost_backup", _hears_silence),),
        ("clock", "cut"),
        (1033, "clock"),
    ),
    Mutant(
        "continue too late",
        "goes on: acknowledged",
        (Patch(Membership, "may_continue", lambda self, now: not self.invalid),),
        ("pause", "clock"),
        (1348, "pause"),
    ),
    Mutant(
        "a daemon that goes on whatever its record says",
        "",
        (Patch(Checkpoint, "allows", lambda self, epoch, served: served),),
        ("kill-any",),
        (39, "kill-any"),
    ),
    Mutant(
        "never move",
        "",
        (Patch(Membership, "application_failed", lambda *_: False),),
        APP,
        (2, "app-primary"),
    ),
    Mutant(
        "move although the backup's application is unwell",
        "moves to a host whose application",
        (
            Patch(PeerView, "well", property(lambda self: True)),
            Patch(Membership, "_watch_health", _careless_backup),
        ),
        ("app-both",),
        (451, "app-both"),
    ),
    Mutant(
        "speak after having yielded",
        "",
        (Patch(node, "_SERVING", node._SERVING | {State.YIELDED}),),
        APP,
        (2, "app-primary"),
    ),
    Mutant(
        "act without the witness",
        "two owners",
        (Patch(Pact, "outlasted", lambda self, now: now >= self._outlast_at),),
        PARTED,
        (2, "witness-partition"),
    ),
    Mutant(
        "act before the lease has ended",
        "two owners",
        (Patch(Pact, "outlasted", lambda self, now: self.granted),),
        PARTED,
        (10, "witness-partition"),
    ),
    Mutant(
        "a lease without an end",
        "two owners",
        (Patch(Pact, "renew", lambda self: None),),
        PARTED,
        (7, "witness-trouble"),
    ),
    Mutant(
        "a witness that grants a pact twice",
        "two owners",
        (Patch(witness, "decide", lambda last, host, low, high: witness.Grant(high, host)),),
        PARTED,
        (1, "witness-partition"),
    ),
    Mutant(
        "retry without a fence",
        "two owners",
        (Patch(Silence, "silent_primary", _retry_unfenced),),
        ("fence-cut", "fence-crash"),
        (10, "fence-cut"),
    ),
)
