"""A `Membership` with its failure detector, driven by hand: what it hears, what is answered, how time passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.monitor import PeerMonitor
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.roles import UNHEALTHY, Do, Input, State
from nfq_failover.wire.heartbeat import HeartbeatBody
from tests.support.transcript import settings

Scenario = Callable[[], "Member"]
INTERVAL_S = 0.05
DETECTION_S = 0.15


def collector(scenarios: list[Scenario]) -> Callable[[Scenario], Scenario]:
    """A decorator: every scenario is a test of its own, and all together must use every transition of the table."""

    def collect(run: Scenario) -> Scenario:
        scenarios.append(run)
        return run

    return collect


class Member:
    """Host `a` (or another) of the pair, after boot. `hear` is what the peer says, `tick` lets time pass."""

    def __init__(self, epoch: int = 0, served: bool = False, **changes: Any) -> None:
        self.now = 1000.0
        self.settings = settings(**{"has_fence": True, **changes})
        self.peer = PeerView(self.settings, self.settings.peers[0].name, self.now)
        self.members = Membership(self.settings, self.peer, epoch, served, self.now)
        self.seen: set[tuple[State, Input]] = set()
        self._peer_clock = 1_000_000

    @property
    def monitor(self) -> PeerMonitor:
        return self.peer.monitor

    @property
    def state(self) -> State:
        return self.members.state

    def at(self, state: State) -> bool:
        """Whether we are in that state."""
        return self.members.state is state

    def done(self) -> list[Do]:
        """What was to be done since the last call; notes the changes of state."""
        for change in self.members.changes:
            self.seen.add((change.before, change.given))
        self.members.changes.clear()
        actions = list(self.members.actions)
        self.members.actions.clear()
        return actions

    def hear(
        self,
        state: State,
        epoch: int = 0,
        generation: int = 0,
        stored: int | None = None,
        heard: bool = True,
        loop_age_ms: int = 0,
        served: bool = False,
        well: bool = True,
        pact: int = 0,
        release_after_ms: int | None = None,
    ) -> list[Do]:
        """A heartbeat of the peer. `heard`: it proves that the peer has just heard us; `well`: its application is."""
        self._peer_clock += 50
        echo = int(self.now * 1000) if heard else 0
        body = HeartbeatBody(
            int(state.role),
            int(state),
            (2 if served else 0) | (0 if well else UNHEALTHY),
            epoch if stored is None else stored,
            generation,
            loop_age_ms,
            self._peer_clock,
            echo,
            self.settings.release_after_ms if release_after_ms is None else release_after_ms,
            pact,
            self.settings.lease_ms,
        )
        self.peer.heard(body, epoch, self.now)
        self.members.heard(self.now)
        return self.done()

    def tick(self, seconds: float = INTERVAL_S / 2) -> list[Do]:
        """One step of time."""
        self.now += seconds
        self.members.tick(self.now)
        return self.done()

    def silence(self, seconds: float) -> list[Do]:
        """Nothing is heard for that long, while we are awake."""
        actions: list[Do] = []
        for _ in range(round(seconds / 0.025)):
            actions += self.tick()
        return actions

    def stored(self, ok: bool = True) -> list[Do]:
        """The epoch store answers."""
        self.members.epoch_stored(self.members.epoch, ok, "" if ok else "disk full")
        return self.done()

    def link(self, ok: bool) -> list[Do]:
        """The link check answers."""
        self.members.link_checked(ok, "")
        return self.done()

    def reach(self, ok: bool) -> list[Do]:
        """The shell sees that we are cut off, or that we no longer are."""
        self.members.reached(ok, "" if ok else "our address is gone", self.now)
        return self.done()

    def fence(self, ok: bool) -> list[Do]:
        """The fence answers."""
        self.members.fenced(ok, "" if ok else "timeout")
        return self.done()

    def check_health(self, *outcomes: bool) -> None:
        """Checks of our application come to an end."""
        for ok in outcomes:
            self.members.health.checked(ok, "" if ok else "not accepted", self.now)

    def witness(self, granted: bool) -> list[Do]:
        """The witness answers for the present pact."""
        self.members.witnessed(self.members.pact.high, granted, "" if granted else "held by a")
        return self.done()

    # ------------------------------------------------------------------------------------ the ways to a state

    def serve(self) -> Member:
        """Elected: serving, unprotected, in epoch 1."""
        self.hear(State.WAITING)
        self.stored()
        assert self.state is State.UNPROTECTED
        return self

    def arm(self) -> Member:
        """A backup is there."""
        self.serve()
        self.hear(State.SHADOWING, self.members.epoch)
        assert self.state is State.ARMING
        return self

    def protect(self) -> Member:
        """Protected by a backup of generation 1."""
        self.arm()
        self.members.rules_applied()
        self.hear(State.SHADOWING, self.members.epoch, self.members.generation)
        assert self.state is State.PROTECTED
        return self

    def lose_backup(self) -> Member:
        """The backup is silent."""
        self.protect()
        self.silence(DETECTION_S + 0.05)
        assert self.state is State.BACKUP_LOST
        return self

    def yielded(self) -> Member:
        """Our application has failed while protected."""
        self.protect()
        assert self.members.application_failed("the application has failed", self.now)
        assert self.state is State.YIELDED
        return self

    def doubt(self, pause: float = 10.0) -> Member:
        """Paused while protected."""
        self.protect()
        self.tick(pause)
        assert self.state is State.DOUBT
        return self

    def shadow(self, state: State = State.PROTECTED) -> Member:
        """The backup of a primary in epoch 7, generation 3."""
        self.hear(State.ARMING, 7, 3)
        self.hear(state, 7, 3)
        self.stored()
        assert self.state is State.SHADOWING
        return self

    def check(self) -> Member:
        """The primary is silent."""
        self.shadow()
        self.silence(DETECTION_S + 0.05)
        assert self.state is State.CHECKING
        return self

    def fencing(self) -> Member:
        """Our own link is up."""
        self.check().link(True)
        assert self.state is State.FENCING
        return self

    def refused(self) -> Member:
        """The fence did not succeed."""
        self.fencing().fence(False)
        assert self.state is State.REFUSED
        return self

    def storing(self) -> Member:
        """The fence has succeeded."""
        self.fencing().fence(True)
        assert self.state is State.STORING
        return self
