"""Do the host's own rules let the service's packets through, in and out? Tried with probes (firewall/path.py)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.events import PacketQueued, Profile, Queue, QueueOverrun
from nfq_failover.shell.firewall.path import Outcome, PathProbe, Sent, Target, Way
from nfq_failover.shell.selfcheck.foreign_rules import Hint
from nfq_failover.wire.segment import FlowKey

EVERY_S: Final = 5.0
AGAIN_S: Final = 0.5  # while there is a doubt
WAIT_S: Final = 1.0  # for what must come through a queue
TIMES: Final = 3
"""What was dropped so often, one time after the other, is known to be dropped."""
MOST_FLOWS: Final = 4
MOST_PORTS: Final = 4
_NAMED: Final = 3
_CODES: Final = {
    Way.OUTWARD: ("service-output-dropped", "what the service says to clients"),
    Way.INWARD: ("service-input-dropped", "what clients say to the service"),
    Way.INJECTED: ("injected-dropped", "what the daemon gives the service's TCP over lo, in the clients' names,"),
}

Key = tuple[Way, Target]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What may be tried now. `profile`: the rules that are in force, None while they change; `owned`: they know what
    the probe sends; `guarded`: the silence guard is there; `tracked`: connection tracking sees the service."""

    profile: Profile | None
    owned: bool
    guarded: bool
    tracked: bool

    def ways(self, target: Target) -> tuple[Way, ...]:
        """Which ways a probe for a client may go.

        A tracker takes a wrong checksum for invalid when it comes in, and what belongs to no connection for a new one.
        """
        if self.profile not in (Profile.BACKUP, Profile.PRIMARY) or (self.tracked and not target.flow):
            return ()
        out = (Way.OUTWARD,) if self.owned and self.guarded else ()
        if self.tracked:
            return out
        inward = (Way.INWARD,) if self.profile is Profile.BACKUP else ()
        return (*out, *inward, Way.INJECTED)


class Clients(Protocol):
    """Who can be tried (host/made_up.py). All of it raises OSError."""

    def addresses(self, outward: bool, now: float) -> list[bytes]:
        """Some that clients could have."""

    def usable(self, addresses: list[bytes], outward: bool) -> list[bytes]:
        """Those of them that can be tried."""


