"""Whether this host could have been heard, and could have heard: only then does the silence of its peer say anything.

A host that has lost its own address for a second hears nothing, and may have a link that is up. So the shell watches
what this host needs to talk to its peer (`told`), and looks again when the peer is silent (`asked`). After anything was
wrong, silence counts only when all has been well for a detection time: by then a peer that lives has been heard.
"""

from __future__ import annotations

from math import inf

from nfq_failover.core.settings import Settings


class Reach:
    """What is known of our own way to the peer. Times are seconds of our monotonic clock.

    `detail` says what is wrong with it, and is empty if nothing is. `waiting`: a check has been ordered, and not
    answered yet.
    """

    def __init__(self, settings: Settings) -> None:
        self._proof_s = settings.detection_ms / 1000
        self._told = self._asked = ""
        self._since = -inf  # nothing has been wrong since then
        self.waiting = self.passed = False

    @property
    def detail(self) -> str:
        """What is wrong now."""
        return self._told or self._asked

    @property
    def watched_from(self) -> float:
        """From when on silence counts, as far as is seen without a check; infinite while something is wrong."""
        return inf if self._told else self._since + self._proof_s

    @property
    def counts_from(self) -> float:
        """From when on silence says something of the peer; infinite while something is wrong."""
        return inf if self._asked else self.watched_from

    def told(self, ok: bool, detail: str, now: float) -> None:
        """Note what the shell sees all the time: that we can talk to the peer, as far as we alone can know, or not."""
        before, self._told = self._told, "" if ok else detail or "cut off"
        if not ok:
            self.passed = False
        elif before:
            self._since = now

    def heard(self) -> None:
        """Forget what a check has found: the peer is heard."""
        self._asked = ""

    def again(self) -> None:
        """Order a check."""
        self.waiting, self.passed = True, False

    def asked(self, ok: bool, detail: str, now: float) -> None:
        """Note the answer to a check."""
        before, self._asked = self._asked, "" if ok else detail or "cut off"
        self.waiting, self.passed = False, ok
        if before and ok:
            self._since = now
