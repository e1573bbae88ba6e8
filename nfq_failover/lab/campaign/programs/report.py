"""The table of programs in docs/results/README.md."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from nfq_failover.lab.campaign.programs.case import Program
from nfq_failover.lab.campaign.programs.judge import AS_SAID, NOT_DONE, PROMISE, RIGHT, WRONG, Record, counted, worst
from nfq_failover.lab.campaign.section import write_section

_ALL: Final = "**all**"
_HEAD: Final = (
    "| server (client) | version | runs | right | lost, as `status` had said | called protected, and lost "
    "| wrong content | longest silence | why not |\n|---|---|---:|---:|---:|---:|---:|---:|---|"
)


def describe(record: Record) -> str:
    """One run in a line."""
    silence = "" if record.silence_ms is None else f", silence {record.silence_ms:.0f} ms"
    return f"{record.program}, {record.tap}: {record.verdict}{f' ({record.why})' if record.why else ''}{silence}"


def _unnoticed(record: Record) -> str:
    """What the client did not mind."""
    lost = record.lost.get("", 0)
    return f"right, though {lost} protected connections were reset" if lost else ""


def _row(name: str, records: Sequence[Record]) -> str:
    def how_many(verdict: str) -> int:
        return sum(record.verdict == verdict for record in records)

    done = [record for record in records if record.verdict != NOT_DONE]
    silence = worst(done)
    versions = sorted({record.version for record in records if record.version}) if name != _ALL else []
    reasons = [] if name == _ALL else [record.why or _unnoticed(record) for record in records]
    why = "; ".join(counted(reason for reason in reasons if reason))
    cells = [
        *(name, ", ".join(versions) or "-", str(len(done)), str(how_many(RIGHT)), str(how_many(AS_SAID))),
        *(str(how_many(PROMISE)), str(how_many(WRONG)), "-" if silence is None else f"{silence:.0f} ms", why),
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def table(records: Iterable[Record], programs: Sequence[Program]) -> str:
    """The table; programs that have no run are left out."""
    rows = list(records)
    found = {program.name: [row for row in rows if row.program == program.name] for program in programs}
    lines = [_row(name, mine) for name, mine in found.items() if mine]
    return "\n".join([_HEAD, *lines, _row(_ALL, [row for mine in found.values() for row in mine])])


def write_report(
    records: Mapping[str, Record],
    programs: Sequence[Program],
    command: str,
    wanted: int,
    missing: Sequence[str],
    docs: Path,
) -> None:
    """Write the section of the page. `wanted`: how many runs there are to be."""
    rows = list(records.values())
    commits = ", ".join(sorted({row.commit for row in rows if row.commit})) or "unknown"
    text = [
        "## Real programs through a crash",
        "",
        f"From `{command}` (`nfq_failover/lab/campaign/programs/`), {len(rows)} of {wanted} runs. Servers and clients "
        "are as the distribution has them, "
        "each in a lab of its own, on either tap in turn. In the middle of the client's work the primary loses its "
        "power. *Right*: the client has ended well, with all it should have got. What `status` had said is taken just "
        "before the crash: a connection that it calls unprotected, with its reason, may be lost; one that it calls "
        "protected may not. The silence is the service's longest from the crash on, in the client's capture, and "
        "has the client's own pauses in it.",
        "",
        table(rows, programs),
        "",
        f"Commit {commits}, kernel {platform.release()}, last run {max((row.finished for row in rows), default='-')}.",
    ]
    if missing:
        text += ["", f"Not there, so not run: {', '.join(missing)}."]
    write_section(docs, "programs", "\n".join(text))
