"""`nfq-failover reload`: have the running daemon take over what has changed in its configuration."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from nfq_failover.errors import CommandError, ConfigError
from nfq_failover.operator.daemon import add_command, ask_daemon

_WAIT_S: Final = 60.0  # for rules: a script gets 30 s
_LOOK_S: Final = 0.05
_UNCHANGED: Final = "nothing has changed: the daemon goes on as it was"
_EPILOG: Final = """\
The file is checked first. If anything is wrong with it, nothing changes, and the daemon goes on as it was.

exit code: 0 all that has changed was applied, or takes a restart, which is said; 1 nothing has changed, since the file
is wrong; 2 no daemon
"""


def add_parser(subparsers: Any) -> None:
    """Add the command `reload`."""
    parser = add_command(
        subparsers, "reload", "take over what has changed in the configuration, without a restart", run, _EPILOG
    )
    parser.add_argument("--json", action="store_true", help="what has come of it, as JSON")


def run(args: argparse.Namespace) -> int:
    """Reload and say what has come of it. Returns the exit code. Raises `CommandError`, `ConfigError`."""
    try:
        number = ask_daemon(args, "reload")["number"]
    except ConfigError as error:  # not even where the daemon is can be told
        print(error, file=sys.stderr)
        print(_UNCHANGED, file=sys.stderr)
        return 1
    give_up = time.monotonic() + _WAIT_S
    outcome = ask_daemon(args, "reload", number=number)
    while not outcome["done"]:
        if time.monotonic() >= give_up:
            raise CommandError(f"the daemon has not finished within {_WAIT_S:.0f} s: 'nfq-failover status' shows why")
        time.sleep(_LOOK_S)
        outcome = ask_daemon(args, "reload", number=number)
    if args.json:
        print(json.dumps(outcome, indent=2))
    else:
        _tell(outcome)
    return 0 if outcome["ok"] else 1


def _tell(outcome: dict[str, Any]) -> None:
    for fault in outcome.get("errors", ()):
        place = f"{fault['file']}:{fault['line']}: " if fault["line"] else ""
        table = f"{fault['table']}: " if fault["table"] else ""
        print(f"{place}{table}{fault['what']}", file=sys.stderr)
    if not outcome["ok"]:
        print(_UNCHANGED, file=sys.stderr)
        return
    for change in outcome["applied"]:
        print(f"applied: {change['name']}: {change['before']} -> {change['after']}")
    for change in outcome["restart"]:
        print(f"takes a restart: {change['name']}: {change['before']} -> {change['after']}")
    if not outcome["applied"] and not outcome["restart"]:
        print("nothing has changed in the file")
    if outcome.get("waiting"):
        print(f"note: {outcome['waiting']}")
    for problem in outcome.get("problems", ()):
        print(f"warning: {problem}")
