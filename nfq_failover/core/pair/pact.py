"""The pact of a pair: who has the right to act alone, where a witness decides between the two hosts.

While the backup stands ready to continue the connections, the two hold a pact: a number that the primary proposes and
the backup says back. A host of a pact acts alone (the backup takes over, the primary releases what the backup has not
confirmed) only when the witness has granted it that pact, and the witness grants a pact to one host only. As long as
nothing is decided it takes both: a primary is heard only as long as the backup's votes last (its lease).

- A vote is a heartbeat of a backup that follows. It counts from the moment when we sent the heartbeat that it echoes,
  by our own clock, so that neither delays nor differing clocks can lengthen a lease.
- A backup that begins to ask has stopped voting. It outlasts the primary's lease, reckoned from the latest heartbeat
  that it can have echoed, with a margin for clocks that run at different rates.
- A primary that has asked and is then reunited with its backup proposes a new pact, since the witness may have decided
  the old one. Until the backup has said the new one back it may hold either, so the primary asks for both at once
  (`low`, `high`).
- A primary leaves a pact only by a grant, or when its backup says (or has proved) that it has given the pact up.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from nfq_failover.core.settings import Settings

CLOCK_MARGIN = 1.05  # both clocks off by 2 %, in opposite directions: 1.02 / 0.98, and a little more
OUTLAST_MARGIN_S = 0.02  # from the last look at the clock to the packet on the wire
ASK_EVERY_S = 0.05
ASK_AFTER = 2 / 3  # of the lease: a shorter silence of the backup is no cause to decide anything
HEAD_START_S = 0.1  # a backup that can't act before the lease has ended asks no earlier than this before
_EPOCH_SHIFT = 32
_PER_S = 10  # an epoch has room for 13 years of uptime; a daemon needs longer than 0.1 s to come back and be joined


@dataclass(frozen=True, slots=True)
class PactStatus:
    """A pact, for people. `pact` is the highest number that the backup may hold; 0: there is none."""

    pact: int
    confirmed: bool
    asked: bool
    granted: bool


class Pact:
    """The pact as one of the two hosts knows it. Times are of our monotonic clock. Without a witness none is ever held.

    `low`, `high`: the numbers that the backup may hold (both the same on the backup; 0: none). `confirmed`: the backup
    has said `high` back. `lease_until`: when the primary has to fall silent.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.low = self.high = 0
        self.confirmed = self.asked = self.granted = False
        self.lease_until = inf
        self._last = 0
        self._lease_s = settings.lease_ms / 1000  # the longer one of both hosts'
        self._vote = -inf
        self._next_ask = 0.0
        self._outlast_at = inf

    @property
    def held(self) -> bool:
        """Whether there is a pact, so that nobody may act alone without a grant."""
        return self.high != 0

    def status(self) -> PactStatus | None:
        """How it stands, for people; None without a witness."""
        if not self.settings.has_witness:
            return None
        return PactStatus(self.high, self.confirmed, self.asked, self.granted)

    def end(self) -> None:
        """End the pact. Whoever was granted it keeps the right."""
        self.low = self.high = 0
        self.confirmed = self.asked = False
        self.lease_until = inf

    def void(self) -> None:
        """Forget pact and grant: another generation begins, with another pact."""
        self.end()
        self.granted = False

    # ------------------------------------------------------------------------------------ primary

    def propose(self, epoch: int, now: float) -> None:
        """Propose a pact for a new generation, of which nobody holds an earlier one. The clock, which goes on while a
        daemon is away, tells the pacts of its lives in one epoch apart: the witness may have decided an earlier one."""
        if self.settings.has_witness:
            self._last = self.low = self.high = max(self._last + 1, (epoch << _EPOCH_SHIFT) + int(now * _PER_S))
            self.confirmed = self.asked = self.granted = False

    def reunited(self) -> None:
        """Propose another pact to the backup that is there again, if the witness may have decided the present one."""
        if self.asked:
            self.high = self._last = self._last + 1
            self.confirmed = self.asked = self.granted = False

    def said_back(self, number: int) -> None:
        """Note that the backup holds this one."""
        if number and number == self.high:
            self.low, self.confirmed = number, True

    def vote(self, echoed: float, now: float) -> None:
        """Count a vote: the backup follows, and had received what we sent at `echoed` when it said so."""
        self._vote = max(self._vote, min(echoed, now))

    def renew(self) -> None:
        """Let the lease last as long as the votes do."""
        self.lease_until = self._vote + self.settings.lease_ms / 1000 if self.held else inf

    # ------------------------------------------------------------------------------------ backup

    def adopt(self, number: int, lease_ms: int) -> None:
        """Adopt pact and lease of a primary that protects. What was asked or granted for another pact is void."""
        self._lease_s = max(lease_ms, self.settings.lease_ms) / 1000
        if self.settings.has_witness and number and number != self.high:
            self.low = self.high = number
            self.asked = self.granted = False

    def ask_from(self, heard: float) -> float:
        """When to begin to ask, without a fence: a primary that lives has asked before then, and goes on."""
        return heard + self._lease_s - HEAD_START_S

    def outlast(self, heard: float) -> None:
        """Stop voting. `heard`: when we last heard the primary."""
        self._outlast_at = heard + self._lease_s * CLOCK_MARGIN + OUTLAST_MARGIN_S

    def outlasted(self, now: float) -> bool:
        """Whether the primary's lease has ended, and we may act."""
        return self.granted and now >= self._outlast_at

    def lift_lease(self) -> None:
        """Let no lease run: this host does not serve protected connections."""
        self.lease_until = inf

    # ------------------------------------------------------------------------------------ the witness

    def answered(self, granted: bool) -> None:
        """Take the witness's decision on the pact that we asked for."""
        self.granted = granted

    def ask(self, now: float) -> bool:
        """Whether it is time to ask (again)."""
        if not self.held or self.granted or now < self._next_ask:
            return False
        if now < self._vote + ASK_AFTER * self.settings.lease_ms / 1000:
            return False
        self._next_ask = now + ASK_EVERY_S
        self.asked = True
        return True
