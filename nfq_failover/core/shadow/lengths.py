"""Two outputs that have the same bytes, and not the same length: a replica that is late, or out of step for good.

What a server has sent, and its client has acknowledged, the other server must have sent within `out_of_step_ms`. It is
not enough to ask whether both stand still: a subscriber that gets a message a second from the primary, and none from
the replica, does not. After a takeover a replica that has still to produce what its client has got already would send
into the void: whatever it says first, the client has. So its time to catch up is bounded, too.

A replica that its client does not wait for (core/gate/pace.py) may be as late as it likes while it goes on, and while
no replica says anything: then it is the application that stands still. It is not protected until it has caught up.
"""

from __future__ import annotations

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.connection import Die, Shadow, ShadowConnection
from nfq_failover.core.shadow.resets import Resets
from nfq_failover.core.timers import TimerQueue

BLOCKED_BYTES = 4096  # a client's window that has no more room than this may stop the two servers at different bytes


class Lengths:
    """The lengths of all connections' outputs. `numbers` are the connections by number; `die` gives one up; `resets`
    tells its client."""

    def __init__(
        self, settings: Settings, out: Outbox, numbers: dict[int, ShadowConnection], resets: Resets, die: Die
    ) -> None:
        self.out = out
        self._resets = resets
        self._numbers = numbers
        self._die = die
        self._settings = settings
        self._timers: TimerQueue[int] = TimerQueue()
        self._heard_at = 0.0  # when any replica has last said something
        self._behind: dict[int, tuple[float, int]] = {}  # after a takeover: since when, and where it was last seen

    @property
    def _patience_s(self) -> float:
        return self._settings.out_of_step_ms / 1000

    @property
    def _hold_s(self) -> float:
        return min(self._settings.hole_deadline_ms / 1000, self._patience_s)

    # ------------------------------------------------------------------------------------ while both live

    def heard_replica(self, now: float) -> None:
        """A replica has said something."""
        self._heard_at = now

    def _has_time(self, connection: ShadowConnection, compare: Comparison) -> bool:
        before = compare.watched
        if not connection.was_late or before is None or connection.output.end >= compare.sent:
            return False
        return connection.output.end > before[0] or self._heard_at <= compare.watched_at

    def moved(self, connection: ShadowConnection, compare: Comparison, now: float) -> None:
        """One of the two servers has sent something."""
        if compare.after or not compare.started:
            return
        replica, server = connection.output.end, compare.sent
        if compare.watched is not None:
            if replica < compare.watched[1] or server < compare.watched[0]:
                return
            compare.watch(None, now)
        if replica != server:
            compare.watch((replica, server), now)
            self._timers.set_earlier(connection.conn, now + self._patience_s)

    def _look(self, connection: ShadowConnection, compare: Comparison, now: float) -> None:
        self.moved(connection, compare, now)
        if compare.watched is None:
            return
        left = compare.watched_at + self._patience_s - now
        if left > 0:
            self._timers.set_earlier(connection.conn, now + left)
        elif not self._has_time(connection, compare) and (reason := self._out_of_step(connection, compare)):
            self.give_up(connection, f"diverged: {reason}", now)
        else:  # the time begins anew, for what both have sent by now
            compare.watch((connection.output.end, compare.sent), now)
            self._timers.set_earlier(connection.conn, now + self._patience_s)

    def _out_of_step(self, connection: ShadowConnection, compare: Comparison) -> str:
        """Why a connection whose lengths have differed for long is out of step; empty if its client may be the reason:
        it has not acknowledged what one server has sent, or it leaves the other no room."""
        replica, server, snd_una = connection.output.end, compare.sent, connection.output.snd_una
        before = compare.watched
        if before is None:
            return ""
        if replica < before[1] <= snd_una:
            return f"the replica has sent {server - replica} bytes less than the server, which the client has"
        room = snd_una + (connection.header.wnd << connection.header.wscale) - max(replica, server)
        if server < before[0] and snd_una >= server and room >= BLOCKED_BYTES:
            return f"the replica has sent {replica - server} bytes more than the server"
        return ""

    # ------------------------------------------------------------------------------------ after a takeover

    def behind(self, connection: ShadowConnection, now: float) -> None:
        """The client hears the replica, and may have more than that has sent."""
        if connection.conn not in self._behind and self._lacks(connection) > 0:
            self._behind[connection.conn] = now, connection.output.snd_nxt
            self._timers.set(connection.conn, now + self._hold_s)

    @staticmethod
    def _lacks(connection: ShadowConnection) -> int:
        """How many bytes the client has that the replica has still to send."""
        return 0 if connection.ended else connection.output.snd_una - connection.output.snd_nxt

    def _look_after(self, connection: ShadowConnection, now: float) -> None:
        since, before = self._behind.pop(connection.conn)
        lacks, at = self._lacks(connection), connection.output.snd_nxt
        if connection.state is not Shadow.ACTIVE or connection.over or lacks <= 0:
            return
        if at > before and now - since < self._patience_s:
            self._behind[connection.conn] = since, at
            self._timers.set(connection.conn, now + self._hold_s)
            return
        self.give_up(connection, f"the replica does not produce {lacks} bytes that the client has", now)

    # ------------------------------------------------------------------------------------ both

    def give_up(self, connection: ShadowConnection, reason: str, now: float) -> None:
        """The replica is out of step. If its client hears us, it is told."""
        self.forget(connection.conn)
        self.out.counters["diverged"] += 1
        self._die(connection, reason, now)
        if connection.heard:
            self._resets.tell(connection, now)

    def forget(self, conn: int) -> None:
        """No more deadline for this number."""
        self._timers.cancel(conn)
        self._behind.pop(conn, None)

    def clear(self) -> None:
        """No more deadlines."""
        self._timers.clear()
        self._behind.clear()

    def on_timer(self, now: float) -> None:
        """Deadlines."""
        for conn in self._timers.pop_due(now):
            connection = self._numbers.get(conn)
            if connection is None or connection.state is Shadow.DEAD:
                self._behind.pop(conn, None)
            elif conn in self._behind:
                self._look_after(connection, now)
            elif connection.output.compare is not None and connection.closing.closed_at is None:
                self._look(connection, connection.output.compare, now)

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        return self._timers.next()
