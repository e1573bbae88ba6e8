"""Up to when a queue has been read, while it never becomes empty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_HALF: Final = 1 << 31  # packets are numbered modulo 2^32


class ReadProgress:
    """A mark is the number of the latest packet in the queue, and the time when that was asked. Once it has been read,
    so has everything that had come by then.

    `read_until`: the time of the latest mark that was passed; None: nothing waits.
    """

    def __init__(self) -> None:
        self.read_until: float | None = None
        self._empty_at = time.monotonic()
        self._mark: tuple[int, float] | None = None

    @property
    def behind_ms(self) -> int:
        """How late packets are read."""
        return 0 if self.read_until is None else round(1000 * (time.monotonic() - self.read_until))

    def emptied(self, at: float) -> None:
        """There was nothing more, `at` some moment of the monotonic clock."""
        self.read_until = self._mark = None
        self._empty_at = at

    def filled(self, packet_id: int, last_id: Callable[[], int | None]) -> None:
        """A turn has read up to `packet_id`, and there may be more. `last_id()`: the number of the latest packet in the
        queue, which costs a system call; None if nobody knows, and then we know nothing either."""
        mark = self._mark
        if mark is not None and (packet_id - mark[0]) & 0xFFFFFFFF < _HALF:
            self.read_until, mark = mark[1], None
        elif self.read_until is None:
            self.read_until = self._empty_at
        if mark is None:
            now, latest = time.monotonic(), last_id()
            if latest is None:
                self.read_until = None
            else:
                mark = latest, now
        self._mark = mark
