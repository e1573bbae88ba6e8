"""The epoch record on disk: in which epoch this host last took part, and as what."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from pathlib import Path
from queue import SimpleQueue

from nfq_failover.core.events import EpochStored
from nfq_failover.errors import ConfigError
from nfq_failover.shell.privileged.files import plain
from nfq_failover.shell.privileged.rights import hold_nothing

CLOSE_WAIT_S = 5.0


class EpochStore:
    """Reads once, writes durably in a thread; `fileno()` is readable when `finished()` has answers."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, in a directory that exists."""
        self.path = path
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders: SimpleQueue[tuple[int, str] | None] = SimpleQueue()
        self._done: deque[EpochStored] = deque()
        # One thread, so that records reach the disk in the order in which they were given.
        self._writer = threading.Thread(target=self._work, name="epoch-store", daemon=True)
        self._writer.start()

    def load(self) -> tuple[int, bool]:
        """Returns (epoch, whether this host served in it); (0, False) if there is no record. Raises `ConfigError`."""
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            epoch, role = record["epoch"], record["role"]
            if type(epoch) is not int or epoch < 0 or role not in ("primary", "backup"):
                raise ValueError(f"epoch {epoch!r}, role {role!r}")
        except FileNotFoundError:
            return 0, False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the epoch record {plain(self.path)} can't be read ({error}). If the peer serves now, or holds a "
                "record of its own, remove this one: this host then joins as the backup. Never remove both hosts' "
                "records at once"
            ) from None
        return epoch, role == "primary"

    def store(self, epoch: int, role: str) -> None:
        """Begin to write; the answer comes with `finished`."""
        self._orders.put((epoch, role))

    def _work(self) -> None:
        hold_nothing()
        # Ends: with the daemon, in a thread.
        while (order := self._orders.get()) is not None:
            epoch, role = order
            try:
                self._write(epoch, role)
                answer = EpochStored(epoch, True)
            except OSError as error:
                answer = EpochStored(epoch, False, str(error))
            self._done.append(answer)
            os.eventfd_write(self._event, 1)

    def _write(self, epoch: int, role: str) -> None:
        temporary = self.path.with_suffix(".new")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"epoch": epoch, "role": role}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def fileno(self) -> int:
        """The descriptor, readable when there are answers."""
        return self._event

    def finished(self) -> list[EpochStored]:
        """Returns the answers that have come since the last call."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        answers = []
        # Ends: each turn takes one out.
        while self._done:
            answers.append(self._done.popleft())
        return answers

    def close(self) -> None:
        """Write what was ordered, and close. Can be repeated."""
        if self._event < 0:
            return
        self._orders.put(None)
        self._writer.join(CLOSE_WAIT_S)
        if not self._writer.is_alive():  # else the disk hangs; the thread still needs the descriptor, the exit frees it
            os.close(self._event)
        self._event = -1
