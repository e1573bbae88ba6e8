"""The fence: its program can be started, and an agent reaches its device and knows the peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.shell.fencing.check import OFF
from nfq_failover.shell.privileged.client import HelperClient, Pending
from nfq_failover.shell.privileged.requests import CheckFence
from nfq_failover.shell.selfcheck.checks import DEAR_S

AGAIN_S: Final = 10.0  # after a failure, so that a fence that was mended is soon known to be
GRACE_S: Final = 1.0


class FenceReady:
    """Has the helper check the fence of one peer, now and then. `heard()`: the peer is there, so it can't be off."""

    name = "fence"

    def __init__(self, helper: HelperClient, peer: str, deadline_ms: int, heard: Callable[[], bool]) -> None:
        self.every_s = DEAR_S
        self._helper = helper
        self._order = CheckFence(peer, deadline_ms)
        self._heard = heard
        self._asked: tuple[Pending, float] | None = None

    def run(self, now: float) -> list[Concern] | None:
        """See `Check`."""
        if self._asked is None:
            self._asked = (self._helper.ask(self._order), now)
        pending, since = self._asked
        if pending.reply is None and now - since < self._order.deadline_ms / 1000 + GRACE_S:
            return None
        reply, self._asked = pending.reply, None
        pending.close()
        if reply is None:
            found = self._useless("the privileged helper does not say whether the fence works")
        elif reply.status:
            found = self._useless(reply.said)
        elif reply.said == OFF and self._heard():
            what = f"the fence agent says that {self._order.peer} is off, but it is heard: it controls another machine"
            found = self._useless(what)
        else:
            found = []
        self.every_s = AGAIN_S if found else DEAR_S
        return found

    def _useless(self, what: str) -> list[Concern]:
        cure = "see that 'fence' names a program that root can start and, for an agent, that its device answers "
        cure += "(nfq-failover check-config --fence-status)"
        return [Concern("fence-fails", Weight.UNPROTECTED, f"the fence would fail: {what}", cure, Part.BACKUP)]
