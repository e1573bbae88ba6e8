"""Kinds of incident in which a host asks before it acts alone: a witness, and fences that fail. They draw from a
generator of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.generate.incidents import boot
from tests.sim.network import Quality
from tests.sim.scenario import Incident, Scenario

KINDS = (
    "witness-crash",
    *("witness-partition",) * 2,
    "witness-trouble",
    "fence-crash",
    "fence-cut",
)
LINKS = ("sync>a", "sync>b", "a>witness", "witness>a", "b>witness", "witness>b")
FENCES = ("late", "flaky", "timeout", "lies", "fails")
WITNESS_RATE = 0.02  # docs/operate/fencing.md, "The bound"


def extend(scenario: Scenario, length: float, detection_s: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    at = random.uniform(0, length)
    if scenario.kind.startswith("fence"):
        cut = Incident(at, "cut", random.choice((*LINKS[:2], "sync")), random.choice((0.3, 1.0, 3.0)))
        crash = (Incident(at, "crash", "primary"), *boot(random, at))
        return replace(
            scenario,
            fence=random.choice(FENCES),
            fence_retry_ms=random.choice((0, 300, 5000)),
            incidents=crash if scenario.kind == "fence-crash" else (cut, *boot(random, at)),
        )
    fence = random.choice(("none", "none", "works", "flaky"))
    if fence == "none":
        rates = {name: 1 + random.choice((-1, 0, 1)) * random.uniform(0, WITNESS_RATE) for name in "ab"}
        scenario = replace(scenario, hosts={n: replace(plan, rate=rates[n]) for n, plan in scenario.hosts.items()})
    delay = random.choice((0.0002, 0.002, 0.02))
    lossy = random.random() < 0.3
    third = Quality(delay, delay / 10, loss=0.1, duplicate=0.1, reorder=0.1) if lossy else Quality(delay, delay / 10)
    return replace(
        scenario,
        witness=True,
        fence=fence,
        fence_retry_ms=random.choice((0, 300, 5000)),
        quality=scenario.quality | {"witness": third},
        incidents=_witnessed(random, scenario.kind, at, detection_s),
    )


def _witnessed(random: Random, kind: str, at: float, detection_s: float) -> tuple[Incident, ...]:
    if kind == "witness-crash":
        away = (Incident(at - 0.1, "cut", random.choice(("witness", "witness-a", "witness-b")), 1.0),)
        crash = Incident(at, "crash", random.choice(("primary", "primary", "backup")))
        return (*random.choice(((), (), away)), crash, *boot(random, at))
    if kind == "witness-partition":  # any of the 63 shapes
        shape = random.sample(LINKS, random.randrange(1, len(LINKS) + 1))
        cuts = [
            Incident(at + random.choice((0.0, random.uniform(-0.3, 0.6))), "cut", link, random.choice((0.2, 0.7, 3.0)))
            for link in shape
        ]
        dies = Incident(at + random.uniform(0, 1), "crash", "primary")
        return (*cuts, *random.choice(((), (), (dies,))))
    host = random.choice(("primary", "primary", "backup"))
    seconds = detection_s * random.uniform(0.5, 6)
    trouble = random.choice(("pause", "hang", "unplug", "kill", "flap"))
    if trouble == "kill":
        back = Incident(at + random.choice((0.02, 0.3, 1.0)), "restart", "all")
        return (Incident(at, "kill", host), back)
    if trouble == "flap":
        period = random.choice((1.0, 2.0, 4.0)) * detection_s
        times = [at + turn * period for turn in range(6)]
        return tuple(Incident(when, "cut", random.choice(LINKS), period * random.uniform(0.3, 1.5)) for when in times)
    cut = Incident(at, "cut", random.choice(LINKS), seconds)
    return (Incident(at, trouble, host, seconds), *random.choice(((), (cut,))))
