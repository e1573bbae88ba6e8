"""The end of the server's stream: our FIN or RST is held until the replica has ended at the same byte.

A server process that dies is closed by its kernel: to a client that looks like the end of the stream. So the host that
serves holds the FIN (the data before it goes out) or the RST, and asks the backup again and again for its replica's
end:

- the replica has ended at the same byte: the end goes out, newly built;
- it has sent more, or has not ended although it has everything and is alive: our application has failed;
- it has sent less, or taken less: it is slow, and given more time, as long as it moves (core/gate/pace.py);
- it has ended earlier: the replica has failed.

Two resets confirm each other wherever they are: what a reset throws away depends on the moment. The other way round, a
replica that ends first waits for our server to follow. Time counts only while the backup answers, so that a pause of
either host is not taken for an application that goes on.

An RST that only answers a client's segment (RFC 9293 section 3.10.7.1) says no more than that our TCP has forgotten the
connection. That may be since its process has died: Linux says so no other way if there was unsent data, and the client
goes on to send. Or the client has reset it, and the replica, which has not got that yet, has gone on: then nobody has
failed, and the connection is given up at most. Which of them it is the copies of the client's segments tell.
"""

from __future__ import annotations

from enum import Enum, auto

from nfq_failover.core.gate.own_tcp import SETTLE_S
from nfq_failover.wire.records import End, EndKind
from nfq_failover.wire.seqnum import diff

ASK_MAX_S = 0.1  # the backup is asked at least this often
ANSWER_GAP_S = 2 * ASK_MAX_S  # the most that one answer counts for
SLOW_FACTOR = 10  # a replica that is behind has this many times the deadline


class Judgement(Enum):
    """What follows from the two ends."""

    WAIT = auto()
    SAME = auto()  # both have ended
    APPLICATION_FAILED = auto()  # ours
    REPLICA_FAILED = auto()


class EndGate:
    """Knows both ends of one connection, as far as the host that serves can.

    `kind`, `at`: our server's end that is held, and its sequence number (as the client sees it). `bare`: we know it
    only by RSTs that answer the client. `passed`: the end is confirmed, nothing is held any more. `failures`: how many
    answers of the backup have said that our application has failed. `still_s`, `waited_s`: for how long the backup has
    answered the same, and at all. `ended_at`: when we learnt that the replica has ended.
    """

    __slots__ = (
        "answered_at",
        "at",
        "bare",
        "ended_at",
        "failures",
        "kind",
        "passed",
        "replica",
        "still_s",
        "waited_s",
    )

    def __init__(self, now: float) -> None:
        self.kind = EndKind.OPEN
        self.at = 0
        self.bare = True
        self.passed = False
        self.failures = 0
        self.replica: End | None = None
        self.answered_at = now
        self.ended_at: float | None = None
        self.still_s = self.waited_s = 0.0

    @property
    def held(self) -> bool:
        """Whether our server has ended and the client does not know."""
        return self.kind is not EndKind.OPEN and not self.passed

    def hold(self, kind: EndKind, at: int, now: float, bare: bool = False) -> None:
        """Our server has ended. An RST after a FIN is one at the same byte. `bare`: it only answers the client."""
        self.bare = self.bare and bare
        if self.kind is EndKind.OPEN:
            self.at = at
            self.answered_at = now
            self.still_s = self.waited_s = 0.0
        self.kind = max(self.kind, kind)

    def confirm(self) -> None:
        """The end may be told to the client."""
        self.passed = True

    def count_failure(self) -> int:
        """Another answer says that our application has failed. Returns how many have."""
        self.failures += 1
        return self.failures

    def answered(self, record: End, now: float) -> None:
        """The backup has told where its replica is."""
        gap = min(max(now - self.answered_at, 0.0), ANSWER_GAP_S)
        self.answered_at = now
        self.waited_s += gap
        before = self.replica
        still = before is not None and (record.seq, record.taken, record.kind) == (
            before.seq,
            before.taken,
            before.kind,
        )
        self.still_s = self.still_s + gap if still else 0.0
        if self.ended_at is None and record.kind is not EndKind.OPEN:
            self.ended_at = now
        self.replica = record

    @property
    def _copies_wait(self) -> bool:
        """Whether the client's reset may be among the copies that were not read so far."""
        return self.bare and self.waited_s < SETTLE_S

    def stands_still(self, seconds: float) -> bool:
        """Whether an end is held for a replica that has not moved for so long, nor ended."""
        return self.held and self.still_s >= seconds and (self.replica is None or self.replica.kind is EndKind.OPEN)

    def judge(
        self,
        next_seq: int,
        taken_seq: int,
        deadline_s: float,
        alive: bool = True,
        hangs: bool = False,
        client_reset: bool = False,
    ) -> Judgement:
        """Compare the two ends. `next_seq`: what our server sends next; `taken_seq`: the client's byte that our TCP
        takes next; `alive`: our application has shown that it is, since the replica has ended; `hangs`: no replica of
        this service seems to go on; `client_reset`: so have the copies of what the client sends said until now."""
        replica = self.replica
        if replica is None or self.passed:
            return Judgement.WAIT
        ended = replica.kind is not EndKind.OPEN
        ahead = diff(replica.seq, self.at if self.held else next_seq)
        if not self.held:
            if not ended:
                return Judgement.WAIT
            limit = deadline_s if ahead == 0 else SLOW_FACTOR * deadline_s
            late = self.waited_s >= limit and alive  # if ours hangs, it is our server that has failed
            return Judgement.REPLICA_FAILED if ahead < 0 or late else Judgement.WAIT
        if ended:
            if ahead == 0 or replica.kind is self.kind is EndKind.RST:
                return Judgement.SAME
            if ahead < 0 or (self.bare and client_reset):
                return Judgement.REPLICA_FAILED
            return Judgement.WAIT if self._copies_wait else Judgement.APPLICATION_FAILED
        if self.bare and client_reset:
            return Judgement.REPLICA_FAILED if self.waited_s >= SLOW_FACTOR * deadline_s else Judgement.WAIT
        if ahead > 0:
            return Judgement.WAIT if self._copies_wait else Judgement.APPLICATION_FAILED
        if ahead < 0 or diff(replica.taken, taken_seq) < 0:
            slow = max(self.still_s, self.waited_s / 2) >= SLOW_FACTOR * deadline_s
            return Judgement.REPLICA_FAILED if slow else Judgement.WAIT
        # The kernel of a replica that hangs takes everything, too: the replica must have shown that it is alive.
        failed = self.still_s >= deadline_s and replica.well and not hangs
        return Judgement.APPLICATION_FAILED if failed else Judgement.WAIT
