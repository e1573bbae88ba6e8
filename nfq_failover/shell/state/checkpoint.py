"""What outlives the daemon, but not the host: the checkpoint (core/shadow/checkpoint.py), in a file that is held in
memory.

A write is one `pwrite`: when it returns, the bytes are the kernel's, and no death of this process takes them back. They
are gone with the next boot, as the connections are.
"""

from __future__ import annotations

import contextlib
import os
import socket
from hashlib import blake2s
from pathlib import Path

import structlog

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.shadow.checkpoint import Checkpoint, read_checkpoint
from nfq_failover.errors import CommandError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/thread-self/ns/net")
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h; never used twice in one boot, unlike the inode of a namespace

_READ_BYTES = 1 << 20

log = structlog.get_logger()


def network_namespace() -> str:
    """A name for this network namespace, unique in this boot where the kernel can tell (Linux 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            return s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8).hex()
        except OSError:
            return str(_NETNS.stat().st_ino)


class CheckpointStore:
    """One file for each instance and network namespace. `life` is what tells this boot from all others."""

    def __init__(self, directory: Path, instance: str) -> None:
        """Raises `CommandError` if the file can't be made."""
        namespace = network_namespace()
        self.path = directory / f"{instance}-{namespace}.translations"
        self.life = blake2s(f"{_BOOT_ID.read_text().strip()} {namespace}".encode()).digest()
        self.broken = False
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An empty one is what a start has left that was refused later on, before anything was written.
            self.existed = self.path.exists() and self.path.stat().st_size > 0
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommandError(f"can't use the run directory {directory} ({error}): check 'run_dir'") from None

    def load(self, lived: bool) -> Checkpoint | None:
        """What an earlier life on this boot has left; None if this is the first. `lived`: others know of one."""
        if not self.existed:
            return Checkpoint("it is missing") if lived else None
        try:
            return read_checkpoint(self._read(), self.life)
        except OSError as error:
            return Checkpoint(f"it can't be read: {error}")

    def _read(self) -> bytes:
        """By the descriptor: whoever has opened it may have given up the right to."""
        parts: list[bytes] = []
        at = 0
        # Ends: the file has an end.
        while part := os.pread(self._fd, _READ_BYTES, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def write(self, writes: tuple[tuple[int, bytes], ...]) -> None:
        """Write all, in order. A checkpoint that can't be kept up to date is made unreadable: the next life must not go
        on with what is no longer true."""
        if self.broken:
            return
        try:
            for at, data in writes:
                os.pwrite(self._fd, data, at)
        except OSError as error:
            self.broken = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            log.error(
                "connections that were taken over will not survive a restart of the daemon",
                file=str(self.path),
                error=str(error),
            )

    def concerns(self, now: float) -> list[Concern]:
        """What is wrong with it."""
        del now
        if not self.broken:
            return []
        what = f"{self.path} can't be written: connections that were taken over end when the daemon restarts"
        cure = "make room in 'run_dir', then restart nfq-failover"
        return [Concern("checkpoint-broken", Weight.DEGRADED, what, cure)]

    def close(self) -> None:
        """The file stays. Repeatable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
