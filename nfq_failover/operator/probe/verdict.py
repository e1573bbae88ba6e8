"""What the comparison means for protection, and how much of a proof it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from nfq_failover.operator.probe.compare import Finding, Relation, compare, worst
from nfq_failover.operator.probe.fetch import Answer
from nfq_failover.operator.probe.protocol import encrypted, looks_random
from nfq_failover.operator.probe.recording import Recording

EXIT_EQUAL: Final = 0
EXIT_COUNTED: Final = 3
EXIT_NOT: Final = 4
EXIT_UNKNOWN: Final = 5
_LACKS_BYTES: Final = 64
_LACKS_PART: Final = 0.1


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far the answers have come beside the recorded ones. `compared`: bytes that both hosts have sent, of
    `recorded`; `why_not`: why that is no proof, empty if it is one."""

    recorded: int
    compared: int
    why_not: str


def coverage(recording: Recording, answers: Sequence[Answer]) -> Coverage:
    """How far the worst of the answers has come."""
    recorded = recording.answered
    least = min(answers, key=lambda answer: (answer.sent, len(answer.data)))
    compared = min(len(least.data), len(recorded))
    lacks = len(recorded) - compared
    why = ""
    if least.sent < len(recording.turns):
        why = f"then the server {_STOPPED[least.end]}: {len(recording.turns) - least.sent} of the client's "
        why += f"{len(recording.turns)} turns were never sent"
    elif lacks > max(_LACKS_BYTES, _LACKS_PART * len(recorded)):
        why = f"then the server {_STOPPED[least.end]}"
    elif recording.end == "closed" and any(answer.end != "closed" for answer in answers):
        why = "but the recorded server had closed the connection then, and these have not"
    else:
        here = Answer(recorded, least.end)
        found = [compare(here, answer) for answer in answers]
        unlike = [each for each in found if each.relation in (Relation.RANDOM, Relation.OUT_OF_STEP)]
        if unlike:
            why = f"but the answers are others than those recorded, from byte {unlike[0].places[0].start} on"
    return Coverage(len(recorded), compared, why)


_STOPPED: Final = {
    "timeout": "waited (--timeout-s ended it)",
    "idle": "waited",
    "closed": "closed the connection",
    "reset": "reset the connection",
    "limit": "had more to say (--limit)",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole. `between`: answer by answer; `within`: each application's first answer with its later ones.

    `protocol`: the encryption that was recognized; `covered`: how far a recorded conversation was repeated; `unasked`:
    the servers speak of themselves.
    """

    names: tuple[str, str]
    between: tuple[Finding, ...]
    within: tuple[tuple[Finding, ...], tuple[Finding, ...]]
    protocol: str = ""
    covered: Coverage | None = None
    unasked: bool = False
    random: bool = False

    @property
    def relation(self) -> Relation:
        """The worst that was seen between the two."""
        return worst(self.between)

    @property
    def exit_code(self) -> int:
        """0: equal; 3: protected, though answers differ in places; 4: connections will not stay protected; 5: it can't
        be told from this."""
        if self.protocol:
            return EXIT_NOT
        relation = self.relation
        if relation is Relation.UNFINISHED or (relation is Relation.OUT_OF_STEP and self.unasked):
            return EXIT_UNKNOWN
        if relation in (Relation.RANDOM, Relation.OUT_OF_STEP):
            return EXIT_NOT
        if self.covered is not None and self.covered.why_not:
            return EXIT_UNKNOWN
        return EXIT_EQUAL if relation is Relation.EQUAL else EXIT_COUNTED

    def as_json(self) -> dict[str, Any]:
        """JSON-ready. `protectable` is null if it can't be told."""

        def rows(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
            return [{**asdict(finding), "relation": finding.relation.name.lower()} for finding in findings]

        return {
            "hosts": list(self.names),
            "relation": self.relation.name.lower(),
            "protectable": {EXIT_NOT: False, EXIT_UNKNOWN: None}.get(self.exit_code, True),
            "exit_code": self.exit_code,
            "encrypted": self.protocol or None,
            "unasked": self.unasked,
            "recorded": None if self.covered is None else asdict(self.covered),
            "between": rows(self.between),
            "within": {name: rows(findings) for name, findings in zip(self.names, self.within, strict=True)},
        }


def judge(
    names: tuple[str, str],
    ones: list[Answer],
    others: list[Answer],
    turns: Sequence[bytes] = (),
    recording: Recording | None = None,
    unasked: bool = False,
) -> Verdict:
    """Compare the answers of two applications, in the order in which they came. `turns`: what they were asked."""
    answers = [*ones, *others]
    said = [answer.data for answer in answers]
    unasked = unasked or (recording is not None and recording.unasked > 0)
    between = tuple(compare(one, other, unasked) for one, other in zip(ones, others, strict=True))
    within = [tuple(compare(mine[0], later, unasked) for later in mine[1:]) for mine in (ones, others)]
    heard = said if recording is None else [*said, *recording.answers]
    return Verdict(
        names,
        between,
        (within[0], within[1]),
        encrypted(turns, heard),
        None if recording is None else coverage(recording, answers),
        unasked,
        any(looks_random(data) for data in (*said, *turns)),
    )


_MEANING: Final = {
    Relation.EQUAL: "The answers are equal. Connections like this one are protected.",
    Relation.COUNTED: (
        "The answers have the same length and differ in places, then agree again (like the Date of an HTTP response).\n"
        "Connections are protected. One is reset only if the takeover falls into such a place: before the client has\n"
        "acknowledged it."
    ),
    Relation.UNFINISHED: (
        "The answers are equal as far as both have come, and the servers had not finished: not a proof. Give them\n"
        "more time (--timeout-s, --idle-ms) or room (--limit). What servers send at moments of their own can't be\n"
        "compared like this: see what 'nfq-failover status' says of a real connection."
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


def _meaning(verdict: Verdict) -> str:
    if verdict.protocol:
        return (
            f"The conversation is encrypted ({verdict.protocol}): each host has its own keys, and sends other bytes.\n"
            "Connections like this one become unprotected, and are reset at a takeover. Encryption must end before\n"
            "the service."
        )
    if verdict.exit_code != EXIT_UNKNOWN:
        return _MEANING[verdict.relation]
    if verdict.relation is Relation.OUT_OF_STEP:
        return (
            "The answers differ, but this server speaks without being asked: what it says depends on the moment, or\n"
            "on other clients, and the two were not asked in the same one. So nothing follows for a real connection:\n"
            "see what 'nfq-failover status' says of one."
        )
    if verdict.relation is Relation.UNFINISHED:
        return _MEANING[Relation.UNFINISHED]
    return (
        "As far as that goes the answers agree, but it is not a proof: see what 'nfq-failover status' says of a real\n"
        "connection."
    )


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
    if (covered := verdict.covered) is not None:
        how_far = f"compared {covered.compared:,} of {covered.recorded:,} recorded bytes"
        lines.append(f"{how_far}, {covered.why_not}: not a proof" if covered.why_not else how_far)
    lines += ["", _meaning(verdict)]
    if verdict.exit_code == EXIT_UNKNOWN and verdict.random:
        lines.append("What was exchanged looks random: it may be encrypted, in a way that is not known here.")
    if verdict.exit_code == EXIT_NOT and all(worst(findings) is not Relation.EQUAL for findings in verdict.within):
        lines.append("Each application also differs from itself: no second host can send the same.")
    return "\n".join(lines)
