"""An orderly end: the signals that end a program become one exception."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE: Final = 130


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came. Not an Exception, so that only a `finally` and the top level meet it."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first such signal raises Interrupted in the main thread; later ones don't disturb the cleaning up."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    for number in _SIGNALS:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
