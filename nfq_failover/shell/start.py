"""What a daemon claims for itself before it touches the host: its directory, its instance, its sync socket."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from nfq_failover.errors import CommandError

UDP_RCVBUF = 16 << 20
_SO_RCVBUFFORCE = 33


def take_locks(directory: Path, instance: str, undo: list[Callable[[], object]]) -> None:
    """One daemon per state directory, and per instance in a network namespace. Raises `CommandError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"can't use the state directory {directory} ({error}): check 'state_dir'") from None
    undo.append(lambda: os.close(lock))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"another daemon already uses {directory}: stop it first") from None
    # An abstract socket belongs to a network namespace: two daemons there would fight for the same rules.
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    undo.append(name.close)
    try:
        name.bind(f"\0nfq-failover/{instance}")
    except OSError:
        raise CommandError(
            f"another daemon of instance '{instance}' runs here: stop it, or set another 'instance'"
        ) from None


def sync_socket(listen: tuple[str, int]) -> socket.socket:
    """The socket of the sync channel. Raises `CommandError`."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, UDP_RCVBUF)
        udp.setblocking(False)
        udp.bind(listen)
    except OSError as error:
        udp.close()
        host, port = listen
        raise CommandError(f"can't listen on {host}:{port} ({error.strerror}): check 'listen'") from None
    return udp
