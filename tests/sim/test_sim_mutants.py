"""Proof that the simulator finds bugs: each planted one is caught within a bounded number of seeds."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

import pytest

from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.distance import Distance
from nfq_failover.core.gate.opening import Opening
from nfq_failover.core.shadow import takeover
from nfq_failover.core.shadow.order import Order
from nfq_failover.core.shadow.resets import Resets
from nfq_failover.core.shadow.segments import Segments

from .generate import from_seed
from .mutants import MUTANTS, Mutant
from .mutants.mutant import Patch, nothing
from .runner import run
from .scenario import from_json, named

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


def _unwatched(self: Distance) -> None:
    self.watched = False


def _let_speak(self: Opening, event: PacketQueued, port: int) -> bool:
    """How long the queue is in which it has waited is not looked at."""
    del event, port
    return self.adopts_unknown


@pytest.mark.parametrize(
    ("name", "complaint", "patches"),
    [
        ("slowed-then-alone", "did not end well", [(Distance, "speed_up", nothing), (Distance, "unwatch", _unwatched)]),
        ("end-before-all-is-said", "resets a living, promised connection", [(Order, "wait_anew", nothing)]),
        ("told-with-an-earlier-one-remembered", "has not heard", [(takeover, "_later", lambda *_: False)]),
        ("last-words-in-a-long-queue", "wrong bytes", [(Opening, "_may_speak", _let_speak)]),
        ("gives-up-in-a-closed-window", "resets a living, promised connection", [(Segments, "_repeated", nothing)]),
        ("time-wait-left-over", "acknowledges what was never sent", [(Resets, "tells", lambda *_: False)]),
    ],
)
def test_planted_bug_that_few_seeds_meet_is_caught_by_a_scenario(
    monkeypatch: pytest.MonkeyPatch, name: str, complaint: str, patches: list[tuple[Any, str, Any]]
) -> None:
    """It was found with that one, and is back."""
    planted = [Patch(*patch) for patch in patches]
    for patch in planted:
        patch.plant(monkeypatch)
    assert complaint in run(from_json(named()[name].read_text())).failure
    for patch in planted:
        patch.check()


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
