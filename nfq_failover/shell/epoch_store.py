"""The epoch record on disk: which service period this host last took part in, and as what."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from pathlib import Path

from nfq_failover.core.events import EpochStored
from nfq_failover.errors import ConfigError


class EpochStore:
    """Reads once, writes durably in a thread; `fileno()` is readable when `finished()` has answers."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, in a directory that exists."""
        self.path = path
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._done: deque[EpochStored] = deque()
        self._lock = threading.Lock()

    def load(self) -> tuple[int, bool]:
        """(epoch, whether this host served in it); (0, False) if there is no record. Raises `ConfigError`."""
        try:
            record = json.loads(self.path.read_text())
            epoch, role = record["epoch"], record["role"]
            if not isinstance(epoch, int) or epoch < 0 or role not in ("primary", "backup"):
                raise ValueError("bad values")
        except FileNotFoundError:
            return 0, False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"epoch record {self.path} can't be read ({error}): if this host must not have served last, remove it; "
                "else restore it from the peer's (it holds the epoch and the role)"
            ) from None
        return epoch, role == "primary"

    def store(self, epoch: int, role: str) -> None:
        """Begin to write; the answer comes with `finished`."""
        threading.Thread(target=self._write, args=(epoch, role), daemon=True).start()

    def _write(self, epoch: int, role: str) -> None:
        answer = EpochStored(epoch, True)
        try:
            with self._lock:
                temporary = self.path.with_suffix(".new")
                with open(temporary, "w") as file:
                    json.dump({"epoch": epoch, "role": role}, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
                directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
        except OSError as error:
            answer = EpochStored(epoch, False, str(error))
        self._done.append(answer)
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """Readable when there are answers."""
        return self._event

    def finished(self) -> list[EpochStored]:
        """The answers so far."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        answers = []
        while self._done:
            answers.append(self._done.popleft())
        return answers

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._event)
