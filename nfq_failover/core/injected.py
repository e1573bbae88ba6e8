"""The segments that the daemon has sent to clients itself, so that it knows one of them when it comes back.

They carry the daemon's mark, and the rules let what carries it pass. But a mark can be overwritten by any other rule of
the host, and then such a segment lands in the queue, among those of our TCP. It is in the client's numbers; taken for
our TCP's output it would put wrong bytes into the stream. So each is remembered for a while by its length, its
addresses and its whole TCP header, whose checksum stands for the data. A segment of our TCP that is equal in all of
these says nothing that the client has not been sent. Of a SYN-ACK the checksum and the options do not count: a rule
that clamps the MSS changes them.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.constants import SYN
from nfq_failover.core.concerns import Concern, Concerns, Weight

KEEP_S: Final = 5.0
"""How long one is known at least: as long as a packet may wait in queues, ours or another program's."""
MAX_OF_AN_AGE: Final = 1 << 17
MAX_INJECTED: Final = 2 * MAX_OF_AN_AGE
"""How many are kept; a queue holds far fewer."""
MANY: Final = 32
"""So many within `KEEP_S` are no accident: now and then our TCP itself says what was sent for it before, such as the
RST that answers what came too late."""
QUIET_S: Final = 60.0
CODE: Final = "mark-overwritten"
_SOURCE: Final = "packets"
_WINDOW_END: Final = 36
_CONCERN: Final = Concern(
    CODE,
    Weight.WARNING,
    "packets that the daemon sends come back to it: a rule of this host overwrites their mark; they are known and let "
    "pass, which costs time",
    "give the rules that set packet marks a mask without the daemon's bit ('mark'), or accept the service's packets "
    "before them",
)


class Injected:
    """What was sent lately. Two ages of hashes: when the younger is `KEEP_S` old, the older is forgotten."""

    __slots__ = ("_concerns", "_next_age", "_old", "_returned", "_returned_at", "_young")

    def __init__(self, concerns: Concerns) -> None:
        self._concerns = concerns
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._next_age: float | None = None
        self._returned_at: float | None = None
        self._returned = 0  # in this age

    def note(self, packet: bytes | bytearray) -> None:
        """Remember an IPv4 packet without IP options that is sent now."""
        if len(self._young) >= MAX_OF_AN_AGE:
            self._old, self._young = self._young, set()
        self._young.add(_key(packet))

    def knows(self, packet: bytes | bytearray) -> bool:
        """Whether a TCP packet is one of them."""
        key = _key(packet)
        return key in self._young or key in self._old

    def forget(self) -> None:
        """This host falls silent: nothing that it has sent may leave any more."""
        self._young.clear()
        self._old.clear()

    def returned(self, now: float) -> None:
        """One has come back."""
        self._returned += 1
        if self._returned < MANY:
            return
        self._returned_at = now
        self._concerns.raised(_SOURCE, _CONCERN, now)

    def on_timer(self, paused: bool, now: float) -> None:
        """Let time pass. `paused`: this host has not run for a while, nor have its queues been read."""
        if self._next_age is None or paused:
            self._next_age = now + KEEP_S
        elif now >= self._next_age:
            self._next_age = now + KEEP_S
            self._returned = 0
            self._old, self._young = self._young, set()
        if self._returned_at is not None and now - self._returned_at >= QUIET_S:
            self._returned_at = None
            self._concerns.over(_SOURCE, CODE, now)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def _key(packet: bytes | bytearray) -> int:
    """A hash of what makes a packet known again."""
    stop = _WINDOW_END if packet[33] & SYN else 20 + (packet[32] >> 4 << 2)
    return hash(bytes(packet[12:stop])) ^ (packet[2] << 8 | packet[3])
