"""What the reports share: sections of a Markdown file, and the columns of silences in their tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from nfq_failover.errors import CommandError


class Silent(Protocol):
    """A record that may have a silence, in ms."""

    @property
    def silence_ms(self) -> float | None:
        """The longest that the client's application saw."""


def silences(rows: Iterable[Silent]) -> list[float]:
    """The silences of the records that have one, in ms."""
    return [row.silence_ms for row in rows if row.silence_ms is not None]


def median_and_worst(rows: Iterable[Silent]) -> tuple[str, str]:
    """The records' median and worst silence, as a table's cells."""
    times = silences(rows)
    return (f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms") if times else ("-", "-")


def list_of_ms(values: Iterable[int]) -> str:
    """All different values, like `150 ms, 300 ms`."""
    return ", ".join(f"{value} ms" for value in sorted(set(values))) or "-"


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->` in a Markdown file.

    The section, and the file, are made if they are not there.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    old = path.read_text() if path.exists() else "# Results\n"
    head, found, rest = old.partition(begin)
    if found:
        _, closed, tail = rest.partition(end)
        if not closed:
            raise CommandError(f"{path} has {begin} without {end}. Repair it, then run this again.")
        new = head + section + tail
    else:
        new = f"{old.rstrip()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new)
