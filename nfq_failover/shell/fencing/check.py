"""Whether the fence could do its work: its program can be started, and an agent reaches the device and knows the plug.

Nothing is turned off. The privileged helper does this now and then, since it alone may see the program and its secrets.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.settings import Peer
from nfq_failover.shell.fencing.agent import AGENT_OFF, AGENT_ON, FenceProgram

_HEAD_BYTES: Final = 256  # BINPRM_BUF_SIZE: the kernel looks no further for an interpreter
ON, OFF, UNKNOWN = "on", "off", ""


def fault(plan: FencePlan) -> str:
    """Returns why the plan's program can't be started, '' if it can, as far as can be seen without doing so."""
    program = plan.command[0]
    found = shutil.which(program) if "/" not in program else program
    if found is None:
        return f"there is no program '{program}' in PATH"
    path = Path(found)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{path} is no file"
        if not os.access(path, os.X_OK):
            return f"{path} is not executable: run 'chmod +x {path}', and see that its file system allows that"
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not head.startswith(b"#!"):
        return "" if b"\0" in head else f"{path} has no '#!' line, so it can't be started"
    words = head[2:].split(b"\n")[0].decode(errors="replace").split()
    if not words or not os.access(words[0], os.X_OK):
        return f"{path} wants the interpreter '{' '.join(words)}', which can't be started"
    if Path(words[0]).name == "env":
        names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if names and shutil.which(names[0]) is None:
            return f"{path} wants '{names[0]}', which is not in PATH"
    return ""


class RunningCheck:
    """An agent's answer under way: wait on `fileno()` or for `deadline` (monotonic), then call `finish`."""

    def __init__(self, plan: FencePlan, peer: Peer, deadline_ms: int) -> None:
        """Ask for the status, or where that is never believed, whether the device is there. Raises OSError."""
        self.deadline = time.monotonic() + deadline_ms / 1000
        self._plan = plan
        self._program = FenceProgram(plan, peer, "status" if plan.verify else "monitor")

    def fileno(self) -> int:
        """The descriptor, readable when the agent has answered."""
        return self._program.fileno()

    def finish(self) -> tuple[bool, str]:
        """Returns (whether it could fence, what it says: `ON`, `OFF`, `UNKNOWN`, or what is wrong). One that still runs
        is killed."""
        code, said = self._program.finish()
        if code is None:
            return False, "the fence agent does not answer within the fence deadline"
        if not self._plan.verify and code == 0:
            return True, UNKNOWN
        if self._plan.verify and code in (AGENT_ON, AGENT_OFF):
            return True, ON if code == AGENT_ON else OFF
        return False, f"the fence agent fails with exit code {code}: {said or 'it says nothing'}"
