"""From a seed to a scenario. A change here changes what the seeds mean; scenarios worth keeping get a name."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from tests.sim.generate import application, incidents, lopsided, pace, turns, witness
from tests.sim.generate.times import most_rate
from tests.sim.network import Quality
from tests.sim.scenario import DOWNLOAD, ECHO, UPLOAD, Connection, HostPlan, Incident, Limits, Scenario

KINDS = (
    "none",
    *("crash-primary",) * 2,
    "crash-backup",
    "rejoin",
    "cut",
    "pause",
    "hang",
    "split",
    *("effect-primary",) * 2,  # the primary dies between two effects
    "effect-backup",
    *("effect-takeover",) * 2,  # the survivor dies as well, while it takes over
    "kill-primary",
    "kill-backup",
    "kill-survivor",  # the daemon of a host that has taken over, again and again
    "kill-any",
    "partition",
    "flapping",
    "unplug",
    "clock",
    "strand",
    *application.KINDS,
    *witness.KINDS,
    *pace.KINDS,
    *lopsided.KINDS,
    *turns.KINDS,
)


def from_seed(seed: int, kind: str = "") -> Scenario:
    """The scenario of a seed, of the kind that is asked for, or of the seed's own."""
    random = Random(seed)
    kind = kind or KINDS[seed % len(KINDS)]
    lossy = random.choice(("nothing", "nothing", "client", "tap", "sync", "all"))
    length = random.choice((0.2, 1.0, 2.0))
    heartbeat_ms = random.choice((10, 50))
    detection_s = 3 * heartbeat_ms / 1000
    fences = {"cut": ("works", "fails", "none"), "flapping": ("works", "works", "fails", "none")}
    scenario = Scenario(
        seed=seed,
        kind=kind,
        tap=random.choice(("clone", "multicast")),
        fence="none" if kind == "split" else random.choice(fences.get(kind, ("works",))),
        split_brain=kind == "split",
        heartbeat_ms=heartbeat_ms,
        sack=random.random() < 0.8,
        timestamps=random.random() < 0.8,
        super_segment=random.choice((1, 1, 4)),
        drain=heartbeat_ms == 50 and random.random() < 0.05,
        quality={
            "client": _quality(random, lossy in ("client", "all"), 0.02, 0.1),
            "tap": _quality(random, lossy in ("tap", "all"), 0.005, 0.2),
            # Detection has to be longer than a round trip, and survive the loss most of the time.
            "sync": _quality(random, lossy in ("sync", "all"), 0.001 if heartbeat_ms < 50 else 0.01, 0.05),
        },
        hosts={
            name: _host(random, place == 0, most_rate(detection_s) if kind == "clock" else 0.0)
            for place, name in enumerate("ab")
        },
        client=_client(random),
        limits=_limits(random),
        connections=tuple(_connection(random, number, length) for number in range(random.choice((1, 3, 6)))),
        incidents=incidents.draw(random, kind, length, detection_s),
    )
    scenario = _with_differences(_with_marks_lost(scenario))
    return _with_reload(_extended(scenario, length, detection_s), length)


def _extended(scenario: Scenario, length: float, detection_s: float) -> Scenario:
    """The scenario with the incidents of a kind that has its own generator."""
    if scenario.kind in lopsided.KINDS:
        return lopsided.extend(scenario, length)
    if scenario.kind in turns.KINDS:
        return turns.extend(scenario, length)
    if scenario.kind in application.KINDS:
        return application.extend(scenario, length)
    if scenario.kind in pace.KINDS:
        return pace.extend(scenario, length)
    return witness.extend(scenario, length, detection_s) if scenario.kind in witness.KINDS else scenario


def _with_marks_lost(scenario: Scenario) -> Scenario:
    """Sometimes a host has a rule that overwrites packet marks. Drawn apart: the other dice fall as before."""
    random = Random(f"marks {scenario.seed}")
    lost = random.choice(((), (), (), ("a", "b"), ("a",), ("b",)))
    hosts = {name: replace(plan, marks_lost=name in lost) for name, plan in scenario.hosts.items()}
    return replace(scenario, hosts=hosts)


