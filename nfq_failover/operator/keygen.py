"""`nfq-failover keygen`: the key that two hosts share."""

from __future__ import annotations

import argparse
import os
import secrets
from pathlib import Path
from typing import Any

from nfq_failover.errors import CommandError


def add_parser(subparsers: Any) -> None:
    """Add the command `keygen`."""
    about = "make a key file"
    parser = subparsers.add_parser("keygen", help=about, description=about)
    parser.set_defaults(run=keygen)
    parser.add_argument("file", type=Path)


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
