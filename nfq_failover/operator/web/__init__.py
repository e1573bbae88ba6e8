"""`nfq-failover web`: the command. The server and its page are beside; they are loaded when it runs."""

from __future__ import annotations

import argparse
from typing import Any, Final

from nfq_failover.operator.daemon import add_command

DEFAULT_LISTEN: Final = "127.0.0.1:9767"
_EPILOG: Final = """\
It asks the daemon of this host and changes nothing:

  /             a page for people
  /metrics      for Prometheus
  /status.json  all of it

It is a process of its own, so that nothing that speaks HTTP is in the way of a packet. It listens on loopback alone;
from elsewhere: ssh -L 9767:127.0.0.1:9767 HOST
"""


def add_parser(subparsers: Any) -> None:
    """Add the command `web`."""
    parser = add_command(
        subparsers, "web", "a read-only page of this host, and its metrics, on loopback", _run, _EPILOG
    )
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="ADDRESS:PORT", help=f"({DEFAULT_LISTEN})")


def _run(args: argparse.Namespace) -> int:
    from nfq_failover.operator.web import server

    return server.run(args)
