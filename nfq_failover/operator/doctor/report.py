"""What the doctor has looked at and found, as text for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.errors import NfqFailoverError

_COLUMN = 14


@dataclass(frozen=True, slots=True)
class Result:
    """One subject that was looked at. `why` it matters; `seen`, if all is well; `findings`, what is not."""

    subject: str
    why: str
    seen: str
    findings: tuple[Concern, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        findings = [
            {"code": each.code, "weight": each.weight.label, "what": each.what, "cure": each.cure}
            for each in self.findings
        ]
        return {"subject": self.subject, "why": self.why, "seen": self.seen, "findings": findings}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to look at: `look` returns what was seen and what is wrong with it."""

    name: str
    why: str
    look: Callable[[], tuple[str, Sequence[Concern]]]

    def examine(self) -> Result:
        """Look. What can't be looked at is a finding too: silence must not pass for health."""
        try:
            seen, findings = self.look()
        except (OSError, ValueError, NfqFailoverError) as error:
            what = f"this can't be checked: {error}"
            cure = "run the doctor as root, on the host itself"
            return Result(self.name, self.why, "", (Concern(f"unchecked-{self.name}", Weight.WARNING, what, cure),))
        return Result(self.name, self.why, seen, tuple(findings))


def exit_code(results: Sequence[Result]) -> int:
    """0: nothing was found; 1: the protection holds with limits; 2: it would not hold."""
    worst = max((each.weight for result in results for each in result.findings), default=0)
    return 0 if not worst else 2 if worst is Weight.UNPROTECTED else 1


def lines(result: Result) -> Iterator[str]:
    """One subject as text."""
    if not result.findings:
        yield f"{'ok':<{_COLUMN}}{result.subject}: {result.seen}"
    for number, each in enumerate(result.findings):
        yield f"{each.weight.label:<{_COLUMN}}{result.subject}: {each.what}"
        if result.why and not number:
            yield f"{'':<{_COLUMN}}  why: {result.why}"
        if each.cure:
            yield f"{'':<{_COLUMN}}  do:  {each.cure}"


def summary(results: Sequence[Result]) -> str:
    """The last line."""
    found = [each.weight for result in results for each in result.findings]
    if not found:
        return f"{len(results)} subjects looked at: nothing found"
    parts = [f"{found.count(weight)} {weight.label}" for weight in sorted(Weight, reverse=True) if found.count(weight)]
    return f"{len(results)} subjects looked at: {', '.join(parts)}"
