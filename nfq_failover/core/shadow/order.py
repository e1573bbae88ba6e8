"""The order in which a client has heard and spoken: what it says after an answer is not for a replica that has still to
give this answer.

`Order` is one connection's. It costs nothing as long as the replica is not behind what the client acknowledges.
"""

from __future__ import annotations

from typing import Final

from nfq_failover.core.tcp.heard import Heard

PATIENCE_S: Final = 0.5
PATIENCE_MIN_S: Final = 0.01  # with less left than this, nothing is held back any more
NOTHING_HELD: Final = 1 << 62


class Order:
    """From `edge` on the client's bytes are held back: it has sent them after it had heard more than our replica has
    sent. Offsets: of the client's stream, but for those that are heard.

    `held_since`: since when something is held back and the replica has come no nearer, None if nothing is: one that is
    slow, and sends on, is waited for. Holding back in vain costs half of the patience each time, so that a replica that
    sends less than the server, and stops there, is kept waiting for 2 `PATIENCE_S` at most, all in all; and nothing
    more is held back until it has sent all that the client has. `turns`: what it had heard, as long as the replica has
    still to send that.
    """

    __slots__ = ("_nearest", "_patience_s", "_vain", "edge", "held_since", "turns")

    def __init__(self) -> None:
        self.edge = NOTHING_HELD
        self.held_since: float | None = None
        self.turns = Heard()
        self._patience_s = PATIENCE_S
        self._vain = False
        self._nearest = 0  # the end of what the replica had sent when it was last looked at

    @property
    def watches(self) -> bool:
        """Whether `replica_is_at` has to be told what the replica sends."""
        return self._vain or bool(self.turns)

    def heard(self, at: int, ack: int, snd_nxt: int) -> None:
        """What the client sends from `at` on, it sends after it has heard everything before `ack`, which is more than
        the replica has sent: that is what lies before `snd_nxt`."""
        if self._vain or self._patience_s < PATIENCE_MIN_S:
            return
        self._nearest = max(self._nearest, snd_nxt)
        self.turns.note(at, ack)
        self._set_edge()

    def replica_is_at(self, snd_nxt: int, snd_una: int, now: float) -> bool:
        """The replica has sent everything before `snd_nxt`, the client acknowledged what is before `snd_una`. Returns
        whether the edge has moved."""
        if snd_nxt >= snd_una:
            self._vain = False
        if snd_nxt > self._nearest:
            self._nearest = snd_nxt
            self.wait_anew(now)
        if not self.turns.drop(snd_nxt):
            return False
        self._set_edge()
        return True

    def holds_until(self, now: float) -> float:
        """Something is held back; returns until when, if the replica sends nothing."""
        if self.held_since is None:
            self.held_since = now
        return self.held_since + self._patience_s

    def holds_nothing(self) -> None:
        """All that was held back has been delivered."""
        self.held_since = None

    def wait_anew(self, now: float) -> None:
        """The replica's time begins now: it has come nearer, or could be given nothing before."""
        if self.held_since is not None:
            self.held_since = now

    def in_vain(self) -> None:
        """It has not sent it in time: it gets everything."""
        self._patience_s /= 2
        self._vain = True
        self.let_go()

    def let_go(self) -> None:
        """Nothing is held back any more."""
        self.turns.marks.clear()
        self.edge, self.held_since = NOTHING_HELD, None

    @property
    def heard_to(self) -> int:
        """What the client has heard of what the replica has still to send; 0 if that is nothing."""
        return self.turns.marks[-1][1] if self.turns.marks else 0

    def _set_edge(self) -> None:
        marks = self.turns.marks
        self.edge = marks[0][0] if marks else NOTHING_HELD
