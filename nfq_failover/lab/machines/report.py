"""What a run of `script/vagrant-test` has shown, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Run:
    """One fault. Times in the unit that the name says; differences as in `numbers.Difference`, one for each
    connection; None where there was nothing to measure.

    `silence_ms` is what the client's application sat through, `stall_ms` what its capture shows. `fenced`: the old
    primary was off afterwards (not asked of a reboot). `survivor`: who serves then. `back_after_s`: from its power-on,
    or from the order to reboot, until it protects. `kernels`: releases, the lost one's first. `in_time`: the fault came
    before the transfer had ended. `fence_ms`, `switch_ms`, `heard_ms`: the survivor's `timeline.Timeline`.
    """

    number: int
    fault: str
    workload: str
    tap: str
    primary: str
    survivor: str | None
    backup_again: str
    ok: bool
    error: str | None
    bytes: int
    wrong_bytes: int
    sha256: str | None
    silence_ms: float | None
    stall_ms: float | None
    problems: list[str]
    fenced: bool
    struck_at: float
    in_time: bool
    transfer_after_s: float
    back_after_s: float
    seq_difference: list[int] = field(default_factory=list)
    tsval_difference: list[int | None] = field(default_factory=list)
    kernels: str = ""
    fence_ms: float | None = None
    switch_ms: float | None = None
    heard_ms: float | None = None

    def faults_found(self) -> list[str]:
        """Everything that is not as it must be, in words."""
        found = []
        if not self.in_time:
            found.append("the transfer was over before the fault: nothing was tested")
        if not self.ok:
            found.append(self.error or "the transfer failed")
        if self.wrong_bytes:
            found.append(f"{self.wrong_bytes} wrong bytes")
        if not self.bytes:
            found.append("nothing was transferred")
        found += self.problems
        if self.survivor is None or self.survivor == self.primary:
            found.append(f"the other machine does not serve (serving: {self.survivor or 'nobody'})")
        if not self.fenced and self.fault != "reboot":
            found.append(f"{self.primary} was not turned off")
        if self.backup_again != self.primary:
            found.append(f"{self.primary} is not the backup after its return")
        if not self.seq_difference:
            found.append("the kernels' numbers are not known")
        elif 0 in self.seq_difference:
            found.append("the kernels had the same sequence numbers: nothing was translated")
        return found

    @property
    def good(self) -> bool:
        """Whether all was as it must be."""
        return not self.faults_found()

    def line(self) -> str:
        """For a person who looks on."""
        found = self.faults_found()
        verdict = "good" if not found else "BAD: " + "; ".join(found)
        return (
            f"{self.number:>3} {self.fault:<5} {self.workload:<6} {self.tap:<9} {self.primary} lost, "
            f"silence {_ms(self.silence_ms)}, {self.bytes / 1e6:.1f} MB, SEQ {_numbers(self.seq_difference)}, "
            f"TSval {_numbers(self.tsval_difference)}, back after {self.back_after_s:.0f} s  {verdict}"
        )


def report(runs: Sequence[Run]) -> str:
    """The table, in Markdown. `runs` is not empty."""
    lines = [
        "| # | fault | transfer | tap | lost | kernels: lost, survivor | MB, all checked | SHA-256 "
        "| silence (application) | stall (capture) | of it the fence | then clients heard after "
        "| SEQ: replica's less client's | TSval: the same | back and protecting after | |",
        "|---:|---|---|---|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in runs:
        lines.append(
            f"| {run.number} | {run.fault} | {run.workload} | {run.tap} | {run.primary} | {run.kernels or '-'} "
            f"| {run.bytes / 1e6:.1f} | {(run.sha256 or '-')[:12]} | {_ms(run.silence_ms)} | {_ms(run.stall_ms)} "
            f"| {_ms(run.fence_ms)} | {_ms(run.heard_ms)} "
            f"| {_numbers(run.seq_difference)} | {_numbers(run.tsval_difference)} | {run.back_after_s:.0f} s "
            f"| {'good' if run.good else '; '.join(run.faults_found())} |"
        )
    silences = [run.silence_ms for run in runs if run.silence_ms is not None]
    off = sum(run.fault == "off" for run in runs)
    lines += [
        "",
        f"{sum(run.good for run in runs)} of {len(runs)} good, {off} power-offs by the test, the others by the fence; "
        f"wrong bytes {sum(run.wrong_bytes for run in runs)}; silence: median "
        f"{_ms(median(silences) if silences else None)}, worst {_ms(max(silences, default=None))}.",
    ]
    return "\n".join(lines) + "\n"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _numbers(values: Sequence[int | None]) -> str:
    return ", ".join("-" if value is None else f"{value:+,d}" for value in values) or "-"
