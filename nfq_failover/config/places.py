"""Where each setting of a configuration file stands: `tomllib` says what a file means, and not in which line.

The text is known to be valid TOML, so this need not see what is wrong with it, but only where keys and tables begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_WORD: Final = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY: Final = re.compile(rf"\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*=")
_HEADER: Final = re.compile(rf"\s*\[(\[?)\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*\]")
_PART: Final = re.compile(_WORD)
# What a value is made of, as far as it matters for where it ends.
_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[{]|[\]}]|\n",
    re.DOTALL,
)


class Places:
    """The lines of a file's settings and tables, from 1.

    A setting of the table `[fence.parameters]`, and `parameters.plug` in `[fence]`, belong to the table "fence" and are
    called by the first word, "parameters".
    """

    def __init__(self, text: str = "") -> None:
        self._lines: dict[tuple[str, str], int] = {}
        self.first_table: tuple[str, int] | None = None  # as it is written, and its line
        for line, header, table, name in _keys(text):
            if header and self.first_table is None:
                self.first_table = (header, line)
            self._lines.setdefault((table, name), line)
            self._lines.setdefault((table, ""), line)

    def line(self, table: str, name: str = "") -> int:
        """The line of a setting, or of its table if it has none; 0 if neither is there. "" is the top level."""
        if (table, name) in self._lines:
            return self._lines[table, name]
        if not table:
            return self._lines.get((name, ""), 0)  # a table, called as a setting of the top level
        return self._lines.get((table, ""), self._lines.get(("", table), 0))


def _keys(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, header as written or "", table, name) of each header and each key; a header has the name "" unless it is
    that of a table in a table."""
    at, table, inner = 0, "", ""
    while at < len(text):  # Ends: `at` moves behind a line at least.
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        line = text.count("\n", 0, at) + 1
        if found := _HEADER.match(text, at, stop):
            table, *rest = _words(found[2])
            inner = rest[0] if rest else ""
            header = f"[[{found[2]}]]" if found[1] else f"[{found[2]}]"
            yield line, header, table, inner
        elif found := _KEY.match(text, at, stop):
            first, *rest = _words(found[1])
            if table:
                yield line, "", table, inner or first
            else:
                yield line, "", "", first
                if rest:
                    yield line, "", first, rest[0]
            stop = _end_of_value(text, found.end())
        at = stop + 1


def _words(key: str) -> list[str]:
    return [word[1:-1] if word[0] in "\"'" else word for word in _PART.findall(key)]


def _end_of_value(text: str, at: int) -> int:
    """Where the line break behind a value is, which may have several lines."""
    depth = 0
    for token in _TOKEN.finditer(text, at):
        if token[0] == "\n" and not depth:
            return token.start()
        depth += (token[0] in "[{") - (token[0] in "]}")
    return len(text)
