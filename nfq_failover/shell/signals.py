"""Signals that must not end a daemon or one of its helpers: SIGHUP, SIGUSR1 and SIGUSR2.

By default each of them ends a process. Between its start and the moment when it has handlers of its own, a helper is
kept from them by its parent (`kept_back`): what a process blocks its children block from their first instruction on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

HARMLESS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def kept_back() -> Iterator[None]:
    """Start a process that takes these signals only once it has called `survive`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HARMLESS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def survive(heard: Callable[[int], None] = lambda number: None) -> None:
    """Outlive these signals from now on, and call `heard` with the number of each. Only in the main thread.

    Not by ignoring them: programs that this process starts would ignore them, too.
    """
    for number in HARMLESS:
        signal.signal(number, lambda number, frame: heard(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HARMLESS)
