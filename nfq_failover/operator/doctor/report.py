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
    """One subject. `why` it matters; `seen`, if all is well; `findings`, what is not; `looked`, unless it could not be
    looked at."""

    subject: str
    why: str
    seen: str
    findings: tuple[Concern, ...] = ()
    looked: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        findings = [
            {"code": each.code, "weight": each.weight.label, "what": each.what, "cure": each.cure}
            for each in self.findings
        ]
        about = {"subject": self.subject, "why": self.why, "seen": self.seen, "looked": self.looked}
        return {**about, "findings": findings}


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
            finding = Concern(f"unchecked-{self.name}", Weight.WARNING, what, cure)
            return Result(self.name, self.why, "", (finding,), looked=False)
        return Result(self.name, self.why, seen, tuple(findings))


def exit_code(results: Sequence[Result]) -> int:
    """0: nothing but advice; 1: something keeps the protection from holding, or limits it; 2: not all could be looked
    at. What a daemon weighs as a warning is advice here."""
    if not all(result.looked for result in results):
        return 2
    return int(any(each.weight >= Weight.DEGRADED for result in results for each in result.findings))


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
    looked = sum(result.looked for result in results)
    parts = [f"{found.count(weight)} {weight.label}" for weight in sorted(Weight, reverse=True) if found.count(weight)]
    said = f"{looked} subjects looked at: {', '.join(parts) or 'nothing found'}"
    if looked < len(results):
        return f"{said}; {len(results) - looked} could not be looked at"
    return said if exit_code(results) or not found else f"{said}, which does not keep the protection from holding"
