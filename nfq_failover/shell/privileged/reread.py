"""The helper reads the configuration again, as root, and decides what of it may change.

The daemon asks for that and has no say in it: neither in which file is read, nor in what is taken from it. It could not
read the file itself, since keys and secrets are root's. So that nobody else can have root run another command, the file
has to be root's, and nobody else's to write or to replace.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path

from nfq_failover.config import Config, parse_text
from nfq_failover.config.differences import Differences, compare
from nfq_failover.errors import ConfigError

MAX_BYTES = 1 << 20


def fingerprint(key: bytes) -> bytes:
    """By which a key is known again, and can't be found out."""
    return blake2s(key, person=b"nfqfkeyd").digest()


@dataclass(frozen=True, slots=True)
class Known:
    """What the helper goes by: the configuration in force without its keys, and their fingerprints."""

    config: Config
    key: bytes
    witness_key: bytes

    def reread(self) -> tuple[Differences, str]:
        """Read the file again. Returns what may change, and its text. Raises `ConfigError`."""
        text, mode = content(Path(self.config.file))
        new = parse_text(text, self.config.file, mode)
        witness = b"" if new.witness is None else fingerprint(new.witness.key)
        same_witness = not witness or not self.witness_key or witness == self.witness_key
        same_key = fingerprint(new.settings.key) == self.key
        return compare(self.config, new, same_key=same_key, same_witness_key=same_witness), text


def content(path: Path) -> tuple[str, int]:
    """The text and the mode of a file that is root's alone. Raises `ConfigError`."""
    try:
        place = path.resolve(strict=True)
        _refuse_foreign(place)
        data, found = _content(place)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return text, found.st_mode


def _content(path: Path) -> tuple[bytes, os.stat_result]:
    """What is in a file, up to one byte more than it may have. Waits for nobody. Raises `ConfigError`, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is not a file")
        _refuse_writable(path, found)
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1), found
    finally:
        os.close(fd)


def _refuse_foreign(path: Path) -> None:
    """Refuse a file in a place where somebody else could put another one. Raises `ConfigError`, OSError."""
    for directory in path.parents:
        found = directory.stat()
        if found.st_mode & stat.S_ISVTX and found.st_uid in (0, os.geteuid()):
            continue  # what is root's in there stays
        _refuse_writable(directory, found)


def _refuse_writable(path: Path, found: os.stat_result) -> None:
    """Refuse what somebody else than root could change. Raises `ConfigError`."""
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to user {found.st_uid}, and a reload takes what is root's: run 'chown root'")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path} can be written by others (mode {mode:03o}): run 'chmod go-w {path}'")
