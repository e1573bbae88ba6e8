"""What is wrong with a configuration file: all of it is gathered, so that one look at the file is enough."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nfq_failover.config import schema
from nfq_failover.config.places import Places
from nfq_failover.errors import ConfigError, Fault

_LIKE: Final = 0.6
_VERY_LIKE: Final = 0.8


def headed(table: str) -> str:
    """How an error calls a table: "[health]", "[[peer]] 1"; empty at the top level."""
    if not table:
        return ""
    section = next(section for section in schema.SECTIONS if section.table == table)
    return f"{section.header} 1" if section.many else section.header


class Faults:
    """Gathers what is wrong. `file` is what the configuration is called."""

    def __init__(self, file: str, places: Places) -> None:
        self.places = places
        self._file = file
        self._found: list[Fault] = []
        self._wrong: set[tuple[str, str]] = set()
        self._meant: set[tuple[str, str]] = set()

    def add(self, table: str, name: str, what: str) -> None:
        """Something is wrong with a setting of a table; with the table, if `name` is empty."""
        line = self.places.line(table, name)
        self._found.append(Fault(what, self._file, line, headed(table), name))
        self._wrong.add((table, name))

    def unknown(self, table: str, given: Mapping[str, Any]) -> None:
        """Look for what is no setting of a table, and say what may be meant."""
        known = schema.names(table)
        for name in given:
            if name in known:
                continue
            self.add(table, name, f"unknown setting '{name}': {self._cure(table, name) or 'remove it'}")

    def _cure(self, table: str, name: str) -> str:
        homes = [home for home in schema.tables() if home != table and name in _own(home)]
        near = difflib.get_close_matches(name, schema.names(table), 1, _VERY_LIKE if homes else _LIKE)
        self._meant.update((table, each) for each in near)
        cures = [f"did you mean '{each}'?" for each in near]
        if homes:
            belongs = f"it belongs {' or '.join(map(self._place, homes))}"
            cures.insert(len(cures) if not table else 0, belongs)  # what is appended to a file lands in its last table
        return ", or ".join(cures) or self._elsewhere(table, name)

    def _place(self, home: str) -> str:
        if home:
            return f"under {schema.header(home)}"
        first = self.places.first_table
        return f"above {first[0]} (line {first[1]})" if first else "at the top level"

    def _elsewhere(self, table: str, name: str) -> str:
        """What is like it in another table."""
        for home in schema.tables():
            if home != table and (near := difflib.get_close_matches(name, _own(home), 1, _VERY_LIKE)):
                return f"did you mean '{near[0]}'? It belongs {self._place(home)}"
        return ""

    def missing(self, table: str, name: str) -> None:
        """A setting is not there that must be; nothing is said if a typo of it is."""
        self._wrong.add((table, name))
        if (table, name) not in self._meant:
            self.add(table, name, f"setting '{name}' is missing: add it")

    def spoil(self, table: str, name: str) -> None:
        """A setting is wrong, of which something is said already: nothing more can be made of it."""
        self._wrong.add((table, name))

    def well(self, needed: Iterable[tuple[str, str]]) -> bool:
        """Whether all of these settings have values that can be judged further."""
        return self._wrong.isdisjoint(needed)

    def refuse(self) -> None:
        """Raise `ConfigError` if anything was found."""
        if self._found:
            raise ConfigError(*sorted(dict.fromkeys(self._found), key=lambda fault: fault.line))


def _own(table: str) -> list[str]:
    return [setting.name for setting in schema.settings(table)]
