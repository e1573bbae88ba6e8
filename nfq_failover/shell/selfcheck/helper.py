"""The privileged helper: alive, not only there, and able to run a fence and the rules script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.shell.privileged.client import HelperClient, Pending
from nfq_failover.shell.privileged.requests import Ping
from nfq_failover.shell.selfcheck.checks import CHEAP_S

HUNG_S: Final = 3.0  # a helper that has a script to start, on a busy host, answers sooner
NEEDED: Final = 16  # descriptors for a fence and a rules script at the same time


class HelperAlive:
    """Asks the helper for a sign of life, one question at a time."""

    name = "helper"
    every_s = CHEAP_S

    def __init__(self, helper: HelperClient) -> None:
        self._helper = helper
        self._asked: tuple[Pending, float] | None = None

    def run(self, now: float) -> list[Concern] | None:
        """See `Check`."""
        if self._asked is None:
            self._asked = (self._helper.ask(Ping()), now)
        pending, since = self._asked
        if pending.reply is None:
            return None if now - since < HUNG_S else [_hung(self._helper.process.pid, now - since)]
        reply = pending.reply
        pending.close()
        self._asked = None
        if reply.status:
            what = f"the privileged helper can't be asked: {reply.said}"
            return [Concern("helper-hangs", Weight.UNPROTECTED, what, "restart nfq-failover on this host")]
        return few_descriptors("the privileged helper", int(reply.said))


def _hung(pid: int, seconds: float) -> Concern:
    what = f"the privileged helper (process {pid}) has not answered for more than {HUNG_S:.0f} s"
    cure = f"see what it waits for (/proc/{pid}/wchan, a SIGSTOP?); restart nfq-failover on this host"
    del seconds  # it grows: the text must not change with it
    return Concern("helper-hangs", Weight.UNPROTECTED, what, cure)


def few_descriptors(who: str, left: int) -> list[Concern]:
    """What follows from the number of descriptors that a process can still open."""
    if left >= NEEDED:
        return []
    code = "few-descriptors-helper" if "helper" in who else "few-descriptors"
    what = f"{who} can open no more than {left} descriptors"
    return [Concern(code, Weight.UNPROTECTED, what, "raise its limit (LimitNOFILE=, prlimit --nofile), or restart it")]


class Descriptors:
    """The daemon's own: a takeover opens a few. `left` says how many it still can."""

    name = "descriptors"
    every_s = CHEAP_S

    def __init__(self, left: Callable[[], int]) -> None:
        self._left = left

    def run(self, now: float) -> list[Concern]:
        """See `Check`."""
        del now
        return few_descriptors("the daemon", self._left())
