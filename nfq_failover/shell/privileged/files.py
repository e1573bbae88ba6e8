"""Who owns the files of the daemon: what it may replace, and what stays root's alone."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.shell.privileged.account import Account

_HANDED_OVER: Final = ("epoch.json", "epoch.new", "host.json", "host.new", "control.sock")


def via(directory: int, name: str) -> Path:
    """Returns a path, for this process, to a file in an open directory; needs no right to the directories above it."""
    return Path(f"/proc/self/fd/{directory}/{name}")


def plain(path: Path) -> Path:
    """Returns where a path made by `via` leads, for people."""
    if path.is_relative_to("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return path.parent.readlink() / path.name
    return path


def hand_over(directory: int, who: Account | None) -> None:
    """Let a user work in root's directory (a descriptor), and own what it replaces there; None: only root does.

    The directory stays root's, with the sticky bit: what root has put there (the lock, the rules' records) can't be
    renamed or replaced by the user. Raises OSError.
    """
    uid, gid = (who.uid, who.gid) if who else (0, 0)
    for name in _HANDED_OVER:
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            continue
        try:
            found = os.fstat(fd)
            # Neither a symbolic link nor another name of somebody's file is given away.
            plain = (stat.S_ISREG(found.st_mode) and found.st_nlink == 1) or stat.S_ISSOCK(found.st_mode)
            if plain and found.st_uid != uid:
                os.chown(f"/proc/self/fd/{fd}", uid, gid)
        finally:
            os.close(fd)
    had = os.fstat(directory)
    if (had.st_uid, had.st_gid) != (0, gid):
        os.fchown(directory, 0, gid)
    mode = 0o1770 if who else 0o700
    if stat.S_IMODE(had.st_mode) != mode:
        os.fchmod(directory, mode)


def roots_own(directory: Path) -> None:
    """Make the directory, or check that it is root's and only root can write there. Raises `CommandError`."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise CommandError(
            f"{directory} is not a directory that only root can write to: move it away, then start again"
        )
