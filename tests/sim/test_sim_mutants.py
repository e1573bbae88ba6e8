"""Proof that the simulator finds bugs: each planted one is caught within a bounded number of seeds."""

from __future__ import annotations

from itertools import count, islice

import pytest

from .generate import from_seed
from .mutants import HINTS, MUTANTS, Mutant
from .mutants_more import MORE_HINTS, MORE_MUTANTS
from .runner import run

RUNS = 400
ALL = (*MUTANTS, *MORE_MUTANTS)
ALL_HINTS = HINTS | MORE_HINTS


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """A seed that has caught it is tried first, to save time; then the seeds of its kinds in order."""
    for where, name, instead in mutant.patches:
        monkeypatch.setattr(where, name, instead, raising=False)
    seeds = ((seed, kind) for seed in count() for kind in mutant.kinds)
    for seed, kind in (ALL_HINTS.get(mutant.name, (1, "crash-primary")), *islice(seeds, RUNS)):
        failure = run(from_seed(seed, kind)).failure
        assert not failure.startswith("TypeError"), f"the planted bug no longer fits the code: {failure}"
        if failure.startswith("AssertionError") and mutant.complaint in failure:
            return
    pytest.fail(f"{mutant.name}: not caught in {RUNS} runs")


def test_hints_are_of_mutants() -> None:
    assert set(ALL_HINTS) <= {mutant.name for mutant in ALL}
