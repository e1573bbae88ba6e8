"""Which lies of a clock the design tolerates, and that the checkers see it when a clock lies more than that.

The sync channel is cut and the backup paused for about as long as its time to act lasts: when it wakes it fences the
primary and takes over, just before or just after the primary has let everything go.
"""

from __future__ import annotations

import pytest

from .generate import most_rate, release
from .runner import run
from .scenario import UPLOAD, Connection, HostPlan, Incident, Scenario

DETECTION_S = 0.15
BIG = 5  # a salt that stands for 60,000 bytes
RELEASE_S = release(DETECTION_S)
PAUSES = [RELEASE_S - 0.6 + 0.6 * at / 36 for at in range(36)]  # the fence takes up to 0.3 s after that


def _late(pause: float, fast: float, jump: float = 0.0) -> str:
    """The primary's clock is too fast by so much, the backup's as much too slow; what fails."""
    return run(
        Scenario(
            seed=3,
            kind="clock",
            hosts={"a": HostPlan(rate=1 + fast), "b": HostPlan(boot=0.1, rate=1 - fast, uptime=50.0)},
            connections=(Connection(0.3, 40_000, UPLOAD, salt=BIG),),
            incidents=(
                Incident(0.31, "cut", "sync", 4.0),
                Incident(0.31, "cut", "tap", 4.0),
                Incident(0.31, "pause", "backup", pause),
                *((Incident(1.0, "jump", "primary", jump),) if jump else ()),
            ),
        )
    ).failure


@pytest.mark.parametrize(
    ("fast", "jump"),
    [
        (0.0, 0.0),
        (0.0005, 0.0),
        (most_rate(DETECTION_S), 0.0),
        (-most_rate(DETECTION_S), 0.0),
        (0.0, 0.45 * DETECTION_S),
        (0.0, 2 * DETECTION_S),
    ],
)
def test_lie_is_tolerated(fast: float, jump: float) -> None:
    assert [failure for pause in PAUSES if (failure := _late(pause, fast, jump))] == []


@pytest.mark.parametrize(("fast", "jump"), [(0.1, 0.0), (0.0, 0.9 * DETECTION_S)])
def test_greater_lie_is_seen(fast: float, jump: float) -> None:
    failures = [failure for pause in PAUSES if (failure := _late(pause, fast, jump))]
    assert failures
    assert all("goes on: acknowledged" in failure for failure in failures)
