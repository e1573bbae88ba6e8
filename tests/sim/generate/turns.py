"""Kinds in which client and server take turns, and the server does not bear it if the client speaks out of turn. They
draw from a generator of their own."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.scenario import TURNS, Connection, Incident, Limits, Scenario

KINDS = (
    "turns",
    "turns-crash",
)


def extend(scenario: Scenario, length: float) -> Scenario:
    """A scenario of one of these kinds, made from one without incidents."""
    random = Random(f"{scenario.seed}/{scenario.kind}")
    crash = Incident(random.uniform(0.1, length + 0.5), "crash", "primary")
    return replace(
        scenario,
        limits=Limits(),
        # What has come twice, or by the primary, and was lost the first time, may have been delivered too early.
        quality=scenario.quality
        | {"tap": replace(scenario.quality["tap"], loss=0.0), "sync": scenario.quality["sync"].healed()},
        connections=tuple(_connection(random, number, length) for number in range(random.choice((2, 4, 6)))),
        incidents=(crash,) if scenario.kind == "turns-crash" else (),
    )


def _connection(random: Random, number: int, length: float) -> Connection:
    return Connection(random.uniform(0, length), 40_000 + number, TURNS, random.getrandbits(32))
