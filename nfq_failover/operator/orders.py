"""`nfq-failover replica-is-whole` and `leave`: what an operator tells a daemon to do."""

from __future__ import annotations

import argparse
from typing import Any

from nfq_failover.operator.daemon import add_config_option, ask_daemon


def add_parsers(subparsers: Any) -> None:
    """Add the commands `leave` and `replica-is-whole`."""
    for name, about, run in (
        ("leave", "end the daemon for good: hand the service over, or end it", leave),
        ("replica-is-whole", "the backup's application has the server's state, I say so: protect again", whole),
    ):
        parser = subparsers.add_parser(name, help=about, description=about)
        parser.set_defaults(run=run)
        add_config_option(parser)


def whole(args: argparse.Namespace) -> int:
    """Say that the replica's application has the same state as the server's. Returns the exit code."""
    print(f"{ask_daemon(args, 'replica-is-whole')['state']}: said; 'nfq-failover status' shows what comes of it")
    return 0


def leave(args: argparse.Namespace) -> int:
    """End the daemon for good. Returns the exit code."""
    print(f"{ask_daemon(args, 'leave')['state']} -> leaving")
    return 0
