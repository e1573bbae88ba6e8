"""What the answers of two applications to the same request have in common, and what that means for protection.

The judgement is the daemon's own (core/shadow/divergence.py): a difference of equal length after which `AGREE_BYTES`
are equal again is counted only; everything else makes a connection diverged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from nfq_failover.core.shadow.comparison import AGREE_BYTES, differing_runs
from nfq_failover.operator.probe.fetch import Answer

EXCERPT = 24  # bytes before and after a difference
MAX_PLACES = 8
RUN_BYTES = 1024  # as `Settings.divergence_run_bytes`


class Relation(Enum):
    """How two answers relate, the worst last."""

    EQUAL = "equal"
    COUNTED = "equal length, with differences"
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


def compare(one: Answer, other: Answer) -> Finding:
    """Compare two answers to the same request."""
    lengths = len(one.data), len(other.data)
    common = min(lengths)
    runs = differing_runs(one.data[:common], other.data[:common])
    if lengths[0] != lengths[1]:
        relation = Relation.OUT_OF_STEP
        runs = runs or [(common, common)]
    elif not runs:
        relation = Relation.EQUAL
    elif common - runs[-1][1] < AGREE_BYTES or any(stop - start >= RUN_BYTES for start, stop in runs):
        relation = Relation.RANDOM
    else:
        relation = Relation.COUNTED
    if relation in (Relation.EQUAL, Relation.COUNTED) and one.end != other.end:
        relation = Relation.OUT_OF_STEP  # one closes, the other does not
    places = tuple(Place(a, b, _excerpt(one.data, a, b), _excerpt(other.data, a, b)) for a, b in runs[:MAX_PLACES])
    return Finding(relation, lengths, (one.end, other.end), places)


def _excerpt(data: bytes, start: int, stop: int) -> str:
    """Printable text around a place; bytes that are not are written \\xNN."""
    piece = data[max(start - EXCERPT, 0) : min(stop, start + 2 * EXCERPT) + EXCERPT]
    return piece.decode("latin-1").encode("ascii", "backslashreplace").decode().translate(_CONTROLS)


_CONTROLS = {i: f"\\x{i:02x}" for i in (*range(32), 127)} | {9: "\\t", 10: "\\n", 13: "\\r"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole. `between`: answer by answer; `within`: each application's first answer with its later ones."""

    names: tuple[str, str]
    between: tuple[Finding, ...]
    within: tuple[tuple[Finding, ...], tuple[Finding, ...]]

    @property
    def relation(self) -> Relation:
        """The worst that was seen between the two."""
        return worst(self.between)

    @property
    def exit_code(self) -> int:
        """0: equal; 3: protected, though answers differ in places; 4: connections will not stay protected."""
        return {Relation.EQUAL: 0, Relation.COUNTED: 3}.get(self.relation, 4)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""

        def rows(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
            return [{**asdict(finding), "relation": finding.relation.name.lower()} for finding in findings]

        return {
            "hosts": list(self.names),
            "relation": self.relation.name.lower(),
            "protectable": self.exit_code != 4,
            "between": rows(self.between),
            "within": {name: rows(findings) for name, findings in zip(self.names, self.within, strict=True)},
        }


def worst(findings: tuple[Finding, ...]) -> Relation:
    """The worst relation among findings; equal for none."""
    return max((finding.relation for finding in findings), key=_ORDER.index, default=Relation.EQUAL)


def judge(names: tuple[str, str], ones: list[Answer], others: list[Answer]) -> Verdict:
    """Compare the answers of two applications, in the order in which they came."""
    between = tuple(compare(one, other) for one, other in zip(ones, others, strict=True))
    within = [tuple(compare(answers[0], later) for later in answers[1:]) for answers in (ones, others)]
    return Verdict(names, between, (within[0], within[1]))


_MEANING = {
    Relation.EQUAL: "The answers are equal. Connections like this one are protected.",
    Relation.COUNTED: (
        "The answers have the same length and differ in places, then agree again (like the Date of an HTTP response).\n"
        "Connections are protected. One is reset only if the takeover falls into such a place: before the client has\n"
        "acknowledged it."
    ),
    Relation.RANDOM: (
        "The answers have the same length but do not agree again after a difference: encrypted (TLS), or random.\n"
        "Connections like this one become unprotected, and are reset at a takeover."
    ),
    Relation.OUT_OF_STEP: (
        "The answers differ in length, or one application closes where the other does not.\n"
        "Connections like this one become unprotected, and are reset at a takeover."
    ),
}


def describe(verdict: Verdict) -> str:
    """The verdict for people."""
    lines = []
    for number, finding in enumerate(verdict.between, 1):
        sizes = f"{finding.lengths[0]} bytes ({finding.ends[0]}), {finding.lengths[1]} bytes ({finding.ends[1]})"
        lines.append(f"request {number}: {finding.relation.value}: {sizes}")
    first = next((f for f in verdict.between if f.relation is verdict.relation), None)
    for place in first.places if first is not None else ():
        lines.append(f"  byte {place.start}, {max(place.stop - place.start, 0)} bytes:")
        lines += [f"    {name}: {text}" for name, text in zip(verdict.names, (place.one, place.other), strict=True)]
    for name, findings in zip(verdict.names, verdict.within, strict=True):
        if findings:
            lines.append(f"{name}, compared with itself: {worst(findings).value}")
    lines.append("")
    lines.append(_MEANING[verdict.relation])
    if verdict.exit_code == 4 and all(worst(findings) is not Relation.EQUAL for findings in verdict.within):
        lines.append("Each application also differs from itself: no second host can send the same.")
    return "\n".join(lines)
