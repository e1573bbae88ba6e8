"""The dialogue about how far the replica is: the primary asks when it has waited, and says when it waits no more."""

from __future__ import annotations

from dataclasses import dataclass

from nfq_failover.wire.records.base import Record, Towards, declare

__all__ = ["PaceAsked", "PaceTold"]


@declare(70, Towards.SHADOW, "!II")
@dataclass(frozen=True, slots=True)
class PaceAsked(Record):
    """Primary -> backup: where is your replica? Always answered, by `PaceTold` or, if it is lost, by `Unprotected`.

    `turn` counts how often the primary has changed its mind about this connection. While it is even my client waits for
    you. While it is odd my client does not: it may have been told more than you have, so the connection is not
    protected, and you must not continue it; but go on with the replica, since it may be protected again.
    """

    conn: int
    turn: int


@declare(71, Towards.GATE, "!IIIII")
@dataclass(frozen=True, slots=True)
class PaceTold(Record):
    """Backup -> primary: answer to `PaceAsked`. `turn` is the latest that I know of.

    My TCP has taken the client's bytes before `taken`, and accepts them up to `rcv_edge`; my server has sent everything
    before `sent`, as the client numbers it (a FIN counts as a byte).
    """

    conn: int
    turn: int
    taken: int
    rcv_edge: int
    sent: int
