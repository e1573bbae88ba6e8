"""Scenarios made from seeds."""

from tests.sim.generate.seeds import KINDS, from_seed
from tests.sim.generate.times import FENCE_DEADLINE_MS, most_rate, release

__all__ = ["FENCE_DEADLINE_MS", "KINDS", "from_seed", "most_rate", "release"]
