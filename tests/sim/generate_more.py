"""Kinds of incident that came later: applications that fail, a witness, fences that fail. They draw from a generator of
their own, so that the scenarios of the earlier kinds stay what they were."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from .network import Quality
from .scenario import Incident, Limits, Scenario

MORE_KINDS = (
    *("app-primary",) * 2,
    "app-backup",
    "app-both",
    "app-crash",  # a host dies when an application has failed
    "witness-crash",
    *("witness-partition",) * 2,
    "witness-trouble",
    "fence-crash",
    "fence-cut",
)
FAILURES = ("app_die", "app_die", "app_exit", "app_hang", "app_refuse")
LINKS = ("sync>a", "sync>b", "a>witness", "witness>a", "b>witness", "witness>b")
FENCES = ("late", "flaky", "timeout", "lies", "fails")
WITNESS_RATE = 0.02  # docs/fencing.md, "The bound"


def extend(scenario: Scenario, length: float, detection_s: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    at = random.uniform(0, length)
    if scenario.kind.startswith("app"):
        return replace(
            scenario,
            limits=Limits(),
            health=random.random() < 0.6,
            on_failure=random.choice(("service", "service", "service", "off")),
            incidents=_failures(random, scenario.kind, at),
        )
    if scenario.kind.startswith("fence"):
        cut = Incident(at, "cut", random.choice((*LINKS[:2], "sync")), random.choice((0.3, 1.0, 3.0)))
        crash = (Incident(at, "crash", "primary"), *_boot(random, at))
        return replace(
            scenario,
            fence=random.choice(FENCES),
            fence_retry_ms=random.choice((0, 300, 5000)),
            incidents=crash if scenario.kind == "fence-crash" else (cut, *_boot(random, at)),
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


def _boot(random: Random, at: float) -> tuple[Incident, ...]:
    return random.choice(((), (Incident(at + random.uniform(0.3, 3), "boot", "all"),)))


def _failure(random: Random, at: float, target: str) -> Incident:
    """At a moment, or (`effect`) when a connection has written so many bytes."""
    what = random.choice(FAILURES)
    written = what == "app_exit" or (what == "app_die" and random.random() < 0.5)
    seconds = random.choice((0.0, 0.0, 0.3, 1.5)) if what == "app_hang" else 0.0
    return Incident(at, what, target, seconds, "written" if written else "", random.choice((1, 100, 1000, 9000)))


def _failures(random: Random, kind: str, at: float) -> tuple[Incident, ...]:
    again = Incident(at + random.choice((0.1, 0.5, 2.0, 4.0)), "app_start", "all")
    later = (again,) if random.random() < 0.7 else ()
    if kind in ("app-primary", "app-backup"):
        return (_failure(random, at, kind[4:]), *later)
    first = _failure(random, at, random.choice(("primary", "backup")))
    at += random.choice((0.0, 0.1, 0.6, 2.5))
    if kind == "app-both":
        return (first, _failure(random, at, random.choice("ab")), *later)
    return (first, Incident(at, "crash", random.choice(("primary", "backup"))), *later, *_boot(random, at))


def _witnessed(random: Random, kind: str, at: float, detection_s: float) -> tuple[Incident, ...]:
    if kind == "witness-crash":
        away = (Incident(at - 0.1, "cut", random.choice(("witness", "witness-a", "witness-b")), 1.0),)
        crash = Incident(at, "crash", random.choice(("primary", "primary", "backup")))
        return (*random.choice(((), (), away)), crash, *_boot(random, at))
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
