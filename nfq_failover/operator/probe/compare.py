"""What the answers of two applications to the same request have in common.

The judgement is the daemon's own (core/shadow/divergence.py): a difference of equal length after which `AGREE_BYTES`
are equal again is counted only; everything else makes a connection diverged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nfq_failover.core.shadow.comparison import AGREE_BYTES, differing_runs
from nfq_failover.operator.probe.fetch import Answer

EXCERPT = 24  # bytes before and after a difference
MAX_PLACES = 8
RUN_BYTES = 1024  # as `Settings.divergence_run_bytes`


class Relation(Enum):
    """How two answers relate, the worst last."""

    EQUAL = "equal"
    COUNTED = "equal length, with differences"
    UNFINISHED = "equal as far as both have come"
    RANDOM = "differing to the end"
    OUT_OF_STEP = "of different lengths"


_ORDER = list(Relation)


@dataclass(frozen=True, slots=True)
class Place:
    """A run of bytes that differ, [start, stop), and what is around it on either side."""

    start: int
    stop: int
    one: str
    other: str


@dataclass(frozen=True, slots=True)
class Finding:
    """How two answers relate; the places are the first ones, `lengths` those of the answers."""

    relation: Relation
    lengths: tuple[int, int]
    ends: tuple[str, str]
    places: tuple[Place, ...] = ()

    @property
    def one_is_further(self) -> bool:
        """Whether one answer only goes on where the other has come to rest."""
        if self.relation is not Relation.OUT_OF_STEP or self.lengths[0] == self.lengths[1]:
            return False
        if self.places[0].start != min(self.lengths):
            return False
        shorter, longer = self.ends if self.lengths[0] < self.lengths[1] else self.ends[::-1]
        return shorter == "idle" and longer in ("idle", "timeout", "limit")


def compare(one: Answer, other: Answer, unasked: bool = False) -> Finding:
    """Compare two answers to the same request. `unasked`: the servers go on by themselves, so that the moment decides
    how much has come."""
    lengths = len(one.data), len(other.data)
    common = min(lengths)
    runs = differing_runs(one.data[:common], other.data[:common])
    agrees = not runs or common - runs[-1][1] >= AGREE_BYTES
    if lengths[0] != lengths[1]:
        shorter = one if lengths[0] < lengths[1] else other
        goes_on = shorter.end in ("timeout", "limit") or (unasked and shorter.end == "idle")
        relation = Relation.UNFINISHED if agrees and goes_on else Relation.OUT_OF_STEP
        runs = runs or [(common, common)]
    elif not runs:
        relation = Relation.EQUAL
    elif not agrees or any(stop - start >= RUN_BYTES for start, stop in runs):
        relation = Relation.RANDOM
    else:
        relation = Relation.COUNTED
    if relation in (Relation.EQUAL, Relation.COUNTED) and one.end != other.end:
        relation = Relation.OUT_OF_STEP  # one closes, the other does not
    places = tuple(Place(a, b, _excerpt(one.data, a, b), _excerpt(other.data, a, b)) for a, b in runs[:MAX_PLACES])
    return Finding(relation, lengths, (one.end, other.end), places)


def worst(findings: tuple[Finding, ...]) -> Relation:
    """The worst relation among findings; equal for none."""
    return max((finding.relation for finding in findings), key=_ORDER.index, default=Relation.EQUAL)


def _excerpt(data: bytes, start: int, stop: int) -> str:
    """Printable text around a place; bytes that are not are written \\xNN."""
    piece = data[max(start - EXCERPT, 0) : min(stop, start + 2 * EXCERPT) + EXCERPT]
    return piece.decode("latin-1").encode("ascii", "backslashreplace").decode().translate(_CONTROLS)


_CONTROLS = {i: f"\\x{i:02x}" for i in (*range(32), 127)} | {9: "\\t", 10: "\\n", 13: "\\r"}