class PathCheck:
    """Tries it every `EVERY_S`, and whenever rules change."""

    name = "path"

    def __init__(
        self,
        probe: PathProbe,
        ports: Callable[[], Sequence[tuple[int, int]]],
        flows: Callable[[], Iterable[FlowKey]],
        clients: Clients,
        circumstances: Callable[[], Circumstances],
        backlog: Callable[[], int],
        doubt: Callable[[], Sequence[Hint]],
    ) -> None:
        """`flows`: the connections of this host. `backlog`: packets that wait in the input queue. `doubt`: something is
        dropped; returns rules that may be why, as far as they are known."""
        self._probe = probe
        self._ports, self._flows, self._clients = ports, flows, clients
        self._circumstances, self._backlog, self._doubt = circumstances, backlog, doubt
        self._began = 0.0
        self._trying = False
        self._dropped: dict[Key, int] = {}  # how often, one time after the other
        self._unturned = 0  # looks, one after the other, in which no frame could be turned round
        self._sample: list[FlowKey] = []
        self._concerns: tuple[Concern, ...] = ()

    @property
    def every_s(self) -> float:
        """How long after an answer the next look begins."""
        return AGAIN_S if self._doubts else EVERY_S

    @property
    def _doubts(self) -> bool:
        return any(times < TIMES for times in self._dropped.values())

    @property
    def expects(self) -> bool:
        """Whether probes may be among the packets of the queues."""
        return self._trying

    def sift(self, queue: Queue, events: list[PacketQueued | QueueOverrun]) -> list[PacketQueued | QueueOverrun]:
        """Judge the probes among what a queue has brought; returns the rest."""
        return self._probe.sift(events) if queue is Queue.IN else self._probe.sift_output(events)

    def run(self, now: float) -> tuple[Concern, ...] | None:
        """See `Check`. Raises OSError."""
        allowed = self._circumstances()
        if not self._trying:
            wanted = self._wanted(allowed, now)
            if not wanted:
                self._dropped.clear()
                self._concerns = ()
                return self._untried(allowed)
            self._probe.begin(wanted)
            self._trying, self._began = True, now
        self._probe.collect()
        if self._probe.under_way and now - self._began < WAIT_S:
            return None
        self._probe.end()
        self._trying = False
        self._judge(self._probe.probes)
        return (*self._concerns, *self._untried(allowed))

    # ------------------------------------------------------------------------------------ what is tried

    def _wanted(self, allowed: Circumstances, now: float) -> list[Key]:
        flows, wanted = self._some_flows(), []
        for way in Way:
            outward = way is Way.OUTWARD
            # What comes in from a client is tried whatever way leads back: the kernel may drop it because of that.
            usable = set(self._clients.usable([flow[0] for flow in flows], outward)) if outward else None
            targets = [Target(f[0], f[1], f[3], True) for f in flows if usable is None or f[0] in usable]
            for low, _ in itertools.islice(self._ports(), MOST_PORTS):
                for address in self._clients.addresses(outward, now):
                    targets.append(Target(address, _made_up_port(address), low, False))
            wanted += [(way, target) for target in targets if way in allowed.ways(target)]
        return wanted

    def _some_flows(self) -> list[FlowKey]:
        """Each time others, but while there is a doubt the same; and some of those that were dropped."""
        known = list(self._flows())
        if self._doubts:
            there = set(known)
            self._sample = [flow for flow in self._sample if flow in there]
        else:
            dropped = {target for _, target in self._dropped if target.flow}
            again = [flow for flow in self._sample if Target(flow[0], flow[1], flow[3], True) in dropped]
            others = random.sample(known, min(len(known), MOST_FLOWS))
            self._sample = [*dict.fromkeys([*(set(again) & set(known)), *others])][: 2 * MOST_FLOWS]
        return self._sample

    # ------------------------------------------------------------------------------------ what it means

    def _untried(self, allowed: Circumstances) -> tuple[Concern, ...]:
        """What a backup can't try: then nobody knows it before a takeover. (That there is no guard is said apart.)"""
        if allowed.profile is not Profile.BACKUP:
            return ()
        found = []
        if not allowed.owned:
            found.append((Way.OUTWARD, "iptables has no owner match here (xt_owner)"))
        if allowed.tracked:
            found.append((Way.INWARD, 'conntrack = "liberal" takes a probe for invalid'))
        elif self._unturned >= TIMES:
            found.append((Way.INWARD, "traffic control can't turn a probe round (tc, action mirred)"))
        if not found:
            return ()
        what = "; ".join(f"{_CODES[way][1]}: {why}" for way, why in found)
        cure = "make sure of it by a takeover that you plan, and after each change of the rules"
        text = f"whether this host's own rules let the service's packets through can't be tried: {what}"
        return (Concern("path-untried", Weight.WARNING, text, cure, bears=Part.BACKUP),)

    def _judge(self, probes: Sequence[Sent]) -> None:
        inward = [probe for probe in probes if probe.way is Way.INWARD]
        unturned = bool(inward) and all(probe.outcome is Outcome.UNKNOWN for probe in inward)
        self._unturned = self._unturned + 1 if unturned else 0
        before, self._dropped = self._dropped, {}
        late = any(p.outcome is Outcome.DROPPED and not p.queued for p in probes) and self._backlog() > 0
        for probe in probes:
            key = probe.way, probe.target
            if probe.outcome is not Outcome.DROPPED:
                continue
            if probe.way is Way.INWARD and not probe.queued and late:  # it may still wait there
                continue
            self._dropped[key] = before.get(key, 0) + 1
        hints = self._doubt() if self._dropped else ()
        if not self._dropped:
            self._concerns = ()
        elif not self._doubts:
            self._concerns = tuple(each for way in Way if (each := self._concern(way, probes, hints)) is not None)

    def _concern(self, way: Way, probes: Sequence[Sent], hints: Sequence[Hint]) -> Concern | None:
        """What is to be said of a way: of each port by its connections, or if there are none, by what was made up."""
        tried = [probe for probe in probes if probe.way is way and probe.outcome is not Outcome.UNKNOWN]
        closed: list[int] = []
        partly: list[int] = []
        perhaps: list[int] = []
        hindered: set[bytes] = set()
        for port in sorted({probe.target.port for probe in tried}):
            here = [probe for probe in tried if probe.target.port == port]
            here = [probe for probe in here if probe.target.flow] or here
            dropped = [probe for probe in here if probe.outcome is Outcome.DROPPED]
            if len(dropped) == len(here):
                # A host may let in its own clients only, and what is injected comes in in their names.
                told = here[0].target.flow or way is Way.OUTWARD
                (closed if told else perhaps).append(port)
            elif dropped and dropped[0].target.flow:
                partly.append(port)
                hindered |= {probe.target.client for probe in dropped}
        if not closed and not partly and not perhaps:
            return None
        code, what = _CODES[way]
        ports = ", ".join(map(str, closed or partly or perhaps))
        some = "" if closed else " for some of them" if partly else ", for clients that were made up, as there are none"
        place = ""
        if way is Way.INWARD:
            early = all(probe.queued for probe in tried if probe.outcome is Outcome.DROPPED)
            place = ", behind the daemon's queue" if early else ", before it is in the daemon's queue"
        rules = [hint for hint in hints if hint.way == way.value][:_NAMED]
        by = " or ".join(hint.rule for hint in rules) or "by no rule that is plain to see; perhaps rp_filter"
        cure = "see iptables-save -c, nft list ruleset and ip route get CLIENT"
        if not closed and not partly:
            cure = (
                "it is well if the rules let the service's real clients in; see iptables-save -c and nft list ruleset"
            )
        elif rules:
            cure = f"{rules[0].cure}  # for everybody: name the clients if others must not pass"
        return Concern(
            code,
            Weight.UNPROTECTED if closed else Weight.DEGRADED if partly else Weight.WARNING,
            f"{what} (port {ports}) is dropped on this host{some}{place}: {by}",
            cure,
            bears=Part.BACKUP,
            clients=() if closed else tuple(sorted(hindered)),
        )


def _made_up_port(address: bytes) -> int:
    """A client's port: the same each time, so that what was dropped can be tried again."""
    return 49152 + address[-1]
