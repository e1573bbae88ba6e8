"""What a change of state makes a node do, and how it is told to people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nfq_failover.core.pair.roles import Input, State


class Do(Enum):
    """What the node must do after a state change."""

    CHECK_LINK = "check our own link"
    FENCE = "fence the peer"
    ASK = "ask the witness whether we may act alone"
    HUSH = "let others answer for the service address"
    SPEAK = "answer for the service address again"
    STORE = "store epoch and role"
    SERVE = "be heard, with no connections"
    RESUME = "be heard again, with the connections that were taken over before the daemon's restart"
    TAKE_OVER = "be heard, with the shadow connections"
    ARM = "tighten the rules"
    PROTECT = "open new connections towards the backup"
    RELEASE = "let everything go unprotected"
    SHADOW = "start with an empty shadow table"
    INVALIDATE = "the shadows can't be continued"
    SILENCE = "be silent, forget all connections"


@dataclass(frozen=True, slots=True)
class Change:
    """A state change, for the log and for people."""

    before: State
    after: State
    given: Input
    reason: str
