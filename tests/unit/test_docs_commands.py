"""Each command line that a page shows is one that the program understands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "vagrant/README.md")),
]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```$|^((?: {4}.*\n)+)", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(nfq-failover [^`]+)`")
LINE = re.compile(r"^\s*(?:\w*[#$] )?(?:sudo |until )?(nfq-failover .*)$", re.MULTILINE)
PLACEHOLDERS = {"...": None, "N": "7", "SECONDS": "7", "PORT": "7", "ADDRESS:PORT": "127.0.0.1:7"}


def commands(page: Path) -> Iterator[str]:
    """The command lines in a page's blocks and spans."""
    text = page.read_text()
    for block in BLOCK.findall(text):
        yield from LINE.findall("\n".join(block))
    yield from SPAN.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def words(line: str) -> list[str]:
    """The arguments, without a comment, a pipe or what is left to the reader."""
    line = re.sub(r"\s+#.*$", "", line)
    line = re.split(r"\s(?:[|&>]|2>|;)\s?|;\s", line + " ")[0].rstrip("; \\")
    found = shlex.split(line)[1:]
    return [PLACEHOLDERS.get(word) or word for word in found if PLACEHOLDERS.get(word, word) is not None]


def shown() -> list[tuple[str, str]]:
    found = dict.fromkeys((str(page.relative_to(ROOT)), line) for page in PAGES for line in commands(page))
    return list(found)


def test_pages_show_commands() -> None:
    assert len(shown()) > 40


@pytest.mark.parametrize(("page", "line"), shown())
def test_a_command_of_a_page_is_understood(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.parser_for(words(line))
    try:
        parser.parse_args(words(line))
    except SystemExit as ended:
        said = capsys.readouterr().err
        # A command that is only named, without what it needs, is no mistake.
        assert ended.code == 0 or "the following arguments are required" in said, f"{page}: {line}\n{said}"
