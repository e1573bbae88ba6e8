"""Requests for bytes that the tap has lost are paced by what is measured."""

from __future__ import annotations

import pytest

from nfq_failover.core.shadow.pace import (
    PATIENCE_MAX_S,
    PATIENCE_MIN_S,
    TIMEOUT_FIRST_S,
    TIMEOUT_MAX_S,
    TIMEOUT_MIN_S,
    WINDOW_BYTES,
    Pace,
)


def test_timeout_follows_the_answers() -> None:
    pace = Pace()
    assert pace.timeout_s == TIMEOUT_FIRST_S
    for _ in range(50):
        pace.answered(0.05)
    assert 0.05 <= pace.timeout_s < 0.06
    for _ in range(50):
        pace.answered(0.0001)
    assert pace.timeout_s == TIMEOUT_MIN_S
    for _ in range(50):
        pace.answered(3.0)
    assert pace.timeout_s == TIMEOUT_MAX_S


def test_patience_follows_a_tap_that_is_late() -> None:
    pace = Pace()
    assert pace.patience_s == PATIENCE_MIN_S
    for _ in range(50):
        pace.tap_was_late(0.02)
    assert 0.03 < pace.patience_s <= 0.04
    for _ in range(50):
        pace.tap_was_late(1.0)
    assert pace.patience_s == PATIENCE_MAX_S
    for _ in range(100):
        pace.tap_was_late(0.0)
    assert pace.patience_s == PATIENCE_MIN_S


def test_window_opens_by_what_arrives_and_by_time() -> None:
    pace = Pace()
    assert pace.room(0.0) == WINDOW_BYTES
    pace.asked(WINDOW_BYTES - 10, 0.0)
    assert pace.room(0.0) == 10
    pace.asked(10, 0.001)
    assert pace.room(0.001) == 0
    pace.arrived(1000)
    assert pace.room(0.001) == 1000
    assert pace.room(0.001 + 3 * pace.timeout_s) == WINDOW_BYTES, "what has not come by now is lost"
    pace.arrived(5000)
    assert pace.room(1.0) == WINDOW_BYTES, "late answers are no credit"


@pytest.mark.parametrize("sizes", [(100, 200, 300), (600,), (50, 550)])
def test_answers_come_in_other_pieces_than_the_requests(sizes: tuple[int, ...]) -> None:
    pace = Pace()
    for count in (100, 250, 250):
        pace.asked(count, 0.0)
    for size in sizes:
        pace.arrived(size)
    assert pace.room(0.0) == WINDOW_BYTES
