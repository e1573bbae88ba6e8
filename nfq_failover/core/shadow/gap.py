"""How far one replica is behind, and what has been done about it (see repair.py, which does it)."""

from __future__ import annotations

HOLE_FIRST_S = 0.002
LAG_FIRST_S = 0.06
LAG_MAX_S = 1.0
COMPLAINT_S = 0.005
UNHEARD_S = 0.5


class Gap:
    """What one connection lacks. A *hole*: the log lacks bytes that the primary has. A *lag*: our TCP has not taken
    what the log has. Offsets of the client's stream, times in seconds.

    `primary_rcv_nxt` is what the primary's TCP has taken, as it last said. `hole_retry_s` is how long to wait until the
    hole's bytes are asked for, 0 if they are not. `late_since`: since when our tap has not brought what the primary had
    then, which is everything before `late_to`. `asked_at`: bytes up to `asked_to` were asked for, of which `asked_left`
    have not come yet; `asked_once`: nothing of it was repeated, nor answered, since. `lag_since` is when our TCP was
    last seen to be behind, or given everything again; `lag_retry_s` how long after that it is given it again.
    """

    __slots__ = (
        "_unheard",
        "asked_at",
        "asked_left",
        "asked_once",
        "asked_to",
        "hole_retry_s",
        "lag_retry_s",
        "lag_since",
        "late_since",
        "late_to",
        "primary_rcv_nxt",
    )

    def __init__(self) -> None:
        self.primary_rcv_nxt = 0
        self.hole_retry_s = 0.0
        self.late_since: float | None = None
        self.late_to = 0
        self.asked_at: float | None = None
        self.asked_to = self.asked_left = 0
        self.asked_once = False
        self._unheard: tuple[int, float] | None = None  # the client's last ACK, when our TCP sent what follows it
        self.lag_since: float | None = None
        self.lag_retry_s = 0.0

    # ------------------------------------------------------------------------------------ holes

    def filled(self, held: int) -> None:
        """The log has grown, up to `held`."""
        self.hole_retry_s = 0.0
        if held >= self.asked_to:
            self.asked_at = None

    def primary_is_at(self, offset: int) -> None:
        """The primary's TCP has taken everything before `offset`."""
        self.primary_rcv_nxt = max(self.primary_rcv_nxt, offset)

    def primary_is_ahead(self, held: int, longest_s: float, now: float) -> None:
        """The primary has what we lack, from `held` on. `longest_s`: how long its hole is waited for at most."""
        if self.hole_retry_s > longest_s:  # it was the client's hole
            self.hole_retry_s, self.asked_at = 0.0, None
        if self.late_since is None or held >= self.late_to:
            self.late_since, self.late_to = now, self.primary_rcv_nxt

    def tap_came(self, offset: int, now: float) -> float | None:
        """Everything before `late_to` has come, at last a segment from `offset` on. Returns by how much the tap was
        late, None if it was not the tap that has brought it."""
        since, self.late_since = self.late_since, None
        return now - since if since is not None and offset < self.late_to else None

    def watch_hole(self, patience_s: float) -> bool:
        """Ask for the hole's bytes in `patience_s`. False if that was decided before."""
        if self.hole_retry_s or self.asked_at is not None:
            return False
        self.hole_retry_s = patience_s
        return True

    def asks_in(self, wait_s: float) -> None:
        """The hole's bytes are asked for, again, in `wait_s`; 0: no more."""
        self.hole_retry_s = wait_s

    def closed(self) -> None:
        """Nothing is missing."""
        self.hole_retry_s = 0.0
        self.asked_at = None

    def asked(self, count: int, stop: int, now: float) -> None:
        """`count` bytes, up to `stop`, have just been asked for."""
        again = self.asked_at is not None and self.asked_left > 0
        self.asked_at, self.asked_left, self.asked_to, self.asked_once = now, count, stop, not again

    def answered(self, count: int, now: float) -> float | None:
        """`count` bytes of what was asked for have come. Returns how long the answer took, None if that says nothing
        of the way."""
        if self.asked_at is None:
            return None
        self.asked_left -= count
        first, self.asked_once = self.asked_once, False
        return now - self.asked_at if first else None

    # ------------------------------------------------------------------------------------ lag

    def watch_lag(self, now: float) -> None:
        """Our TCP is behind the log."""
        self.lag_since, self.lag_retry_s = now, LAG_FIRST_S

    def our_tcp_went_on(self) -> None:
        """Our TCP has taken something."""
        self.lag_since, self.lag_retry_s = None, 0.0

    def complains(self, said_at: float, now: float) -> bool:
        """Our TCP has repeated its acknowledgement, not before `said_at`: whether that asks for the bytes that it
        lacks."""
        if self.lag_since is None or said_at - self.lag_since <= COMPLAINT_S:
            return False
        self.lag_since = now
        return True

    def lag_due(self, heard_until: float, now: float) -> bool:
        """Whether our TCP is given everything again now: it has been behind for long enough, for all that it has said
        until `heard_until`."""
        if self.lag_since is None or heard_until - self.lag_since < self.lag_retry_s:
            return False
        self.lag_since = now
        self.lag_retry_s = min(self.lag_retry_s * 2, LAG_MAX_S)
        return True

    def no_lag(self) -> None:
        """Our TCP is not behind."""
        self.lag_since = None

    def unheard(self, snd_una: int, heard_until: float, now: float) -> bool:
        """Our TCP has sent what follows `snd_una`. True if it has done so for long: did the client acknowledge more?
        What has come until `heard_until` is known."""
        if self._unheard is None or self._unheard[0] != snd_una:
            self._unheard = snd_una, now
            return False
        if heard_until - self._unheard[1] < UNHEARD_S:
            return False
        self._unheard = snd_una, now
        return True
