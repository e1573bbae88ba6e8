"""The event loop: who is called, for which wake-up, and when a wait ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nfq_failover.shell.loop import Loop


class Ready:
    """A descriptor that is readable from the beginning, and how often its reader was called."""

    def __init__(self) -> None:
        self.fd = os.eventfd(1, os.EFD_NONBLOCK)
        self.calls = 0

    def read(self) -> None:
        self.calls += 1

    def close(self) -> None:
        with suppress(OSError):
            os.close(self.fd)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[Ready, Ready]]:
    made = Ready(), Ready()
    yield made
    for one in made:
        one.close()


def waited(loop: Loop, *deadlines_s: float) -> float:
    """How long a wait with these deadlines takes."""
    began = time.monotonic()
    for after_s in deadlines_s:
        loop.deadline(began + after_s)
    loop.wait(began)
    return time.monotonic() - began


def test_readers_of_readable_descriptors_are_called_when_the_owner_says_so(
    loop: Loop, pair: tuple[Ready, Ready]
) -> None:
    one, other = pair
    loop.watch(one.fd, one.read)
    loop.watch(other.fd, other.read)
    os.eventfd_read(other.fd)
    readable = loop.wait(time.monotonic())
    assert (readable, one.calls) == ([one.fd], 0)
    loop.serve(readable)
    assert (one.calls, other.calls) == (1, 0)


def test_without_a_reader_a_descriptor_ends_the_wait(loop: Loop, pair: tuple[Ready, Ready]) -> None:
    loop.watch(pair[0].fd)
    readable = loop.wait(time.monotonic())
    assert readable == [pair[0].fd]
    loop.serve(readable)


def test_the_earliest_deadline_ends_the_wait_and_only_this_one(loop: Loop) -> None:
    assert 0.05 <= waited(loop, 10.0, 0.05, 20.0) < 5
    assert 0.1 <= waited(loop, 0.1) < 5, "the earlier deadline is over"
    assert waited(loop, -1.0) < 1
    began = time.monotonic()
    assert loop.wait(began, 0.05) == [] and 0.05 <= time.monotonic() - began < 5


def test_what_is_forgotten_is_not_called_though_the_wait_has_seen_it(loop: Loop, pair: tuple[Ready, Ready]) -> None:
    one, other = pair
    loop.watch(one.fd, lambda: loop.unwatch(other.fd))
    loop.watch(other.fd, lambda: loop.unwatch(one.fd))
    readable = loop.wait(time.monotonic())
    assert len(readable) == 2
    loop.serve(readable)
    loop.deadline(0.0)
    assert len(loop.wait(time.monotonic())) == 1, "the first has removed the second"


def test_a_number_with_a_new_owner_waits_for_the_next_wake_up(loop: Loop, pair: tuple[Ready, Ready]) -> None:
    """The kernel gives the lowest free number: what a reader opens has the number of what it has closed."""
    one, other = pair
    new: list[Ready] = []

    def replace(closed: Ready) -> None:
        loop.unwatch(closed.fd)
        closed.close()
        new.append(Ready())
        assert new[0].fd == closed.fd
        loop.watch(new[0].fd, new[0].read)

    loop.watch(one.fd, lambda: replace(other))
    loop.watch(other.fd, lambda: replace(one))
    readable = loop.wait(time.monotonic())
    assert set(readable) == {one.fd, other.fd}
    loop.serve(readable)
    (fresh,) = new
    assert fresh.calls == 0
    loop.serve([fd for fd in loop.wait(time.monotonic()) if fd == fresh.fd])
    assert fresh.calls == 1
    fresh.close()


def test_a_descriptor_that_is_closed_already_can_be_forgotten(loop: Loop) -> None:
    one = Ready()
    loop.watch(one.fd, one.read)
    one.close()
    loop.unwatch(one.fd)
    loop.deadline(0.0)
    assert loop.wait(time.monotonic()) == []
