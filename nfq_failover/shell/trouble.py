"""What a daemon does about its own bugs, and when it can only end at once."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import structlog

ALARM_SPACING_S = 0.1
EXIT_NO_HELPER = 70  # EX_SOFTWARE of sysexits.h
EXIT_NO_MEMORY = 71  # EX_OSERR
NO_HELPER = "the privileged helper has ended: so does the daemon, as if it had been killed"
NO_MEMORY = "no memory: the daemon ends here, as if it had been killed"
_lines = {text: f"nfq-failover: {text}\n".encode() for text in (NO_HELPER, NO_MEMORY)}

log = structlog.get_logger()


class Alarms:
    """Counts internal errors (`count`) and logs them; of a flood not every one."""

    def __init__(self) -> None:
        self.count = 0
        self._next = 0.0

    def report(self, error: Exception, during: str, packet: bytes | bytearray = b"") -> None:
        """Our own bug has shown itself while we did `during`, with `packet` if it was about one."""
        self.count += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + ALARM_SPACING_S
        frames = reversed(traceback.extract_tb(error.__traceback__)[-4:])
        log.error(
            "internal error",
            error=repr(error),
            during=during,
            count=self.count,
            where=" < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames),
            packet=packet[:200].hex(),
        )


def prepare_last_words(line: Callable[[str], bytes]) -> None:
    """Have the last words ready, each as the `line` that the log makes of it: there will be no memory to make one."""
    for text in _lines:
        _lines[text] = line(text)


def out_of_memory() -> NoReturn:
    """End the process at once: whatever was under way is half done, and nothing of it may go out.

    That is as good as killed: a protected host is succeeded by its backup, an unprotected one goes on by its rules, and
    the next daemon goes on by the checkpoint.
    """
    os.write(2, _lines[NO_MEMORY])
    os._exit(EXIT_NO_MEMORY)


def helper_gone() -> NoReturn:
    """End the process at once: without its helper nothing can be put in order, so nothing is. As good as killed."""
    os.write(2, _lines[NO_HELPER])
    os._exit(EXIT_NO_HELPER)
