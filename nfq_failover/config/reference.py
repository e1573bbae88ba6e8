"""Writes what the declaration of the settings says as a page of the docs, and as a sample of the file.

python -m nfq_failover.config.reference              check that both are what this would write
python -m nfq_failover.config.reference --write      write them
python -m nfq_failover.config.reference --sample     print the sample, where there are no docs
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nfq_failover.config.schema import SECTIONS, Kind, Section, Setting

DIRECTORY: Final = Path(__file__).parents[2] / "docs" / "operate"
COMMAND: Final = "python -m nfq_failover.config.reference --write"
_WIDTH: Final = 100

_PAGE: Final = f"""\
# Configuration

<!-- Made by `{COMMAND}` from nfq_failover/config/schema.py. -->

The file is `/etc/nfq-failover/config.toml`, in [TOML](https://toml.io). `nfq-failover check-config` says all that is
wrong with it, each with its line, and warns of what is allowed but hardly meant (`--strict`: exit code 1 then);
`nfq-failover check-config --explain NAME` has the rows below for the terminal.
[`config.toml.sample`](config.toml.sample) has all of this as a file to copy. Settings of the top level come before the
first table. An unknown setting is refused.

A daemon reads the file when it starts, and when it is told to (`nfq-failover reload`, `systemctl reload nfq-failover`,
or SIGHUP: [reload](reload.md)). The column "change" says what that applies. *reload*: any other value. *reload: more*:
ports that are added, a number that is raised. *reload: another*: another one of what was there before. *restart*: the
peer or the kernel has been told the value, or what is under way rests on it, so a reload says that it takes a restart
([failures](failures.md) has what clients see meanwhile).
"""

_SAMPLE: Final = f"""\
# A sample of /etc/nfq-failover/config.toml: every setting with its default.
# Made by `{COMMAND}`.
#
# What is not commented out must be set. `#name = value` is a default, unless it says "for example". Take the table of
# something optional, such as [health], into use by removing the # before it. Settings of the top level come before the
# first table. `nfq-failover check-config` checks the file; docs/operate/configuration.md has the same as a page.
"""


def toml(setting: Setting, value: Any) -> str:
    """A value as it is written in a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if setting.kind is Kind.MASK:
        return f"{value:#x}"
    if isinstance(value, int):
        return str(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# ------------------------------------------------------------------------------------ the page


def page() -> str:
    """The reference page."""
    return "\n".join([_PAGE, *(_section(section) for section in SECTIONS)])


def _section(section: Section) -> str:
    title = f"`{section.header}`: {section.title[0].lower()}{section.title[1:]}" if section.table else section.title
    lines = [f"## {title}", "", *([section.text, ""] if section.text else [])]
    lines += ["| setting | value | unit | default | change | what it does |", "|---|---|---|---|---|---|"]
    for setting in section.settings:
        cells = (
            f"`{setting.name}`",
            accepts(setting),
            setting.unit,
            default_of(setting),
            setting.change.value,
            setting.text.replace("{peer}", "`{peer}`").replace("{address}", "`{address}`"),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def accepts(setting: Setting) -> str:
    """What may stand there, in words; without the unit."""
    if setting.kind is Kind.CHOICE:
        return ", ".join(f'`"{choice}"`' for choice in setting.choices)
    return f"{setting.kind.value}, {bounds(setting)}" if bounds(setting) else f"{setting.kind.value}"


def bounds(setting: Setting) -> str:
    """The bounds of a number in words; "" for anything else."""
    if setting.kind not in (Kind.NUMBER, Kind.MASK):
        return ""
    return f"{toml(setting, setting.low)} to {toml(setting, setting.high)}"


def default_of(setting: Setting) -> str:
    """The default, in words."""
    if setting.required:
        return "must be set"
    return "none" if setting.default is None else f"`{toml(setting, setting.default)}`"


# ------------------------------------------------------------------------------------ the sample


def sample() -> str:
    """The sample file."""
    return "\n".join([_SAMPLE, *(_part(section) for section in SECTIONS)])


def _part(section: Section) -> str:
    rule = f"# {'-' * 20} {section.title} "
    lines = [rule.ljust(_WIDTH, "-"), *_prose(section.text), ""]
    if section.header:
        lines[-1:] = [("" if section.many else "#") + section.header, ""]
    for setting in section.settings:
        example = ["# For example:"] if _is_example(setting) else []
        lines += [*_prose(_explained(setting)), *example, *_entry(section, setting), ""]
    return "\n".join(lines)


def _explained(setting: Setting) -> str:
    text = setting.text
    if setting.kind is Kind.CHOICE:
        text += f" One of {', '.join(json.dumps(choice) for choice in setting.choices)}."
    elif bounds(setting):
        text += f" {bounds(setting)}{' ' + setting.unit if setting.unit else ''}."
    elif setting.kind not in (Kind.FLAG, Kind.FENCE, Kind.AGENT):
        text += f" {setting.kind.value[0].upper()}{setting.kind.value[1:]}."
    return text


def _is_example(setting: Setting) -> bool:
    return not setting.required and setting.default in (None, ())


def _entry(section: Section, setting: Setting) -> list[str]:
    value = setting.example if setting.required or _is_example(setting) else setting.default
    if isinstance(value, dict):  # a table of its own
        entries = [f"#{name} = {json.dumps(text)}" for name, text in value.items()]
        return [f"#[{section.table}.{setting.name}]", *entries]
    needed = setting.required and not section.optional
    return [f"{'' if needed else '#'}{setting.name} = {toml(setting, value)}"]


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text.replace("`", ""), _WIDTH, initial_indent="# ", subsequent_indent="# ")


# ------------------------------------------------------------------------------------ the files


def files() -> dict[Path, str]:
    """What belongs into which file."""
    return {DIRECTORY / "configuration.md": page(), DIRECTORY / "config.toml.sample": sample()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, write or print. Returns the exit code: 1 if a file is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m nfq_failover.config.reference", description=__doc__)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", action="store_true", help="write page and sample into the docs")
    group.add_argument("--sample", action="store_true", help="print the sample")
    chosen = parser.parse_args(arguments)
    if chosen.sample:
        print(sample(), end="")
        return 0
    outdated = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in outdated:
        if chosen.write:
            path.write_text(files()[path])
        print(f"{path}: {'written' if chosen.write else f'not up to date: {COMMAND}'}")
    return 1 if outdated and not chosen.write else 0


if __name__ == "__main__":
    sys.exit(main())
