"""The report of the campaign of faults: a summary by fault and by conditions, every anomaly, plots."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nfq_failover.lab.campaign.faults.plan import BY_NAME, CONDITIONS, FAULTS, MIXES, Record
from nfq_failover.lab.campaign.section import list_of_ms, median_and_worst, silences, write_section

_HEAD = (
    "| {} | takeovers | connections | wrong bytes | broken promises | RST | unprotected before the fault "
    "| longest silence: median | worst |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def describe(record: Record) -> str:
    """One run in a line."""
    verdict = "ok" if not record.oddities() else "BROKEN" if record.violations else "odd"
    silence = "" if record.silence_ms is None else f", silence {record.silence_ms:.0f} ms"
    rest = f" ({'; '.join(record.oddities())})" if record.oddities() else ""
    return f"{record.fault}, {record.conditions}, {record.mix}: {verdict}{rest}{silence}"


def write_report(records: Mapping[str, Record], output: Path, seed: int, wanted: int) -> Path:
    """Write `report.md` and its pictures into the directory; returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    rows = list(records.values())
    text = ["# Faults on real kernels", "", summary(rows, seed, wanted)]
    text += ["", "## Anomalies", "", anomalies(rows)]
    if rows:
        text += ["", "## Longest silences", ""]
        text += [f"![by fault]({name})" for name in _plot(rows, output)]
    path = output / "report.md"
    path.write_text("\n".join(text) + "\n")
    return path


def write_summary(records: Mapping[str, Record], docs: Path, seed: int, wanted: int) -> None:
    """Replace the section `faults` of a Markdown file by the summary, the anomalies and one plot beside the file."""
    rows = list(records.values())
    text = ["## Faults on real kernels", "", summary(rows, seed, wanted), "", "### Anomalies", "", anomalies(rows)]
    if rows:
        docs.parent.mkdir(parents=True, exist_ok=True)
        text += ["", *(f"![Longest silences by fault]({name})" for name in _plot(rows, docs.parent))]
    write_section(docs, "faults", "\n".join(text))


def summary(rows: Sequence[Record], seed: int, wanted: int) -> str:
    """What was done and found, as Markdown."""
    takeovers = sum(row.takeovers for row in rows)
    commits = ", ".join(sorted({row.commit for row in rows if row.commit})) or "unknown"
    detection = list_of_ms(row.detection_ms for row in rows)
    minutes = sum(row.duration_s for row in rows) / 60
    broken = sum(bool(row.violations) for row in rows)
    lines = [
        f"From `script/faults --count {wanted} --seed {seed}`: {takeovers} takeovers in {len(rows)} runs, "
        f"{minutes:.0f} minutes, detection time {detection}, commit {commits}, kernel {platform.release()}. "
        f"**{broken} runs broke the contract**; {sum(bool(row.notes) for row in rows)} were odd in another way.",
        "",
        "The client checks every byte (a function of a seed; uploads by SHA-256); resets, owners (hardware addresses), "
        "acknowledgements and timestamps are judged on its capture. The silence is what an application at the client "
        "sat through while it waited for something, losses before and after the fault included.",
        "",
        _HEAD.format("fault"),
        *(_line(fault.name, [row for row in rows if row.fault == fault.name]) for fault in FAULTS),
        _line("**all**", rows),
        "",
        "| fault | what happens | what is promised |",
        "|---|---|---|",
        *(f"| {fault.name} | {fault.what} | {fault.promise} |" for fault in FAULTS),
        "",
        _HEAD.format("tap, losses"),
        *(_line(one.name, [row for row in rows if row.conditions == one.name]) for one in CONDITIONS),
        "",
        _HEAD.format("workloads"),
        *(_line(mix, [row for row in rows if row.mix == mix]) for mix in MIXES),
    ]
    return "\n".join(lines)


def _line(name: str, rows: Sequence[Record]) -> str:
    def total(value: Callable[[Record], int]) -> str:
        return f"{sum(value(row) for row in rows):,}"

    median, worst = median_and_worst(rows)
    cells = [
        total(lambda row: row.takeovers),
        total(lambda row: row.connections),
        total(lambda row: row.wrong_bytes),
        total(lambda row: row.broken),
        total(lambda row: row.resets),
        total(lambda row: row.unprotected),
    ]
    return f"| {name} | {' | '.join(cells)} | {median} | {worst} |"


def anomalies(rows: Sequence[Record]) -> str:
    """Every run that was not as it should be, with what repeats it, as Markdown."""
    odd = [row for row in rows if row.oddities()]
    if not odd:
        return "None."
    lines = ["| run | lab's seed | fault | conditions | workloads | broken contract | odd |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in odd:
        cells = [f"`--seed {row.seed} --only-number {row.number}`", str(row.lab_seed)]
        cells += [row.fault, row.conditions, row.mix]
        cells += ["; ".join(row.violations) or "-", "; ".join(row.notes) or "-"]
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    lines += [
        "",
        "Each left its capture, the daemons' logs and status, and its record in `anomalies/SEED-NUMBER-FAULT/`.",
    ]
    return "\n".join(lines)


def _plot(rows: Sequence[Record], directory: Path) -> list[str]:
    from nfq_failover.lab.measure.plots import plot_silences

    values = {name: silences([row for row in rows if row.fault == name]) for name in BY_NAME}
    values |= {one.name: silences([row for row in rows if row.conditions == one.name]) for one in CONDITIONS}
    found = {name: times for name, times in values.items() if times}
    if not found:
        return []
    title = f"Longest silence of each of {len(rows)} runs, by fault and by conditions"
    paths = plot_silences(found, max(row.detection_ms for row in rows), directory / "fault-silences", title=title)
    return [path.name for path in paths if path.suffix == ".svg"]
