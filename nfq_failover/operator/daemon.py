"""How an operator's command finds the daemon of this host, and asks it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError

DEFAULT_CONFIG = Path("/etc/nfq-failover/config.toml")

SETTINGS = """\
Every setting, with bounds and default: docs/operate/configuration.md, or as a file to copy:
python -m nfq_failover.config.reference --sample
"""


def add_command(
    subparsers: Any, name: str, about: str, run: Callable[[argparse.Namespace], int], epilog: str
) -> argparse.ArgumentParser:
    """Add a command that concerns a daemon, with the option that all of them have. `epilog` is shown as it is."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=about, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    add_config_option(parser)
    return parser


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command needs which concerns a daemon."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"configuration file ({DEFAULT_CONFIG})")


def ask_daemon(args: argparse.Namespace, command: str, **more: Any) -> dict[str, Any]:
    """Ask the daemon of the configuration that is meant. Raises `CommandError`, `ConfigError`.

    Who is not root is answered as a member of the status group.
    """
    from nfq_failover.config import state_dir  # not for --help
    from nfq_failover.shell.control import ask

    path = _status_socket() if os.geteuid() else state_dir(args.config) / "control.sock"
    return ask(path, command, **more)


def _status_socket() -> Path:
    """The socket of this host's daemon for members of the status group."""
    from nfq_failover.config import schema
    from nfq_failover.shell.control import status_directory

    directory = status_directory(Path(schema.find("run_dir").default))
    path = directory / f"{schema.find('instance').default}.sock"
    if not os.access(path, os.W_OK):
        raise CommandError(
            "only root, and the members of 'status_group', may ask: run this as root, or set 'status_group' in "
            "[privileges] and become a member of that group"
        )
    return path
