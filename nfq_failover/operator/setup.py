"""`nfq-failover keygen` and `check-config`: what comes before the first start of a daemon."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError
from nfq_failover.operator.daemon import SETTINGS, add_config_option


def add_parsers(subparsers: Any) -> None:
    """Add the commands `keygen` and `check-config`."""
    about = "make a key file"
    parser = subparsers.add_parser("keygen", help=about, description=about)
    parser.set_defaults(run=keygen)
    parser.add_argument("file", type=Path)
    about = "check the configuration file"
    parser = subparsers.add_parser("check-config", help=about, description=about, epilog=SETTINGS)
    parser.set_defaults(run=check_config)
    add_config_option(parser)
    parser.add_argument("--fence-status", action="store_true", help="ask the fence agent whether the peer is on")


def keygen(args: argparse.Namespace) -> int:
    """Make a key file that only its owner can read. Returns the exit code. Raises `CommandError`."""
    try:
        fd = os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandError(f"{args.file} exists already: remove it first if you really want a new key") from None
    except FileNotFoundError:
        raise CommandError(f"there is no directory {args.file.parent}: make it first") from None
    except OSError as error:
        raise CommandError(f"{args.file}: {error.strerror}") from None
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    print(f"wrote {args.file}; copy it to the other host, mode 600")
    return 0


def check_config(args: argparse.Namespace) -> int:
    """Print what the configuration says, and what is doubtful about it. Returns the exit code. Raises `ConfigError`."""
    from nfq_failover.config import advice, load  # not for --help
    from nfq_failover.shell.fencing import metadata
    from nfq_failover.shell.privileged.account import DEFAULT_USER, account
    from nfq_failover.shell.privileged.rights import DAEMON

    config = load(args.config)
    s = config.settings
    peers = ", ".join(f"{p.name} at {p.address}:{p.port}" for p in s.peers)
    print(f"{args.config}: right. {s.name} serves {config.service} with {peers}; tap {config.tap}.")
    print(
        f"detection {s.detection_ms} ms; {'fence: ' + ' '.join(config.fence.command) if config.fence else 'no fence'}."
    )
    who = account(config)
    if who is not None:
        note = f" (there is no user '{DEFAULT_USER}': make one, to have it alone)" if who.fallback else ""
        print(
            f"after its start the daemon is user {who.name}, uid {who.uid}, with {' and '.join(sorted(DAEMON))}{note}."
        )
    for sentence in [*advice(config), *metadata.advice(config.fence)]:
        print(f"warning: {sentence}")
    if args.fence_status:
        for peer in s.peers:
            print(metadata.status(config.fence, peer))
    return 0
