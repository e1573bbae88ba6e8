"""How an operator's command finds the daemon of this host, and asks it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_CONFIG = Path("/etc/nfq-failover/config.toml")

SETTINGS = """\
Every setting, with bounds and default: docs/operate/configuration.md, or as a file to copy:
python -m nfq_failover.config.reference --sample
"""


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command needs which concerns a daemon."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"configuration file ({DEFAULT_CONFIG})")


def ask_daemon(args: argparse.Namespace, command: str, **more: Any) -> dict[str, Any]:
    """Ask the daemon of the configuration that is meant. Raises `CommandError`, `ConfigError`."""
    from nfq_failover.config import state_dir  # not for --help
    from nfq_failover.shell.control import ask

    return ask(state_dir(args.config) / "control.sock", command, **more)
