"""A scenario again and again, in which one host dies at every effect that its node emits, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .runner import Outcome, run
from .scenario import Incident, Scenario
from .world import SimWorld

NEVER = 1 << 40


class Count(SimWorld):
    """A run that counts what one host carries out, from the connections' start to the healing."""

    def __init__(self, scenario: Scenario, host: str) -> None:
        super().__init__(replace(scenario, incidents=(*scenario.incidents, _death(scenario, host, NEVER))))
        self.counted = self.host(host)
        self.effects = 0

    def _heal(self) -> None:
        self.effects = sum(NEVER - death.left for death in self.counted.deaths if death.left > NEVER // 2)
        super()._heal()


def _death(scenario: Scenario, host: str, count: int) -> Incident:
    """`host` dies after its `count`th effect from the first incident, or connection, on."""
    begin = min([incident.at for incident in scenario.incidents] or [0.0])
    return Incident(begin, "crash", host, 0.0, "any", count)


def effects(scenario: Scenario, host: str) -> int:
    """Returns how many effects there are to die at."""
    world = Count(scenario, host)
    world.run()
    return world.effects


def every(scenario: Scenario, host: str, step: int = 1) -> Iterator[tuple[int, Outcome]]:
    """Yields, for each effect to die at, its number and what came of the run."""
    for count in range(1, effects(scenario, host) + 1, step):
        death = _death(scenario, host, count)
        yield count, run(replace(scenario, incidents=(death, *scenario.incidents)))


def main(scenario: Scenario, host: str) -> int:
    """Carries out the command; 1 if any run has failed."""
    failed = done = 0
    for count, outcome in every(scenario, host):
        done += 1
        if outcome.failure:
            failed += 1
            print(f"{host} dies after effect {count}: {outcome.line}", flush=True)
    print(f"{done - failed} of {done} good")
    return 1 if failed else 0
