"""`nfq-failover check-config`: is the configuration file right, what does it say, and what does a setting mean?"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from nfq_failover.errors import CommandError, ConfigError, Fault
from nfq_failover.operator.daemon import SETTINGS, add_command

if TYPE_CHECKING:
    from nfq_failover.config import Config
    from nfq_failover.config.schema import Section, Setting

_EPILOG: Final = f"""\
examples:
  nfq-failover check-config                              all that is wrong, each with its line
  nfq-failover check-config --strict                     for a unit or a pipeline: warnings count, too
  nfq-failover check-config --explain heartbeat_count    what a setting means
  nfq-failover check-config --explain peer.port          the one of a table

exit code: 0 right, 1 with --strict: right, but with warnings, 2 wrong

{SETTINGS}"""


def add_parser(subparsers: Any) -> None:
    """Add the command `check-config`."""
    parser = add_command(subparsers, "check-config", "check the configuration file", run, _EPILOG)
    parser.add_argument("--strict", action="store_true", help="exit code 1 if there are warnings")
    parser.add_argument("--json", action="store_true", help="what was found, as JSON")
    parser.add_argument("--explain", metavar="KEY", help="what a setting means, its values, and whether a reload does")
    parser.add_argument("--fence-status", action="store_true", help="ask the fence agent whether the peer is on")


@dataclass(frozen=True, slots=True)
class Findings:
    """What the check has found: `errors` and `warnings` in the order of the file, and what the file `says`."""

    file: str
    errors: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()
    says: tuple[str, ...] = ()

    def code(self, strict: bool) -> int:
        """The exit code."""
        return 2 if self.errors else 1 if strict and self.warnings else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "file": self.file,
            "right": not self.errors,
            "errors": [_as_dict(fault) for fault in self.errors],
            "warnings": [_as_dict(fault) for fault in self.warnings],
            "says": list(self.says),
        }


def _as_dict(fault: Fault) -> dict[str, Any]:
    return {**asdict(fault), "line": fault.line or None}


def run(args: argparse.Namespace) -> int:
    """Print what the configuration says, and all that is wrong with it or doubtful. Returns the exit code."""
    if args.explain:
        return explain(args.explain, args.json)
    found = check(args)
    if args.json:
        print(json.dumps(found.as_dict(), indent=2))
        return found.code(args.strict)
    for fault in found.errors:
        print(fault, file=sys.stderr)
    for line in found.says:
        print(line)
    for fault in found.warnings:
        print(f"warning: {fault if fault.line else fault.what}")
    return found.code(args.strict)


def check(args: argparse.Namespace) -> Findings:
    """Look at the file that the arguments name."""
    from nfq_failover.config import doubts, parse_text, read_text  # not for --help
    from nfq_failover.config.places import Places
    from nfq_failover.shell.fencing import metadata

    file = str(args.config)
    try:
        text = read_text(args.config)
        config = parse_text(text, file, args.config.stat().st_mode)
    except ConfigError as error:
        return Findings(file, error.faults)
    places = Places(text)
    warnings = [
        replace(fault, file=file, line=places.line(fault.table, fault.setting), table="") for fault in doubts(config)
    ]
    warnings += [Fault(what, file, places.line("", "fence")) for what in metadata.advice(config.fence)]
    try:
        says = _says(file, config)
    except CommandError as error:  # there is no such user
        line = places.line("privileges", "user")
        return Findings(file, (Fault(str(error), file, line, "[privileges]", "user"),), tuple(warnings))
    if args.fence_status:
        says += [metadata.status(config.fence, peer) for peer in config.settings.peers]
    return Findings(file, (), tuple(warnings), tuple(says))


def _says(file: str, config: Config) -> list[str]:
    """What the file says, in a few words. Raises `CommandError` if there is no such user."""
    from nfq_failover.shell.privileged.account import DEFAULT_USER, account
    from nfq_failover.shell.privileged.rights import DAEMON

    settings = config.settings
    peers = ", ".join(f"{peer.name} at {peer.address}:{peer.port}" for peer in settings.peers)
    fence = f"fence: {' '.join(config.fence.command)}" if config.fence else "no fence"
    if config.witness:
        fence += f"; witness at {config.witness.address[0]}:{config.witness.address[1]}"
    says = [
        f"{file}: right. {settings.name} serves {config.service} with {peers}; tap {config.tap}.",
        f"detection {settings.detection_ms} ms; {fence}.",
    ]
    who = account(config)
    if who is not None:
        note = f" (there is no user '{DEFAULT_USER}': make one, to have it alone)" if who.fallback else ""
        rights = " and ".join(sorted(DAEMON))
        says.append(f"after its start the daemon is user {who.name}, uid {who.uid}, with {rights}{note}.")
    return says


# ------------------------------------------------------------------------------------ what a setting means


def explain(key: str, as_json: bool = False) -> int:
    """Print what is declared of a setting, `NAME` or `TABLE.NAME`. Returns the exit code. Raises `CommandError`."""
    from nfq_failover.config.schema import SECTIONS  # not for --help

    table, _, name = key.strip("[]").rpartition(".")
    declared = [(section, setting) for section in SECTIONS for setting in section.settings]
    found = [pair for pair in declared if pair[1].name == name and (not table or pair[0].table == table)]
    if not found:
        known = {_full_name(*pair) for pair in declared} | {setting.name for _, setting in declared}
        near = difflib.get_close_matches(key, sorted(known), 3)
        meant = f"did you mean {' or '.join(near)}?" if near else "docs/operate/configuration.md has them all"
        raise CommandError(f"there is no setting '{key}': {meant}")
    if as_json:
        print(json.dumps([_declaration(*pair) for pair in found], indent=2))
    else:
        print("\n\n".join(_explanation(*pair) for pair in found))
    return 0


def _full_name(section: Section, setting: Setting) -> str:
    return f"{section.table}.{setting.name}" if section.table else setting.name


def _declaration(section: Section, setting: Setting) -> dict[str, Any]:
    return {
        "name": setting.name,
        "table": section.table,
        "kind": setting.kind.value,
        "choices": list(setting.choices),
        "low": setting.low if setting.low < setting.high else None,
        "high": setting.high if setting.low < setting.high else None,
        "unit": setting.unit or None,
        "required": setting.required,
        "default": setting.default,
        "change": setting.change.value,
        "text": setting.text,
    }


def _explanation(section: Section, setting: Setting) -> str:
    from nfq_failover.config.reference import accepts, default_of

    unit = f" {setting.unit}" if setting.unit else ""
    where = f"in {section.header}" if section.table else "at the top level, above the first table"
    return "\n".join(
        (
            f"{setting.name}, {where}",
            f"  {setting.text.replace('`', '')}",
            f"  value:    {accepts(setting).replace('`', '')}{unit}",
            f"  default:  {default_of(setting).replace('`', '')}",
            f"  a change: {setting.change.about}",
        )
    )
