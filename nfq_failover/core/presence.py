"""Whether the application is there, and well: on this host, and at the ports where the other host's is.

A backup without it has no replica of what clients open, so nothing may be called protected; that a replica is missing
would else be seen only with the next connection. What a service has no listener for on either host, clients can't use,
and a takeover changes nothing about it.
"""

from __future__ import annotations

from nfq_failover.core import ports
from nfq_failover.core.application import STEADY_S, Application, Begun
from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.events import HealthChecked, ListenersSeen
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Role
from nfq_failover.core.pair.told import Telling, Told
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.table import ShadowTable

SOURCE = "presence"
CODE = "application-absent"
GONE_S = 3.0  # a restart takes less
LATE_S = 10.0  # applications start later than the daemon, and not at the same time on both hosts
_EVERY_S = 0.25
CURE = (
    "start the application, and let it listen at the service address or at all addresses (one that can't bind the "
    "service address is to be started after nfq-failover)"
)
UNBOUND = "let the application listen without binding its socket to an interface (systemd: BindToDevice=)"
_MOVE = "; or stop nfq-failover on this host, so that the other one serves. [health] in the configuration does it alone"


class Presence:
    """Compares where the application listens here with where it listens on the peer."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        application: Application,
        told: Told,
        telling: Telling,
        members: Membership,
        gate: GateTable,
        shadow: ShadowTable,
    ) -> None:
        """`told`: what the peer says; `telling`: what it is told."""
        self.out = out
        self._telling = telling
        self._members = members
        self._gate = gate
        self._shadow = shadow
        self._settings = settings
        self._application = application
        self._told = told
        self._lacks: dict[int, float] = {}  # ports of the peer's application, since when ours does not listen there
        self._alone_since: float | None = None  # the peer's listens somewhere, and ours at none of these ports
        self._next = 0.0

    def seen(self, event: ListenersSeen, now: float) -> None:
        """Take a look at our application's listening sockets."""
        begun = self._application.seen(event, now)
        where = ports.union((port, port) for port in self._application.listening)
        self._telling.listening(where if event.known else None)
        inodes = frozenset(inode for _, inode in event.sockets)
        self._shadow.wholeness.sockets(inodes, now)
        if begun is not None:
            self._begun(begun, inodes, now)
        self._shadow.wholeness.looked(now)
        self._gate.missed.looked(now)

    def checked(self, event: HealthChecked, now: float) -> None:
        """Take the outcome of a check of our application. What follows from it comes with the next tick."""
        if event.ok:
            began_at = now - event.took_s
            self._gate.ends.note_well(began_at)
            self._shadow.ends.note_well(began_at)
        else:
            self.out.counters["health-check-failed"] += 1
        health = self._members.health
        if not health.checked(event.ok, event.detail, now):
            return
        if health.well:
            self.out.log("info", "application well")
        else:
            self.out.log("error", "application failed", reason=health.reason)

    def _begun(self, begun: Begun, inodes: frozenset[int], now: float) -> None:
        role = self._members.role
        self._shadow.missing.begun()
        self._shadow.application_begun(begun, self._application.life, inodes, role is Role.BACKUP, now)
        if role is Role.PRIMARY:
            self._gate.application_begun(begun, now)

    def on_timer(self, now: float) -> None:
        """Look whether anything is missing."""
        if now < self._next or self._application.first_seen is None:
            return
        self._next = now + _EVERY_S
        concern = self._judge(self._members.role is Role.PRIMARY, now)
        if concern is None:
            self.out.concerns.over(SOURCE, CODE, now)
        else:
            self.out.concerns.raised(SOURCE, concern, now)
        self._shadow.missing.look(self._both(), now)

    def _both(self) -> set[int] | None:
        """The ports where both applications listen, and ours can have replicas; None if nobody knows."""
        if not self._application.known:
            return None
        own = set(self._application.listening) - self._application.bound.keys()
        return own if self._told.listens is None else own.intersection(self._told.listens.ports)

    def _judge(self, serves: bool, now: float) -> Concern | None:
        if not self._application.known:
            what = "the kernel can't be asked whether the application listens"
            return Concern(CODE, Weight.WARNING, what, "modprobe tcp_diag")
        self._compare(serves, now)
        if not self._application.listening:
            return self._nothing(serves, now)
        if serves:
            late = [port for port in self._late(now) if self._had(port)]
            if not late:
                return None
            return Concern(CODE, Weight.DEGRADED, f"{_differs(late)}: clients are refused there", CURE + _MOVE)
        if self._alone(now):
            what, cure = self._unreached(list(self._lacks))
            return Concern(CODE, Weight.UNPROTECTED, f"{what}: new connections have no replica", cure, Part.BACKUP)
        late = self._late(now)
        if not late:
            return None
        what, cure = self._unreached(late)
        return Concern(CODE, Weight.DEGRADED, f"{what}: connections there have no replica", cure, Part.BACKUP)

    def _unreached(self, lacks: list[int]) -> tuple[str, str]:
        """Why nothing reaches our application at these ports as a replica, and what helps."""
        bound = {port: name for port, name in self._application.bound.items() if port in lacks}
        absent = [port for port in lacks if port not in bound]
        why, cures = ([_differs(absent)], [CURE]) if absent else ([], [])
        return "; ".join(why + binds(bound)), "; ".join(cures + ([UNBOUND] if bound else []))

    def _nothing(self, serves: bool, now: float) -> Concern | None:
        """Our application listens nowhere."""
        first, gone_at = self._application.first_seen, self._application.gone_at
        gone = gone_at is not None and now - gone_at >= GONE_S
        alone = self._alone(now)
        late = gone_at is None and first is not None and now - first >= LATE_S
        if not gone and not alone and not late:
            return None
        there = "so far" if gone_at is None else "any more"
        what = f"no program of this host listens at a port of the service {there}"
        if serves:
            weight = Weight.DEGRADED if gone or alone else Weight.WARNING
            return Concern(CODE, weight, f"{what}: clients are refused", CURE + (_MOVE if self._lacks else ""))
        what += ": new connections have no replica"
        if alone or (gone and self._told.listens is None):
            return Concern(CODE, Weight.UNPROTECTED, what, CURE, Part.BACKUP)
        return Concern(CODE, Weight.WARNING, what, CURE)

    def _compare(self, serves: bool, now: float) -> None:
        """Note what the peer's application has that ours has not. A replica gets everything over lo."""
        own, told = set(self._application.listening), self._told.listens
        if not serves:
            own -= self._application.bound.keys()
        theirs = set() if told is None else set(filter(self._settings.serves, told.ports))
        self._lacks = {port: self._lacks.get(port, now) for port in theirs - own}
        if own & theirs or not theirs:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now

    def _alone(self, now: float) -> bool:
        return self._alone_since is not None and now - self._alone_since >= GONE_S

    def _late(self, now: float) -> list[int]:
        return [port for port, since in self._lacks.items() if now - since >= LATE_S]

    def _had(self, port: int) -> bool:
        """Whether ours has listened there for good."""
        have = self._application.ports.get(port)
        return have is not None and have.lasted_s(0.0) >= STEADY_S


def binds(bound: dict[int, str]) -> list[str]:
    """Returns what to say of sockets that are bound to an interface, by port: a text for each interface."""
    said = []
    for name in sorted(set(bound.values())):
        where = ports.text(ports.union([(port, port) for port, each in bound.items() if each == name]))
        what = f"the application's socket at {where} is bound to {name} (SO_BINDTODEVICE)"
        said.append(f"{what}, so that what the daemon gives it over lo does not reach it")
    return said


def _differs(lacks: list[int]) -> str:
    where = ports.text(ports.union([(port, port) for port in lacks]))
    return f"the application of this host does not listen at {where}, that of the other host does"
