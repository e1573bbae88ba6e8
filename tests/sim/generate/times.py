"""How long the core's phases last in a generated scenario, and how wrong a clock may be."""

from __future__ import annotations

from nfq_failover.config import schema

FENCE_DEADLINE_MS = 400  # of a fast fence: a run is the shorter
_LOOP_STALL_MS: int = schema.find("loop_stall_ms").default


def most_rate(detection_s: float) -> float:
    """How far one clock may be off, so that two that are off in opposite directions are still tolerated.

    A backup may continue connections for `release - detection / 2` of its own clock, a primary waits for `release` of
    its own (docs/design/pair.md, "The backup's time to act").
    """
    release_s = release(detection_s)
    margin = (detection_s / 2) / (release_s - detection_s / 2)
    return min(0.02, 0.45 * margin)


def release(detection_s: float) -> float:
    """After how much silence a primary with a fence lets everything go (`Settings.release_after_ms`)."""
    return 2 * detection_s + (FENCE_DEADLINE_MS + _LOOP_STALL_MS) / 1000
