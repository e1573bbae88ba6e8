"""Which lies of a clock the design tolerates, and that the checkers see it when a clock lies more than that.

The sync channel is cut and the backup paused for about as long as its time to act lasts: when it wakes it fences the
primary and takes over, just before or just after the primary has let everything go.
"""

from __future__ import annotations

import pytest

from .generate import most_rate, release
from .network import Quality
from .runner import run
from .scenario import UPLOAD, Connection, HostPlan, Incident, Scenario

DETECTION_S = 0.15
BIG = 5  # a salt that stands for 60,000 bytes
RELEASE_S = release(DETECTION_S)
PAUSES = [RELEASE_S - 0.6 + 0.6 * at / 20 for at in range(20)]  # the fence takes up to 0.3 s after that


def _late(pause: float, fast: float, *jumps: float) -> str:
    """What fails if the primary's clock is too fast by `fast` and the backup's as much too slow, or if the primary's
    jumps."""
    return run(
        Scenario(
            seed=3,
            quality={"client": Quality(0.005), "tap": Quality(), "sync": Quality()},
            kind="clock",
            hosts={"a": HostPlan(rate=1 + fast), "b": HostPlan(boot=0.1, rate=1 - fast, uptime=50.0)},
            connections=(Connection(0.3, 40_000, UPLOAD, salt=BIG),),
            incidents=(
                Incident(0.31, "cut", "sync", 4.0),
                Incident(0.31, "cut", "tap", 4.0),
                Incident(0.31, "pause", "backup", pause),
                *(Incident(0.4 + 0.2 * turn, "jump", "primary", jump) for turn, jump in enumerate(jumps)),
            ),
        )
    ).failure


TOLERATED = [
    (0.0,),
    (most_rate(DETECTION_S),),
    (-most_rate(DETECTION_S),),
    (0.0, 0.45 * DETECTION_S),
    (0.0, 2 * DETECTION_S),  # it is taken for a pause
]


@pytest.mark.parametrize("lies", TOLERATED)
def test_lie_is_tolerated(lies: tuple[float, ...]) -> None:
    assert [failure for pause in PAUSES if (failure := _late(pause, *lies))] == []


@pytest.mark.parametrize("lies", [(0.1,), (0.0, 0.8 * DETECTION_S, 0.8 * DETECTION_S)])
def test_greater_lie_is_seen(lies: tuple[float, ...]) -> None:
    failures = [failure for pause in PAUSES if (failure := _late(pause, *lies))]
    assert failures
    assert all("goes on: acknowledged" in failure for failure in failures)
