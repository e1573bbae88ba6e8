"""Bugs planted into the core, each as a patch of a few names: what the simulator must be able to see."""

from tests.sim.mutants.gate import GATE
from tests.sim.mutants.mutant import Mutant
from tests.sim.mutants.pair import PAIR
from tests.sim.mutants.shadow import SHADOW

MUTANTS = (*GATE, *SHADOW, *PAIR)

__all__ = ["MUTANTS", "Mutant"]
