"""`nfq-failover doctor`: the command. What it looks at is in the modules beside, which are loaded when it runs."""

from __future__ import annotations

import argparse
from typing import Any, Final

from nfq_failover.operator.daemon import add_command

_EPILOG: Final = """\
Run it on either host, whether the daemon runs or not. It changes nothing. Each finding says what is wrong, why it
matters and what to do.

exit code: 0 nothing but warnings, which are advice; 1 something keeps the protection from holding, or limits it
(degraded, unprotected); 2 not all could be looked at, or the configuration is wrong
"""


def add_parser(subparsers: Any) -> None:
    """Add the command `doctor`."""
    parser = add_command(
        subparsers,
        "doctor",
        "what stands between this host and a takeover that works, and how to mend it",
        _run,
        _EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--facts", action="store_true", help="print how this host is set up, for --compare there, and look at nothing"
    )
    parser.add_argument(
        "--compare", metavar="FILE", help="what --facts has printed on the other host ('-': the standard input)"
    )


def _run(args: argparse.Namespace) -> int:
    from nfq_failover.operator.doctor import command

    return command.run(args)
