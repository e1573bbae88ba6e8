"""The dialogue about the state behind the connections: what clients have sent that the replica will never get.

`instance` is a number that the backup gives to one life of its application, never 0; what the replica of one life has
missed is no matter of another's. None of these records is about a single connection.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfq_failover.wire.records.base import Record, Towards, declare

__all__ = ["InputMissed", "Whole", "WholeSaid"]


@declare(15, Towards.SHADOW, "!II")
@dataclass(frozen=True, slots=True)
class InputMissed(Record):
    """Primary -> backup: clients of `count` connections have sent what your replica will not get. Answered by
    `Whole`."""

    instance: int
    count: int


@declare(16, Towards.GATE, "!III")
@dataclass(frozen=True, slots=True)
class Whole(Record):
    """Backup -> primary: this is the present life of my application; of `told` connections I have learnt from you, and
    of `missed` I know at all, that it has missed input. Repeated once a second."""

    instance: int
    told: int
    missed: int


@declare(17, Towards.SHADOW, "!I")
@dataclass(frozen=True, slots=True)
class WholeSaid(Record):
    """Primary -> backup: an operator says that the replica's application is as the server's. Answered by `Whole`, with
    another instance."""

    instance: int
