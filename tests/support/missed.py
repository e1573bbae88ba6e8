"""A gate whose connections lose their replicas: what comes out, what the backup is told, and what is protected."""

from __future__ import annotations

from nfq_failover.core.gate.connection import Gate
from nfq_failover.wire.records import (
    InputMissed,
    Unprotected,
    Whole,
)
from tests.support.gate import Gated
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    GateTranscript,
    syn,
    syn_ack,
)

LOST = Unprotected(1, "the replica reset the connection")


def quiet(t: GateTranscript) -> list[object]:
    """All that has come out."""
    found: list[object] = list(t.effects)
    t.effects.clear()
    return found


def do(t: GateTranscript, *inputs: object) -> list[object]:
    """Feed several inputs; all that has come out."""
    found: list[object] = []
    for each in inputs:
        t >> each
        found += quiet(t)
    return found


def told(t: GateTranscript, seconds: float = 0.1) -> list[InputMissed]:
    """What the backup is told."""
    t >> After(seconds)
    return [each for each in quiet(t) if isinstance(each, InputMissed)]


def another(t: GateTranscript, far: int = 70000) -> str:
    """A new connection from the same port; why it is not protected."""
    do(t, syn(irs=IRS + far))
    do(t, syn_ack(irs=IRS + far, iss=(ISS + far) % 2**32))
    quiet(t)
    return t.side.flows[FLOW].reason if t.side.flows[FLOW].state is Gate.UNPROTECTED else ""


def lost(**changes: object) -> Gated:
    """A connection that has lost its replica."""
    t = Gated()
    t.side.missed._shared = changes.get("state") != "none"
    do(t, Whole(7, 0, 0))
    do(t, LOST)
    quiet(t)
    return t
