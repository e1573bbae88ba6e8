"""`nfq-failover claim`: the one order that can make two hosts serve at once, so it says what is known, and asks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.operator.daemon import add_command, ask_daemon

_EPILOG: Final = """\
examples:
  nfq-failover claim           shows what this host believes of the other one, and asks
  nfq-failover claim --yes     for scripts that have turned the other host off themselves

exit code: 0 this host serves or is about to, 1 nothing has come of it, or the answer was no, 2 no daemon, or refused
"""


def add_parser(subparsers: Any) -> None:
    """Add the command `claim`."""
    parser = add_command(subparsers, "claim", "the other host is off, I say so: let this one serve", run, _EPILOG)
    parser.add_argument("--yes", action="store_true", help="the other host is off: don't ask")


def run(args: argparse.Namespace) -> int:
    """Say that the other host is off. Returns the exit code: 1 if nothing has come of it."""
    status = ask_daemon(args, "status")
    for line in beliefs(status):
        print(line)
    if not args.yes and not _confirmed(status["peer"]["name"]):
        print("nothing was claimed")
        return 1
    answer = ask_daemon(args, "claim")
    print(f"{answer['before']} -> {answer['state']}")
    return 0 if answer["before"] != answer["state"] else 1


def beliefs(status: dict[str, Any]) -> Iterator[str]:
    """What this host knows of the other one, and what follows if that one serves all the same."""
    peer = status["peer"]
    reason = f": {status['reason']}" if status["reason"] else ""
    yield f"{status['name']} is {status['role']} ({status['membership']}){reason}"
    yield f"{peer['name']} at {peer['address']}: {_heard(peer)}"
    yield (
        f"If {peer['name']} runs and serves, both hosts answer for the same address: connections break, and the two "
        "applications go separate ways. Turn it off first."
    )


def _heard(peer: dict[str, Any]) -> str:
    silent_ms = peer["heartbeat"]["silent_ms"]
    if silent_ms is None:
        return "never heard since this daemon's start, which does not mean that it is off"
    said = f"it said last that it is {peer['said']}" if peer["said"] else "it has said nothing of itself"
    if not peer["lost"]:
        return f"HEARD, so it is not off; {said}"
    return f"silent for {silent_ms / 1000:.1f} s, which does not mean that it is off; {said}"


def _confirmed(peer: str) -> bool:
    """Ask the person at the terminal. Raises `CommandError` if there is none."""
    if not sys.stdin.isatty():
        raise CommandError(f"nobody is there to be asked whether {peer} is off: use 'nfq-failover claim --yes'")
    try:
        return input(f"Is {peer} off? Type 'yes' to serve here: ").strip().lower() == "yes"
    except EOFError:
        print()
        return False
