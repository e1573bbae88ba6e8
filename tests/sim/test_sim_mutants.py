"""Proof that the simulator finds bugs: each planted one is caught within a bounded number of seeds."""

from __future__ import annotations

from itertools import count, islice

import pytest

from .generate import from_seed
from .mutants import MUTANTS, Mutant
from .runner import run

RUNS = 120


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """`mutant.hint` is tried first, to save time; then the seeds of its kinds in order."""
    for where, name, instead in mutant.patches:
        monkeypatch.setattr(where, name, instead, raising=False)
    seeds = (seed for seed in count() if from_seed(seed).kind in mutant.kinds)
    for seed in (mutant.hint, *islice(seeds, RUNS)):
        failure = run(from_seed(seed)).failure
        if failure and mutant.complaint in failure:
            return
    pytest.fail(f"{mutant.name}: not caught in {RUNS} runs")
