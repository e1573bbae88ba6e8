"""The failure detector: what the heartbeats of a peer, and their absence, say."""

from __future__ import annotations

from dataclasses import dataclass

from nfq_failover.core.settings import Settings
from nfq_failover.wire.heartbeat import HeartbeatBody, datagram_bytes

MAX_INTERVAL_MS = 5000  # the longest that may be configured


@dataclass(frozen=True, slots=True)
class HeartbeatStatistics:
    """Heartbeats of one peer, for people. `bandwidth_bps` is one direction's; heartbeats go both ways."""

    interval_ms: int
    count: int
    detection_ms: int
    datagram_bytes: int
    bandwidth_bps: int
    received: int
    missed: int
    largest_gap_ms: float
    silent_ms: float | None


class PeerMonitor:
    """The failure detector for one peer. Times in seconds of our monotonic clock.

    `last_heard`: the latest heartbeat of any kind; `last_progress`: the latest whose packet loop was making progress;
    `last_alive`: the same, but silence during our own pauses is excused, and what else the peer says counts for a
    while (`spoke`). `heard_by_peer_at`: when our latest heartbeat that the peer has proved to have received was sent;
    `began`: when the session did. Both ends only prove heartbeats of a loop in progress: what a primary may release is
    reckoned from `last_progress`, what a backup may continue from `heard_by_peer_at`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._detection_s = settings.detection_ms / 1000
        self.last_alive: float | None = None
        self.last_heard: float | None = None
        self.last_progress: float | None = None
        self.heard_by_peer_at: float | None = None
        self.began: float | None = None
        self.received = 0
        self.missed = 0
        self.largest_gap_s = 0.0

    def expect(self, interval_ms: int) -> None:
        """The peer sends a heartbeat this often: it is not lost before as many of its own are missing as of ours."""
        theirs_ms = min(interval_ms, MAX_INTERVAL_MS) * self.settings.heartbeat_count
        self._detection_s = max(self.settings.detection_ms, theirs_ms) / 1000

    def reset(self, now: float) -> None:
        """Begin a new session: the peer counts as alive from now on, and has proved nothing yet."""
        self.last_alive = self.last_heard = self.last_progress = self.began = now
        self.heard_by_peer_at = None

    def heard(self, body: HeartbeatBody, now: float) -> None:
        """Take a heartbeat that has arrived."""
        if self.last_heard is not None:
            gap = now - self.last_heard
            self.largest_gap_s = max(self.largest_gap_s, gap)
            self.missed += max(round(gap * 1000 / self.settings.heartbeat_interval_ms) - 1, 0)
        self.received += 1
        self.last_heard = now
        if body.loop_age_ms < self.settings.loop_stall_ms:
            self.last_alive = self.last_progress = now
        if body.echo_ms:
            echoed = body.echo_ms / 1000
            if self.heard_by_peer_at is None or echoed > self.heard_by_peer_at:
                self.heard_by_peer_at = min(echoed, now)

    def spoke(self, now: float) -> None:
        """A datagram of the peer's packet loop has come: it lives, though its heartbeats may be lost on a link that is
        full. That counts for no longer than a loop may stall: which is how much later than by its heartbeats a peer may
        be found dead (`Settings.release_after_ms`), and what we read may have waited in our own queue."""
        if self.last_alive is not None and self.last_progress is not None:
            self.last_alive = max(self.last_alive, min(now, self.last_progress + self.settings.loop_stall_ms / 1000))

    def excuse(self, pause_s: float, now: float) -> None:
        """Leave out the time in which we did not run: silence counts only while we are awake to hear it."""
        if self.last_alive is not None:
            self.last_alive = min(self.last_alive + pause_s, now)

    def lost(self, now: float) -> bool:
        """Whether no living heartbeat has come for the detection time."""
        return self.last_alive is None or now - self.last_alive > self._detection_s

    def deadline(self) -> float | None:
        """When the peer will count as lost."""
        return None if self.last_alive is None else self.last_alive + self._detection_s

    def statistics(self, now: float) -> HeartbeatStatistics:
        """What was agreed, what it costs and what has come, for people."""
        interval = self.settings.heartbeat_interval_ms
        size = datagram_bytes(self.settings.lease_ms)
        return HeartbeatStatistics(
            interval_ms=interval,
            count=self.settings.heartbeat_count,
            detection_ms=self.settings.detection_ms,
            datagram_bytes=size,
            bandwidth_bps=round(size * 8 * 1000 / interval),
            received=self.received,
            missed=self.missed,
            largest_gap_ms=round(self.largest_gap_s * 1000, 1),
            silent_ms=None if self.last_heard is None else round((now - self.last_heard) * 1000, 1),
        )
