"""The simulator in the test run: many seeds, the scenarios with a name, a death at every effect, one hash per seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .boundaries import effects, every
from .generate import KINDS, from_seed
from .runner import reproduce, run
from .scenario import DOWNLOAD, ECHO, UPLOAD, Connection, HostPlan, Incident, Scenario, from_json, named, to_json

SEEDS = 300
BATCH = 50


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_seeds(first: int) -> None:
    """Every seed ends well; a failure names the seed, the commit and the command that shows it again."""
    for seed in range(first, first + BATCH):
        outcome = run(from_seed(seed))
        assert not outcome.failure, f"{outcome.line}\n{reproduce(seed)}\n{outcome.details}"


def test_every_kind_of_incident_is_among_the_seeds() -> None:
    assert {from_seed(seed).kind for seed in range(SEEDS)} == set(KINDS)


@pytest.mark.parametrize("name", named())
def test_scenario_with_a_name(name: str) -> None:
    """What failed once."""
    outcome = run(from_json(named()[name].read_text()))
    assert not outcome.failure, f"python -m tests.sim --name {name} --verbose\n{outcome.details}"


@pytest.mark.parametrize("seed", [1, 5, 8, 9, 12, 14, 17, 19])
def test_same_seed_has_the_same_trace(seed: int) -> None:
    traces = {run(from_seed(seed)).trace for _ in range(2)}
    assert len(traces) == 1
    assert run(from_seed(seed + 20)).trace not in traces


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_scenario_is_data(seed: int) -> None:
    scenario = from_seed(seed)
    assert from_json(to_json(scenario, "")) == scenario


def test_unknown_part_of_a_scenario_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        from_json(to_json(from_seed(1), "").replace('"tap"', '"colour"'))


# ---------------------------------------------------------------------------------------------- at every boundary

SLOW = HostPlan(boot=0.1, app_delay=0.02, read_size=2000, write_size=1500, buffer=12_000, wscale=5, wrap=3000)
BOUNDARY = Scenario(
    seed=1,
    kind="boundary",
    hosts={"a": HostPlan(app_delay=0.01, wrap=2000), "b": SLOW},
    client=HostPlan(wrap=4000, buffer=12_000),
    connections=(
        Connection(0.0, 40_000, ECHO, salt=5, pause=0.01),
        Connection(0.01, 40_001, DOWNLOAD, salt=11),
        Connection(0.02, 40_002, UPLOAD, salt=8, early=True),
    ),
)
CRASH = (Incident(0.08, "crash", "primary"),)
BOOT = (Incident(0.9, "boot", "all"),)


def _all_die_well(scenario: Scenario, host: str, least: int, step: int) -> None:
    outcomes = list(every(scenario, host, step))
    assert len(outcomes) * step >= least
    failed = [f"{host} dies after effect {count}: {outcome.failure}" for count, outcome in outcomes if outcome.failure]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize(
    ("host", "incidents", "least", "step"),
    [("a", (), 100, 3), ("b", (), 100, 3), ("b", CRASH + BOOT, 100, 3)],
    ids=["primary", "backup", "takeover"],
)
def test_death_at_every_effect(host: str, incidents: tuple[Incident, ...], least: int, step: int) -> None:
    """Power is lost after every third effect that the node emits; `python -m tests.sim --boundaries` takes every one."""
    _all_die_well(replace(BOUNDARY, incidents=incidents), host, least, step)


def test_effects_are_counted() -> None:
    assert effects(BOUNDARY, "a") > effects(replace(BOUNDARY, connections=BOUNDARY.connections[:1]), "a") > 50
