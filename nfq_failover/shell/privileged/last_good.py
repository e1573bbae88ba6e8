"""A copy of the configuration that was right last: a restart goes on with it while the file itself is wrong.

systemd ends a daemon before it starts the next one, and asks nobody whether that could start. So the next one must not
fail for a typo. Root alone makes the copy, and it is read only where nobody else could have put another one.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from nfq_failover.config import Config, parse_text, read_text
from nfq_failover.errors import ConfigError
from nfq_failover.shell.privileged import reread


def load_and_keep(file: Path, last_good: Path) -> tuple[Config, str]:
    """Read the configuration and keep a copy, or go on with the copy of the one before if the file is wrong: `wrong`
    says so, and the rest is as if it had been read from the file. Returns also why no copy could be kept, or "".

    Raises `ConfigError`, of the file, if there is no copy that is right either.
    """
    try:
        text = read_text(file)
        config = parse_text(text, str(file), file.stat().st_mode)
    except ConfigError as error:
        try:
            text, mode = reread.content(last_good)
            config = parse_text(text, str(file), mode)
        except ConfigError:
            raise error from None
        return replace(config, last_good=last_good, wrong=error.faults), ""
    return replace(config, last_good=last_good), keep(text, last_good)


def keep(text: str, last_good: Path) -> str:
    """Keep the text of a file that was found right. Returns why that could not be done, "" if it is done."""
    made = last_good.with_name(f"{last_good.name}.new")
    try:
        last_good.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.unlink(missing_ok=True)
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(text.encode())
        made.rename(last_good)
    except OSError as error:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        return f"no copy of the configuration can be kept in {last_good} ({error.strerror}): a restart finds none"
    return ""
