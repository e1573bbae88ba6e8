"""The docs tell of every setting that there is, and of none that there is not; what is generated is up to date."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfq_failover.config import Config, parse, reference, schema
from nfq_failover.core import bounds
from tests.support import configured
from tests.unit.config.test_parse import key_file

__all__ = ["key_file"]  # a fixture

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operate" / "configuration.md"
SAMPLE = ROOT / "docs" / "operate" / "config.toml.sample"
PAGES = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "vagrant/README.md"))]
TABLES = sorted({section.table for section in schema.SECTIONS})
OPTIONAL = {section.table for section in schema.SECTIONS if section.optional}


def test_what_is_generated_is_up_to_date() -> None:
    assert set(reference.files()) == {PAGE, SAMPLE}
    for path, text in reference.files().items():
        assert path.read_text() == text, f"run: {reference.COMMAND}"


# ------------------------------------------------------------------------------------ the page


def documented() -> dict[str, dict[str, list[str]]]:
    """The rows of the page, read from its text: by table, by setting."""
    found: dict[str, dict[str, list[str]]] = {}
    table = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            header = re.match(r"## `\[+(\w+)\]+`", line)
            table = header[1] if header else ""
        elif row := re.match(r"\| `(\w+)` \| (.*) \|$", line):
            assert row[1] not in found.setdefault(table, {})
            found[table][row[1]] = row[2].split(" | ")
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_every_setting_and_no_other(table: str) -> None:
    rows = documented()[table]
    assert [*rows] == [setting.name for setting in schema.settings(table)]
    for name, (value, unit, default, change, text) in rows.items():
        setting = schema.find(name, table)
        assert unit.strip() == setting.unit
        assert change == setting.change.value
        assert len(text) > 10
        if setting.kind is schema.Kind.NUMBER:
            assert value.endswith(f"{setting.low} to {setting.high}")
            assert default == ("none" if setting.default is None else f"`{setting.default}`")


# ------------------------------------------------------------------------------------ the sample


@dataclass
class Line:
    """A line of the sample: a header or a setting (`name`) of a table, or prose (`table` None)."""

    text: str
    table: str | None = None
    name: str = ""
    example: bool = False


def lines() -> Iterator[Line]:
    """The sample's lines, read as an operator reads them."""
    table = before = ""
    for text in SAMPLE.read_text().splitlines():
        if header := re.fullmatch(r"#?\[+([\w.]+)\]+", text):
            table = header[1]
            yield Line(text, table)
        elif entry := re.fullmatch(r"#?(\w+) = .*", text):
            yield Line(text, table, entry[1], before.endswith("For example:"))
        else:
            yield Line(text)
        before = text


def uncommented(*tables: str, examples: bool = False, without: str = "") -> str:
    """The sample with the settings of some tables in force, but for one."""

    def chosen(line: Line) -> bool:
        here = line.table is not None and line.table.partition(".")[0] in tables
        return here and (examples or not line.example) and not (without and line.name == without)

    return "\n".join(line.text.removeprefix("#") if chosen(line) else line.text for line in lines())


def read(text: str, key_file: Path) -> Config:
    """The configuration that a text gives; its files are the key, which is there."""
    for path in ("/etc/nfq-failover/witness-key", "/etc/nfq-failover/fence-password"):
        text = text.replace(path, str(key_file))
    return parse({"key_file": str(key_file)} | tomllib.loads(text.replace("/etc/nfq-failover/key", str(key_file))))


def test_the_sample_as_it_is_has_all_defaults(key_file: Path) -> None:
    table = tomllib.loads(SAMPLE.read_text())
    required = {name: {one.name for one in schema.settings(name) if one.required} for name in ("", "peer")}
    assert table.keys() == required[""] | {"peer"}
    assert table["peer"][0].keys() == required["peer"]
    settings = read(SAMPLE.read_text(), key_file).settings
    chosen = {name: getattr(settings, name) for name in ("name", "service", "ports", "peers", "key")}
    assert settings == configured.settings(has_fence=False, **chosen)  # it has to be configured


def test_what_is_commented_out_is_the_default(key_file: Path) -> None:
    shown = 0
    for line in lines():
        if line.text.startswith("#") and line.name and not line.example and "." not in (line.table or ""):
            setting = schema.find(line.name, line.table or "")
            if not setting.required:
                assert tomllib.loads(line.text[1:]) == {setting.name: setting.default}
                shown += 1
    defaults = [one for table in TABLES for one in schema.settings(table) if one.default not in (None, ())]
    assert shown == len(defaults)
    everything = uncommented(*set(TABLES) - OPTIONAL)
    assert everything.count("\n#") < SAMPLE.read_text().count("\n#") - 40
    assert read(everything, key_file) == read(SAMPLE.read_text(), key_file)


@pytest.mark.parametrize("table", TABLES)
def test_examples_are_valid(table: str, key_file: Path) -> None:
    """All of a table at once; of a fence either the agent or the command."""
    config = read(uncommented(table, examples=True, without="command" if table == "fence" else ""), key_file)
    assert (config != read(SAMPLE.read_text(), key_file)) is any(
        setting.example is not None and not setting.required for setting in schema.settings(table)
    ) or table in OPTIONAL


# ------------------------------------------------------------------------------------ the other pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_setting_that_is_not_there(page: Path) -> None:
    text = page.read_text()
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for name, value in tomllib.loads(block).items():
            assert name in schema.names()
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    assert set(part) <= set(schema.names(name))
    known = {name for table in TABLES for name in schema.names(table)}
    for name in re.findall(r"`(\w+) = (?:\"[^`]*\"|\[[^`]*\]|[\d_]+|true|false)`", text):
        assert name in known
    for table in re.findall(r"`\[+(\w+)\]+", text):
        assert table in TABLES
    stores = bounds.limits(configured.settings()).keys()
    for name in re.findall(r"`(\w+_(?:ms|bytes))`", text):
        assert name in known | stores | {"unres_qlen_bytes"}, "which is the kernel's"