def _with_differences(scenario: Scenario) -> Scenario:
    """Sometimes one host's TCP grants less than the other's, or its interface takes less. Drawn apart, too."""
    random = Random(f"differences {scenario.seed}")
    if random.random() < 0.6:
        return scenario
    less: tuple[dict[str, Any], ...] = (
        {"mtu": 1380},
        {"mtu": 1400},
        {"mtu": 1450},
        {"timestamps": False},
        {"sack": False},
        {"scaling": False},
    )
    name = random.choice(tuple(scenario.hosts))
    changed = replace(scenario.hosts[name], **random.choice(less))
    return replace(scenario, hosts=scenario.hosts | {name: changed})


def _with_reload(scenario: Scenario, length: float) -> Scenario:
    """Sometimes each host is given another port while it runs, one after the other, or one of them not before the
    healing. Drawn apart, too."""
    random = Random(f"reload {scenario.seed}")
    if random.random() < 0.85:
        return scenario
    names = random.sample(tuple(scenario.hosts), random.choice((1, 2, 2, 2)))
    at = random.uniform(0, length)
    later = random.choice((0.0, 0.02, 0.5, 2.0))
    reloads = [Incident(at + place * later, "reload", name) for place, name in enumerate(names)]
    return replace(scenario, incidents=(*scenario.incidents, *reloads))


def _quality(random: Random, lossy: bool, most_delay: float, most_loss: float) -> Quality:
    delay = random.choice((0.0002, 0.0002, most_delay))
    if not lossy:
        return Quality(delay, delay / 10)
    return Quality(
        delay,
        delay / 10,
        loss=random.choice((most_loss / 10, most_loss)),
        duplicate=random.choice((0.0, 0.02)),
        reorder=random.choice((0.0, 0.02, 0.1)),
    )


def _host(random: Random, first: bool, rate: float) -> HostPlan:
    return HostPlan(
        boot=random.uniform(0, 0.3),
        listen_after=0.0 if first else random.choice((0.0, 0.0, 0.5)),  # the first host serves first
        app_delay=random.choice((0.0, 0.001, 0.02, 0.05)),
        read_size=random.choice((0, 0, 0, 5000)),
        write_size=random.choice((0, 0, 1000, 7000)),
        kernel_drop=random.choice((0.0, 0.0, 0.0, 0.03)),
        rate=1.0 + random.choice((-1, -1, 0, 1, 1)) * random.choice((0.0003, rate, rate)) if rate else 1.0,
        uptime=random.uniform(1, 5000),
        ts_base=random.choice((random.getrandbits(32), -random.randrange(5_000_000) & 0xFFFFFFFF)),
        wscale=random.choice((2, 5, 7, 9)),
        buffer=random.choice((4_000, 12_000, 65_000, 200_000)),
        wrap=random.choice((0, 0, 40_000)),
    )


def _client(random: Random) -> HostPlan:
    return HostPlan(
        ts_base=random.getrandbits(32),
        wscale=random.choice((2, 5, 7, 9)),
        buffer=random.choice((12_000, 65_000, 200_000)),
        wrap=random.choice((0, 0, 40_000)),
    )


def _limits(random: Random) -> Limits:
    if random.random() < 0.8:
        return Limits()
    return Limits(
        max_connections=random.choice((0, 2)),
        max_log_bytes=random.choice((0, 10_000, 40_000)),
        max_unacked_bytes=random.choice((0, 10_000, 40_000)),
    )


def _connection(random: Random, number: int, length: float) -> Connection:
    return Connection(
        at=random.uniform(0, length),
        port=40_000 + number,
        server_port=random.choice((ECHO, DOWNLOAD, UPLOAD)),
        salt=random.getrandbits(32),
        pause=random.choice((0.0, 0.01, 0.1)),
        abort_at=random.choice((None,) * 9 + (1,)),
        again=random.choice((None, None, None, 0.001, 0.5)),
        sip=random.choice((0, 0, 0, 700)),
        early=random.random() < 0.25,
    )
