"""Daemons that are killed and started again, in the simulator: the kernel with its connections and rules stays."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2s
from random import Random
from typing import Any

import pytest

from nfq_failover.core import memory, restart
from nfq_failover.core.backup_connection import Shadow
from nfq_failover.core.events import (
    ApplyRules,
    Effect,
    Event,
    FlowsListed,
    ListFlows,
    PacketQueued,
    Profile,
    Remember,
    TimerFired,
    Verdict,
)
from nfq_failover.core.memory import Memory, Recollection, recall
from nfq_failover.core.node import Node
from nfq_failover.core.primary import PrimarySide
from nfq_failover.core.replica_map import ReplicaMap
from nfq_failover.core.roles import State
from nfq_failover.errors import InternalError
from nfq_failover.wire.segment import FlowKey, Segment

from . import host as host_module
from .host import Host
from .scenario import Scenario, from_seed
from .world import World

SEEDS = int(os.environ.get("SIM_RESTART_SEEDS", "60"))
RESUMES = (State.UNPROTECTED, State.ARMING)


class Keeping(Node):
    """A node whose record is kept, and that is told which connections the kernel has."""

    host: Host | None = None

    def __init__(self, *arguments: Any, paper: bytearray | None = None, life: bytes = b"") -> None:
        self.paper = bytearray() if paper is None else paper
        self.life = life or blake2s(repr(arguments[2:]).encode() + arguments[0].name.encode()).digest()
        recollection = None if paper is None else recall(bytes(paper), self.life)
        self.recollection: Recollection | None = recollection
        settings, rng, epoch, served, now = arguments
        super().__init__(settings, rng, epoch, served, now, Memory(self.life), recollection)

    def poll_effect(self) -> Effect | None:
        """As before, but for what the simulated shell does not do."""
        while (effect := super().poll_effect()) is not None:
            if isinstance(effect, Remember):
                for at, data in effect.writes:
                    self.paper.extend(bytes(max(at + len(data) - len(self.paper), 0)))
                    self.paper[at : at + len(data)] = data
            elif isinstance(effect, ListFlows):
                if self.host is not None:
                    self.host.later(0.001, _list, self.host)
            else:
                return effect
        return None


def _list(host: Host) -> None:
    flows: list[FlowKey] = []
    for (local, remote), tcp in host.kernel.flows.items():
        if tcp.state not in ("closed", "time-wait", "syn-received", "syn-sent"):
            flows.append((*remote, *local))
    host.feed(FlowsListed(flows))


class Away:
    """No daemon: the kernel drops what is queued, unless the rules say to let it pass."""

    wants_copies = False

    def __init__(self, host: Host, old: Keeping) -> None:
        self.host, self.old = host, old
        self.members, self.primary, self.backup = old.members, old.primary, old.backup
        self._effects: deque[Effect] = deque()

    def handle(self, event: Event, now: float) -> None:
        """Only packets are of interest."""
        del now
        if isinstance(event, PacketQueued):
            seg = Segment(event.packet)
            client = (seg.src, seg.sport, seg.dst, seg.dport)
            inherited = client in self.host.inherited or (*client[2:], *client[:2]) in self.host.inherited
            passes = self.host.profile is Profile.ALONE and not inherited
            self._effects.append(Verdict(event.queue, event.packet_id, passes))

    def poll_effect(self) -> Effect | None:
        """The verdicts."""
        return self._effects.popleft() if self._effects else None

    def poll_timeout(self) -> None:
        """Nothing is due."""


def _excuse(flows: Iterable[FlowKey], world: World, why: str) -> None:
    for flow in flows:
        seen = world.checks.flows.get(flow)
        if seen is not None:
            seen.promised, seen.excused = False, why


def kill_daemon(world: World, host: Host, away_s: float, log: list[str]) -> None:
    """The daemon of a host dies, and is started again later."""
    old = host.node
    if not host.up or not isinstance(old, Keeping) or world.clock.now < max(host.paused_until, host.hung_until):
        return
    log.append(f"{world.clock.now:.3f} {host.name} {old.members.state.name} away {away_s}")
    if old.members.state not in RESUMES and old.members.role.name == "PRIMARY":
        world.checks.promise(host)  # as if it had crashed
    world.crashes[host.name] = world.clock.now  # the other may not know yet that this one has lost everything
    host.node = Away(host, old)  # type: ignore[assignment]
    host._template = None
    host.copying = False
    life = host.life
    world.clock.after(away_s, start_daemon, world, host, life, old, log)


def start_daemon(world: World, host: Host, life: int, old: Keeping, log: list[str]) -> None:
    """What `Daemon._start` does."""
    if life != host.life or not host.up:
        return
    found = recall(bytes(old.paper), old.life)
    assert found is not None and not found.damage and not found.damaged
    resumes = found.allows(host.epoch, host.served)
    if not resumes:
        host.profile, host.inherited = Profile.BACKUP, frozenset()
    rng = world.clock.random.randbytes
    node = Keeping(
        host.settings, rng, host.epoch, host.served, world.clock.now, paper=bytearray(old.paper), life=old.life
    )
    node.host = host
    assert (node.members.state is State.UNPROTECTED) is resumes
    assert not resumes or old.members.state in RESUMES, "a backup may be about to take its connections over"
    log.append(f"{world.clock.now:.3f} {host.name} back as {node.members.state.name}")
    dead = [flow for flow, c in node.backup.flows.items() if c.state is Shadow.DEAD]
    _excuse(dead, world, "its bytes were in the dead daemon's memory")
    if not resumes:
        _excuse([*old.primary.flows, *old.backup.flows], world, "the host did not go on")
        if old.members.role.name == "PRIMARY":
            for flow in old.primary.flows:
                shadow = world.other(host).node.backup.flows.get(flow) if world.other(host).up else None
                if shadow is not None and shadow.state is Shadow.SHADOW:
                    seen = world.checks.flows.get(flow)
                    if seen is not None:
                        seen.excused = "its protection depends on what the backup does now"
    elif not node.primary.strangers:
        native = [flow for flow in world.checks.flows if flow not in node.backup.flows]
        _excuse(native, world, "opened on a host with connections of another time")
    world.crashes[host.name] = world.clock.now
    host.node = node
    host._timer_at = 0.0
    host.feed(TimerFired())


@contextmanager
def keeping() -> Iterator[None]:
    """Hosts with nodes that keep a record."""
    boot: Callable[..., None] = Host.boot

    def booting(self: Host, listen_after: float = 0.0) -> None:
        boot(self, listen_after)
        assert isinstance(self.node, Keeping)
        self.node.host = self

    wanted: dict[Host, ApplyRules] = {}
    carry, apply = Host._carry, Host._apply

    def carrying(self: Host, effect: Effect) -> None:
        if isinstance(effect, ApplyRules):
            wanted[self] = effect
        carry(self, effect)

    def applying(self: Host, effect: ApplyRules) -> None:
        if wanted[self] is effect:  # the shell's runs of the script do not overtake each other
            apply(self, effect)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "_carry", carrying)
        patch.setattr(Host, "_apply", applying)
        patch.setattr(host_module, "Node", Keeping)
        patch.setattr(Host, "boot", booting)
        yield


def run(
    scenario: Scenario, incidents: list[tuple[float, str, float]], ends_well: bool = True
) -> tuple[World, list[str]]:
    """The scenario, with daemons that die: when (after the start), whose, and for how long.

    `ends_well`: there is always somebody left who may serve.
    """
    log: list[str] = []
    with keeping():
        world = World(scenario)
        if not ends_well:
            world.checks.refused = _Everything()
        for at, target, away_s in incidents:
            world.clock.after(at, lambda t=target, s=away_s: kill_daemon(world, world._target(t), s, log))
        try:
            world.run()
        except AssertionError as error:
            told = [
                f"{at:.3f} {h.name} {entry.event} {entry.fields}" for h in world.hosts.values() for at, entry in h.logs
            ]
            raise AssertionError(f"{error}\n{scenario}\n" + "\n".join(log + sorted(told))) from None
    return world, log


def of_kind(kind: str, seed: int) -> Scenario:
    """The scenario of the first seed of that kind from `seed` on."""
    while from_seed(seed).kind != kind:
        seed += 1
    return from_seed(seed)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_connections_that_were_taken_over_live_through_restarts(seed: int) -> None:
    scenario = of_kind("crash-primary", seed * 10)
    random = Random(seed)
    crash = scenario.incidents[0].at
    times = [crash + random.uniform(0.4, 2.0) for _ in range(random.choice((1, 2, 4)))]
    run(scenario, [(at, "primary", random.choice((0.0, 0.02, 0.2, 1.0))) for at in times])


class _Everything(dict[FlowKey, str]):
    def __contains__(self, flow: object) -> bool:
        return True


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_daemon_at_any_time(seed: int) -> None:
    scenario = from_seed(seed + 1000)
    random = Random(seed)
    times = [random.uniform(0.6, 3.0) for _ in range(random.choice((1, 2, 4)))]
    run(scenario, [(at, random.choice("ab"), random.choice((0.0, 0.02, 0.2, 1.0))) for at in times], False)


def test_the_restarts_do_happen_and_are_resumed() -> None:
    seen: list[str] = []
    for seed in range(12):
        scenario = of_kind("crash-primary", seed * 10)
        _, log = run(scenario, [(scenario.incidents[0].at + 1.0, "primary", 0.1)])
        seen += log
    assert sum("UNPROTECTED away" in line for line in seen) > 5
    assert sum("back as UNPROTECTED" in line for line in seen) > 5
    assert not [line for line in seen if "back as WAITING" in line]


# ------------------------------------------------------------------------------------------------ it finds bugs


def _serves_whatever_the_record_says(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recollection, "allows", lambda self, epoch, served: served)


def _does_not_ask_our_tcp(patch: pytest.MonkeyPatch) -> None:
    right = memory.unpack

    def wrong(*arguments: Any) -> Any:
        made = right(*arguments)
        made.resync = False
        return made

    patch.setattr(restart, "unpack", wrong)


def _forgets_the_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplicaMap, "recall", lambda self, clock, now: None)


def _lets_unknown_connections_pass_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrimarySide, "strangers", property(lambda self: True, lambda self, value: None), raising=False)


@pytest.mark.parametrize(
    ("sabotage", "first"),  # a seed shortly before the first that notices: it takes less time
    [
        (_serves_whatever_the_record_says, 0),
        (_does_not_ask_our_tcp, 0),
        (_forgets_the_clock, 0),
        (_lets_unknown_connections_pass_at_once, 55),
    ],
)
def test_a_planted_bug_is_found(sabotage: Callable[[pytest.MonkeyPatch], None], first: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch)
        for seed in range(first, first + 300):
            for test in (test_connections_that_were_taken_over_live_through_restarts, test_any_daemon_at_any_time):
                try:
                    test(seed)
                except (AssertionError, InternalError):
                    return
    pytest.fail("nothing was noticed")
