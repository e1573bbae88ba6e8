"""Kinds of incident in which the application of a host fails. They draw from a generator of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.generate.incidents import boot
from tests.sim.scenario import Incident, Limits, Scenario

KINDS = (
    *("app-primary",) * 2,
    "app-backup",
    "app-both",
    "app-crash",  # a host dies when an application has failed
)
FAILURES = ("app_die", "app_die", "app_exit", "app_hang", "app_refuse")


def extend(scenario: Scenario, length: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    at = random.uniform(0, length)
    return replace(
        scenario,
        limits=Limits(),
        health=random.random() < 0.6,
        on_failure=random.choice(("service", "service", "service", "off")),
        incidents=_failures(random, scenario.kind, at),
    )


def _failure(random: Random, at: float, target: str) -> Incident:
    """A failure at a moment, or (`effect`) when a connection has written `count` bytes."""
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
    return (first, Incident(at, "crash", random.choice(("primary", "backup"))), *later, *boot(random, at))
