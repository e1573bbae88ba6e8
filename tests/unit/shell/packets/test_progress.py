"""Up to when a queue has been read."""

from __future__ import annotations

import pytest

from nfq_failover.shell.packets import progress
from nfq_failover.shell.packets.progress import ReadProgress


class Clock:
    """A time that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_nothing_waits_until_a_turn_is_full(clock: Clock) -> None:
    read = ReadProgress()
    read.emptied(103.0)
    assert read.read_until is None
    clock.now = 104.0
    read.filled(64, lambda: 500)
    assert read.read_until == 103.0  # it was empty then


@pytest.mark.parametrize("first", [1, 0xFFFFFF00], ids=["small", "wraps"])
def test_a_mark_that_was_passed_tells_the_time(clock: Clock, first: int) -> None:
    read, latest, asked = ReadProgress(), first + 499, 0

    def last_id() -> int:
        nonlocal asked
        asked += 1
        return latest & 0xFFFFFFFF

    told: list[float] = []
    for turn in range(1, 17):
        clock.now += 0.01
        latest += 10
        read.filled((first + 64 * turn) & 0xFFFFFFFF, last_id)
        assert read.read_until is not None
        came = 100.0 + max(64 * turn - 499, 0) / 1000  # the packet that was read last
        assert read.read_until <= came + 0.001
        told.append(read.read_until)
    assert told[:7] == [100.0] * 7 and told == sorted(told)
    assert told[7] == pytest.approx(100.01) and told[-1] > 100.1
    assert asked < 10  # no system call for each turn
    read.emptied(clock.now)
    assert read.read_until is None


def test_who_cannot_ask_the_kernel_knows_nothing(clock: Clock) -> None:
    """Else a queue that never becomes empty would stand still for ever."""
    read = ReadProgress()
    clock.now = 105.0
    read.filled(64, lambda: None)
    read.filled(128, lambda: None)
    assert read.read_until is None
