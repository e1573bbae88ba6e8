"""How many descriptors this process could still open."""

from __future__ import annotations

import contextlib
import os
import resource


def left() -> int:
    """Returns how many more there may be; it takes one for the moment of the question."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
    except OSError:
        return 0
    return max(limit - used, 0)


def as_many_as_possible() -> None:
    """Lift the limit as far as this process may."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
