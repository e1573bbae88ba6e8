"""Kinds of incident in which the replicas can't keep up: their application stands still for a while, or the backup's
daemon has too little time; some of them may answer differently. They draw from a generator of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.scenario import ECHO, Connection, Incident, Scenario

KINDS = (
    "replica-hangs",
    "replica-hangs-crash",  # and the primary dies meanwhile, or soon after
    "outrun",  # the backup can't handle as many packets as there are
    "outrun-crash",
    "lopsided-hangs",  # as replica-hangs, and the replicas of some connections differ, which nobody sees meanwhile
    "lopsided-hangs-crash",
)
PATIENCE_MS = (100, 300, 1000)


def extend(scenario: Scenario, length: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    at = random.uniform(0, length)
    if scenario.kind.startswith("outrun"):
        return _outrun(scenario, random, at)
    crash = scenario.kind.endswith("hangs-crash")
    seconds = random.choice((0.2, 1.0, 3.0)) if crash else random.choice((1.0, 6.0))
    incidents = [Incident(at, "app_hang", "backup", seconds)]
    if crash:
        incidents.append(Incident(at + random.choice((0.5, 1.0, 2.0)) * seconds, "crash", "primary"))
    # Buffers that a replica which does not read has soon filled.
    hosts = {
        name: replace(plan, buffer=random.choice((4_000, 12_000)), app_delay=0.001)
        for name, plan in scenario.hosts.items()
    }
    return replace(
        scenario,
        hosts=hosts,
        limits=replace(scenario.limits, replica_patience_ms=random.choice(PATIENCE_MS)),
        incidents=tuple(incidents),
        connections=tuple(_differing(random, scenario, each) for each in scenario.connections),
    )


def _differing(random: Random, scenario: Scenario, plan: Connection) -> Connection:
    """Perhaps the two hosts answer it differently. It lasts long enough to be let go, and to be tried again."""
    if not scenario.kind.startswith("lopsided") or random.random() < 0.3:
        return plan
    return replace(plan, server_port=ECHO, odd=True, pause=random.choice((0.01, 0.05, 0.2)), abort_at=None)


def _policy(seed: int) -> str:
    """Sometimes replicas are given up, so that the backup has time for the others. Drawn apart: the other dice fall as
    before."""
    return "drop" if Random(f"drop {seed}").random() < 0.25 else ""


def _outrun(scenario: Scenario, random: Random, at: float) -> Scenario:
    pps, queue = random.choice((150, 400, 1000)), random.choice((10, 50, 300))
    return replace(
        scenario,
        hosts={
            name: replace(plan, packets_per_s=pps, queue_packets=queue, listen_after=0.0)
            for name, plan in scenario.hosts.items()
        },
        limits=replace(
            scenario.limits,
            replica_patience_ms=random.choice(PATIENCE_MS),
            replica_slow_ms=random.choice((20, 50, 200)),
            slow_backup=_policy(scenario.seed),
        ),
        connections=tuple(
            replace(each, at=random.uniform(0, 0.1), pause=0.0, sip=0, again=None) for each in scenario.connections
        ),
        incidents=(Incident(at, "crash", "primary"),) if scenario.kind == "outrun-crash" else (),
    )
