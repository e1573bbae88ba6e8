"""Proof that the simulator finds bugs: each planted one is caught within a bounded number of seeds."""

from __future__ import annotations

from itertools import count, islice

import pytest

from .generate import from_seed
from .mutants import MUTANTS, Mutant
from .mutants.mutant import Patch
from .runner import run

RUNS = 400


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    """The hint is tried first, to save time; then the seeds of its kinds in order."""
    for patch in mutant.patches:
        patch.plant(monkeypatch)
    seeds = ((seed, kind) for seed in count() for kind in mutant.kinds)
    for seed, kind in (mutant.hint, *islice(seeds, RUNS)):
        failure = run(from_seed(seed, kind)).failure
        misfit = failure.startswith(("TypeError", "AttributeError", "NameError"))
        assert not misfit, f"the planted bug no longer fits the code: {failure}"
        if failure.startswith("AssertionError") and mutant.complaint in failure:
            for patch in mutant.patches:
                patch.check()
            return
    pytest.fail(f"{mutant.name}: not caught in {RUNS} runs")


def test_bugs_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


# ---------------------------------------------------------------------------------------- patches prove themselves


class _Planted:
    def __init__(self) -> None:
        self.field = 1

    def method(self) -> int:
        return self.field


def test_patch_of_a_name_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=r"_Planted\.mehtod does not exist"):
        Patch(_Planted, "mehtod", lambda self: 2).plant(monkeypatch)


def test_patch_that_nobody_calls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = Patch(_Planted, "method", lambda self: 2)
    patch.plant(monkeypatch)
    with pytest.raises(AssertionError, match="is not used"):
        patch.check()
    assert _Planted().method() == 2
    patch.check()


@pytest.mark.parametrize(
    ("name", "read", "complaint"), [("field", False, "not used"), ("filed", True, "never assigned")]
)
def test_patch_of_a_field_must_be_assigned_and_read(
    monkeypatch: pytest.MonkeyPatch, name: str, read: bool, complaint: str
) -> None:
    patch = Patch(_Planted, name, property(lambda self: 2, lambda self, value: None))
    patch.plant(monkeypatch)
    planted = _Planted()
    assert not read or getattr(planted, name) == 2
    with pytest.raises(AssertionError, match=complaint):
        patch.check()
