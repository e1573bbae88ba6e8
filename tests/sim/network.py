"""Paths that lose, repeat, delay and reorder, by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Generic, TypeVar

from .clock import Clock


@dataclass(frozen=True)
class Quality:
    """What one direction of a path does to packets; delays in seconds, the rest as shares."""

    delay: float = 0.0005
    jitter: float = 0.0001
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0

    def healed(self) -> Quality:
        """The same without faults."""
        return replace(self, loss=0.0, duplicate=0.0, reorder=0.0)


T = TypeVar("T")


class Path(Generic[T]):
    """One direction, for what `deliver` takes. Nothing passes while one incident or more (`cuts`) hold it cut."""

    def __init__(self, clock: Clock, quality: Quality, deliver: Callable[[T], None], random: Random) -> None:
        self.clock, self.quality, self.deliver, self.random = clock, quality, deliver, random
        self.cuts = 0
        self._last = 0.0

    def send(self, packet: T) -> bool:
        """The path takes a packet. Returns whether it is not lost."""
        quality, random = self.quality, self.random
        if self.cuts or (quality.loss and random.random() < quality.loss):
            return False
        copies = 2 if quality.duplicate and random.random() < quality.duplicate else 1
        for _ in range(copies):
            arrival = self.clock.now + quality.delay + quality.jitter * random.random()
            if quality.reorder and random.random() < quality.reorder:
                arrival += random.random() * 4 * quality.delay  # overtaken by what comes later
            else:
                arrival = self._last = max(arrival, self._last + 1e-7)
            self.clock.at(arrival, self._arrive, packet)
        return True

    def _arrive(self, packet: T) -> None:
        if not self.cuts:
            self.deliver(packet)

    def cut(self, seconds: float) -> None:
        """Nothing passes for this long."""
        self.cuts += 1
        self.clock.after(seconds, self._mend)

    def _mend(self) -> None:
        self.cuts -= 1
