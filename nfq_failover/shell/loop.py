"""The event loop's wait: readable descriptors, and a deadline. It knows nothing of what they belong to."""

from __future__ import annotations

import contextlib
import math
import select
from collections.abc import Callable

Reader = Callable[[], None]


class Loop:
    """Descriptors with their readers, and the time at which the next wait has to end.

    A wake-up is two calls, `wait` and `serve`, so that the owner can do what must come first in between.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._readers: dict[int, Reader | None] = {}
        self._fresh: set[int] = set()
        self._deadline = math.inf

    def watch(self, fd: int, reader: Reader | None = None) -> None:
        """Have `serve` call `reader` when `fd` is readable; without a reader it only ends the wait."""
        self._readers[fd] = reader
        self._fresh.add(fd)
        self._poll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, which may be closed already."""
        del self._readers[fd]
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)

    def deadline(self, at: float) -> None:
        """Let the next wait end at `at`, in seconds of the monotonic clock, or at an earlier deadline."""
        if at < self._deadline:
            self._deadline = at

    def wait(self, now: float, longest_s: float = math.inf) -> list[int]:
        """Wait until a descriptor is readable, or the deadline has come, or `longest_s` have passed.

        Returns the descriptors that are readable.
        """
        wait_s = min(max(self._deadline - now, 0.0), longest_s)
        self._deadline = math.inf
        self._fresh.clear()
        return [fd for fd, _ in self._poll.poll(None if wait_s == math.inf else wait_s)]

    def serve(self, readable: list[int]) -> None:
        """Call the readers of what `wait` returned.

        A reader may close descriptors and open others, and the kernel gives the lowest free number: what has been
        watched since the wait is another descriptor, about which the wait has said nothing.
        """
        for fd in readable:
            reader = self._readers.get(fd)
            if reader is not None and fd not in self._fresh:
                reader()

    def close(self) -> None:
        """Release the kernel's poll object. Can be repeated."""
        self._poll.close()
