"""The dialogue about the state behind the connections: what clients have sent that the replica will never get.

`instance` is a number that the backup gives to one life of its application, never 0; what the replica of one life has
missed is no matter of another's. None of these records is about a single connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nfq_failover.wire.records.base import Record, Towards, declare

__all__ = ["Anew", "BegunAnew", "Believed", "InputMissed", "Lives", "Whole", "WholeSaid"]


class Anew(IntEnum):
    """Which of the two applications was started anew alone, so that it lacks what the other one has."""

    NONE = 0
    REPLICA = 1
    SERVER = 2


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
    of `missed` I know at all, that it has missed input; of one at least if the two differ for another reason. Repeated
    once a second."""

    instance: int
    told: int
    missed: int


@declare(17, Towards.SHADOW, "!I")
@dataclass(frozen=True, slots=True)
class WholeSaid(Record):
    """Primary -> backup: the replica's application is as the server's: an operator says so, or both were started anew
    without anything having been sent between. Answered by `Whole`, with another instance."""

    instance: int


@declare(19, Towards.GATE, "!IIB")
@dataclass(frozen=True, slots=True)
class Lives(Record):
    """Backup -> primary: beside `Whole`. `life` is a number of the present life of my application, or of the last one,
    0 if there was none; another number is another program. `anew` is an `Anew`."""

    instance: int
    life: int
    anew: int


@declare(22, Towards.SHADOW, "!I")
@dataclass(frozen=True, slots=True)
class BegunAnew(Record):
    """Primary -> backup: my application was started anew, and your replica's has what mine has lost. Answered by
    `Lives`."""

    instance: int

    def instead(self) -> Record:
        """See `Record`: the two differ, too."""
        return InputMissed(self.instance, 1)


@declare(23, Towards.GATE, "!I")
@dataclass(frozen=True, slots=True)
class Believed(Record):
    """Backup -> primary: before `Whole`. That this life of my application has all that yours has, an operator has said
    here. Not told of another life."""

    instance: int
