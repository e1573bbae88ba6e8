"""The simulator in the test run: many seeds, the scenarios with a name, a death at every effect, one hash per seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .boundaries import effects, every
from .generate import KINDS, from_seed
from .runner import reproduce, run
from .scenario import Scenario, from_json, named, to_json

SEEDS = 200
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
    """What failed once does not fail again."""
    outcome = run(_named(name))
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

SMALL, TAKEOVER = "small", "small-takeover"


@pytest.mark.parametrize(("name", "host"), [(SMALL, "a"), (SMALL, "b"), (TAKEOVER, "b")])
def test_death_at_every_effect(name: str, host: str) -> None:
    """The host loses power after every eleventh effect that its node emits, the primary, the backup, and the survivor
    while it takes over; `python -m tests.sim --name small --boundaries a` takes every effect."""
    outcomes = list(every(_named(name), host, step=11))
    assert len(outcomes) > 12
    failed = [f"{host} dies after effect {count}: {outcome.failure}" for count, outcome in outcomes if outcome.failure]
    assert not failed, "\n".join(failed)


def test_effects_are_counted() -> None:
    scenario = _named(SMALL)
    assert effects(scenario, "a") > effects(replace(scenario, connections=scenario.connections[:1]), "a") > 50


def _named(name: str) -> Scenario:
    return from_json(named()[name].read_text())
