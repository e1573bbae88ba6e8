"""No file of the package or of its tests is so long that it must have a second subject (CONTRIBUTING.md)."""

from __future__ import annotations

from pathlib import Path

MOST_LINES = 500
ROOT = Path(__file__).parents[2]


def test_no_file_is_longer_than_one_subject() -> None:
    paths = [path for room in ("nfq_failover", "tests") for path in (ROOT / room).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {"nfq_failover/core/node.py", "tests/unit/test_lengths.py"} <= lengths.keys()
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES}
