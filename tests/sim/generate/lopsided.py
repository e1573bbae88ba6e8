"""Kinds in which the hosts' applications do not behave the same: some connections differ, some open on one host alone.
They draw from a generator of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.scenario import DOWNLOAD, ECHO, PUSH, UPLOAD, Connection, Incident, Limits, Scenario

KINDS = (
    "lopsided",
    *("lopsided-crash",) * 2,
)


def extend(scenario: Scenario, length: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    deaf = random.random() < 0.6
    hosts = {name: replace(plan, deaf=deaf and name == "b") for name, plan in scenario.hosts.items()}
    at = random.uniform(0.2, length + 1.5)
    connections = tuple(_connection(random, number, length) for number in range(random.choice((2, 4, 6))))
    crash = scenario.kind == "lopsided-crash"
    incidents = _crash(random, at) if crash else _failure(random, at)
    # A table that is full: what clients send on the other connections the replica misses.
    limits = Limits(max_connections=random.choice((0, 2, 3)) if incidents and not crash else 0)
    made = replace(scenario, limits=limits, hosts=hosts, connections=connections, incidents=incidents)
    return _with_a_cut_tap(_with_late_replicas(made, at)) if crash else made


def _connection(random: Random, number: int, length: float) -> Connection:
    plan = Connection(random.uniform(0, length), 40_000 + number, PUSH, random.getrandbits(32))
    if random.random() < 0.3:
        return plan
    return replace(
        plan,
        server_port=random.choice((ECHO, ECHO, DOWNLOAD, UPLOAD)),
        odd=random.random() < 0.6,
        pause=random.choice((0.0, 0.01, 0.05)),
    )


def _crash(random: Random, at: float) -> tuple[Incident, ...]:
    """A crash; sometimes the survivor is not heard at first, or has joined when connections were there before."""
    cut, seconds = random.random() < 0.4, random.choice((0.5, 1.0, 2.0))
    joins: tuple[Incident, ...] = ()
    if random.random() < 0.3:
        gone = random.uniform(0.05, 0.4)
        joins = (Incident(gone, "crash", "backup"), Incident(gone + 0.1, "boot", "all"))
        at = gone + random.uniform(1.0, 1.8)
    deaf = Incident(at + 0.03, "cut", "service>client", seconds)
    return (*joins, Incident(at, "crash", "primary"), *((deaf,) if cut else ()))


def _with_late_replicas(scenario: Scenario, crash_at: float) -> Scenario:
    """Sometimes the replicas that nobody asks for anything stay late, since their application has stood still for a
    while, and the primary bears that. Drawn apart: the other dice fall as before."""
    random = Random(f"late {scenario.seed}")
    if random.random() < 0.8:
        return scenario
    seconds = random.choice((0.3, 0.6, 0.9))
    hang = Incident(random.uniform(0, max(crash_at - seconds, 0)), "app_hang", "backup", seconds)
    limits = replace(scenario.limits, replica_slow_ms=1500)
    return replace(scenario, limits=limits, incidents=(hang, *scenario.incidents))


def _with_a_cut_tap(scenario: Scenario) -> Scenario:
    """Sometimes the tap has brought nothing for a while when the primary dies: clients of connections that don't wait
    for the backup have said, and got, more than it knows. Drawn apart, too."""
    random = Random(f"tap {scenario.seed}")
    if random.random() < 0.7:
        return scenario
    seconds = random.choice((0.1, 0.5, 1.0))
    at = max(next(each.at for each in scenario.incidents if each.target == "primary") - seconds, 0.0)
    return replace(scenario, incidents=(*scenario.incidents, Incident(at, "cut", "tap", seconds)))


def _failure(random: Random, at: float) -> tuple[Incident, ...]:
    """Sometimes the primary's application fails, or one of its processes: the replica, which has perhaps missed what
    clients have sent, goes on."""
    what = random.choice((None, "app_exit", "app_exit", "app_die"))
    if what is None:
        return ()
    written = "written" if what == "app_exit" or random.random() < 0.5 else ""
    return (Incident(at, what, "primary", 0.0, written, random.choice((1, 100, 1000, 9000))),)
