"""What a host knows of its peer: what the peer has said last, and how lately either has heard the other."""

from __future__ import annotations

from nfq_failover.core.pair.monitor import PeerMonitor
from nfq_failover.core.pair.roles import UNHEALTHY, Role, State
from nfq_failover.core.settings import Settings
from nfq_failover.wire.heartbeat import HeartbeatBody

FOLLOWING = (State.SHADOWING, State.CHECKING)  # may still find that the primary is alive


class PeerView:
    """One peer, as its heartbeats show it. Times are seconds of our monotonic clock.

    `said` is the latest heartbeat's body, None before the first one; `epoch` is the epoch that it was sent in.
    `heard_at`: when it arrived, at first when we began to listen.
    """

    def __init__(self, settings: Settings, name: str, now: float) -> None:
        self.settings = settings
        self.name = name
        self.monitor = PeerMonitor(settings)
        self.said: HeartbeatBody | None = None
        self.epoch = 0
        self.heard_at = now

    def heard(self, body: HeartbeatBody, epoch: int, now: float) -> None:
        """Take a heartbeat of a known role and state."""
        self.monitor.heard(body, now)
        self.said, self.epoch = body, epoch
        self.heard_at = now

    # ------------------------------------------------------------------------------------ what it says

    @property
    def role(self) -> Role | None:
        """The role that it has said last."""
        return None if self.said is None else Role(self.said.role)

    @property
    def state(self) -> State | None:
        """The state that it has said last."""
        return None if self.said is None else State(self.said.state)

    @property
    def well(self) -> bool:
        """Whether it has said that its application is well."""
        return self.said is not None and not self.said.flags & UNHEALTHY

    def votes(self, generation: int) -> bool:
        """Whether its latest heartbeat is that of a backup that follows us in this generation."""
        said = self.said
        return said is not None and said.state in FOLLOWING and said.generation == generation

    def release_after_s(self) -> float:
        """How long it may be silent before a primary releases what it lacks: the greater of both hosts' settings, since
        their fences may differ."""
        theirs = 0 if self.said is None else self.said.release_after_ms
        return max(self.settings.release_after_ms, theirs) / 1000

    # ------------------------------------------------------------------------------------ who hears whom

    def lost(self, now: float) -> bool:
        """Whether no living heartbeat has come for the detection time."""
        return self.monitor.lost(now)

    def answers(self, now: float) -> bool:
        """Whether it hears us and we hear it."""
        return self._lately(self.monitor.heard_by_peer_at, now)

    def follows(self, now: float) -> bool:
        """Whether it is a backup that has heard us lately, and is not about to take over."""
        said = self.said
        return said is not None and said.state == State.SHADOWING and self.answers(now)

    def is_there(self, now: float) -> bool:
        """Whether it answers, or its session has just begun: it may have heard what we are, and would fence us for our
        silence. Not if its last word was that it leaves; a life that follows begins a session."""
        monitor = self.monitor
        if self.state is State.LEAVING and monitor.heard_by_peer_at is not None:
            return False
        return self._lately(monitor.began if monitor.heard_by_peer_at is None else monitor.heard_by_peer_at, now)

    def _lately(self, heard: float | None, now: float) -> bool:
        limit = (self.settings.detection_ms + 2 * self.settings.heartbeat_interval_ms) / 1000
        return not self.monitor.lost(now) and heard is not None and now - heard <= limit
