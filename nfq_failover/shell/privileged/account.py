"""The user that the daemon becomes, by its configuration."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from typing import Final

from nfq_failover.config import Config
from nfq_failover.errors import CommandError
from nfq_failover.shell.privileged.rights import NUMBERS

FALLBACK_USER: Final = "nobody"
DEFAULT_USER: Final = "nfq-failover"


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a process becomes."""

    name: str
    uid: int
    gid: int
    fallback: bool = False  # no user was named, and the one that is meant for it does not exist


def account(config: Config) -> Account | None:
    """Returns the user that the daemon will be, None if it stays root. Raises `CommandError` for an impossible user."""
    wanted = config.privileges
    if not wanted.drop:
        return None
    name = wanted.user or DEFAULT_USER
    fallback = False
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if wanted.user is not None:
            raise CommandError(
                f"there is no user '{name}': make one (useradd --system {name}), or correct 'user' in [privileges]"
            ) from None
        fallback = True
        try:
            entry = pwd.getpwnam(FALLBACK_USER)
        except KeyError:
            raise CommandError(f"make a user for the daemon: useradd --system {DEFAULT_USER}") from None
    for capability in wanted.fence_capabilities:
        if capability not in NUMBERS:
            raise CommandError(f"there is no capability {capability}: correct 'fence_capabilities' in [privileges]")
    if not entry.pw_uid or not entry.pw_gid:
        raise CommandError(f"the user '{name}' has root's rights: name another in [privileges], or set drop = false")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, fallback)
