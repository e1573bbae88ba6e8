"""What the campaign of faults does and remembers: everything about it that needs no lab.

A task is one cell: a fault, a tap with its losses, a mix of workloads, a moment, all drawn from the campaign's seed and
the task's number. Tasks come in blocks that share a lab, and each block deals out all faults.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

PORT: Final = "7000"
SPENT_PORT: Final = "7001"  # of connections that nothing is promised for after the next fault
ALL_PORTS: Final = "7000-7001"
WORKLOAD_S: Final = 2.0
# The moment of the fault, in seconds after the connections are open.
EARLIEST_S: Final = 0.15
LATEST_S: Final = 1.2
# What a takeover may add to the detection time at the client, beyond what the client's own timers explain.
SLOW_MS: Final = 1000.0
SLOW_WITH_LOSS_MS: Final = 4000.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. `weight`: how often it is in each block; `takeovers`: how many one task makes.

    `promise`: what the contract says of the connections, in a report's words; `stall_ms`: what it allows the client to
    wait beyond the detection time when there is no takeover that ends the wait.
    """

    name: str
    what: str
    promise: str
    weight: int
    takeovers: int = 1
    stall_ms: float = 0.0


_LIVE: Final = "all live on"

FAULTS: Final = (
    Fault("power", "power loss of the primary", _LIVE, 6),
    Fault("kill", "kill -9 of the primary's daemon", _LIVE, 3),
    Fault("stop", "SIGSTOP of the primary's daemon", _LIVE, 2),
    Fault("cut", "the primary's cable is cut", _LIVE, 2),
    Fault("mute", "the primary's cable carries nothing outward", _LIVE, 1),
    Fault("sync", "the sync channel is cut at one host, the backup fences the primary", _LIVE, 2),
    Fault("pause", "the backup's daemon stands still for 50 to 150 ms while the primary loses power", _LIVE, 1),
    Fault(
        "rejoin",
        "power loss of the backup under load, it comes back, power loss of the primary",
        "the connections of both times live on; the first may wait for the backup's time to act",
        1,
        stall_ms=2500.0,
    ),
    Fault(
        "twice",
        "power loss of the primary, it comes back, power loss of the survivor",
        "those opened after the rejoin live on; those taken over before may end, but have no wrong byte",
        2,
        takeovers=2,
    ),
)
BY_NAME: Final = {fault.name: fault for fault in FAULTS}
MIXES: Final = ("mixed", "echo", "interactive", "bulk", "upload", "crowd", "ending", "opening")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a block's lab is like. Losses in percent."""

    tap: str
    loss: float = 0.0
    tap_loss: float = 0.0

    @property
    def name(self) -> str:
        """In a report's words."""
        words = [self.tap]
        words += [f"{self.loss:g} % loss"] if self.loss else []
        words += [f"{self.tap_loss:g} % tap loss"] if self.tap_loss else []
        return ", ".join(words)


CONDITIONS: Final = (
    Conditions("clone"),
    Conditions("multicast"),
    Conditions("clone", loss=1),
    Conditions("multicast", tap_loss=5),
    Conditions("clone", tap_loss=10),
    Conditions("multicast", loss=1),
    Conditions("clone", loss=3, tap_loss=3),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One cell. `delay_s`: from the open connections to the fault."""

    number: int
    seed: int
    fault: Fault
    conditions: Conditions
    mix: str
    delay_s: float

    @property
    def key(self) -> str:
        """The name of the task among those of all campaigns; it says how to run it again."""
        return f"{self.seed}/{self.number}/{self.fault.name}/{self.conditions.name}/{self.mix}"

    @property
    def draw(self) -> random.Random:
        """A fresh source of all that is random inside the task."""
        return random.Random(f"{self.seed}/{self.number}/inside")

    def workload(self, port: str = PORT, seconds: float = WORKLOAD_S) -> list[str]:
        """The arguments of the workload's client."""
        if self.mix == "ending":
            seconds = self.delay_s
        connections, arguments = _WORKLOADS[self.mix]
        words = [*arguments, "--connections", str(connections), "--port", port, "--seconds", f"{seconds:.3f}"]
        return [*words, "--seed", str(self.number + 1)]

    def latecomers(self) -> list[str]:
        """The arguments of a second client that opens its connections about when the fault comes."""
        words = ["mixed", "--connections", "8", "--size", "100k", "--rate", "20", "--port", PORT, "--seconds", "1"]
        return [*words, "--seed", str(self.number + 500_001)]

    @property
    def slow_ms(self) -> float:
        """What the client may wait beyond the detection time before it is an anomaly."""
        return SLOW_WITH_LOSS_MS if self.conditions.loss else SLOW_MS


_WORKLOADS: Final[dict[str, tuple[int, list[str]]]] = {
    "mixed": (8, ["mixed", "--size", "300k", "--rate", "40"]),
    "echo": (6, ["echo", "--rate", "100"]),
    "interactive": (6, ["interactive", "--rate", "50"]),
    "bulk": (3, ["bulk", "--size", "2M"]),
    "upload": (3, ["upload", "--size", "2M"]),
    "crowd": (40, ["mixed", "--size", "20k", "--rate", "8"]),
    "ending": (12, ["mixed", "--size", "50k", "--rate", "40"]),
    "opening": (4, ["mixed", "--size", "100k", "--rate", "40"]),
}


def plan(count: int, seed: int, faults: Iterable[str] = tuple(BY_NAME)) -> list[Task]:
    """The tasks that make at least `count` takeovers. A longer plan begins with the shorter one."""
    chosen = list(faults)
    tasks: list[Task] = []
    for task in _endless(seed):
        if count <= 0:
            return tasks
        if task.fault.name in chosen:
            tasks.append(task)
            count -= task.fault.takeovers
    raise AssertionError("the plan has no end")


def _endless(seed: int) -> Iterator[Task]:
    number = block = 0
    while True:
        draw = random.Random(f"{seed}/block/{block}")
        hand = [fault for fault in FAULTS for _ in range(fault.weight)]
        draw.shuffle(hand)
        mixes: list[str] = []
        for fault in hand:
            if not mixes:
                mixes = draw.sample(MIXES, len(MIXES))
            delay_s = round(draw.uniform(EARLIEST_S, LATEST_S), 3)
            yield Task(number, seed, fault, CONDITIONS[block % len(CONDITIONS)], mixes.pop(), delay_s)
            number += 1
        block += 1


@dataclass(frozen=True, slots=True)
class Record:
    """What one task did to its clients. `violations`: where the contract was broken; `notes`: what else was odd.

    `crashed`: the hosts that went down as the primary, in order, like "a" or "ab": a letter for each. `silence_ms`: the
    longest that a promised connection's application waited for something, from all of the task's clients.
    """

    key: str
    number: int
    seed: int
    lab_seed: int
    fault: str
    conditions: str
    mix: str
    detection_ms: int
    delay_s: float
    crashed: str = ""
    connections: int = 0
    unprotected: int = 0
    wrong_bytes: int = 0
    broken: int = 0
    resets: int = 0
    ended: int = 0
    bytes: int = 0
    silence_ms: float | None = None
    connect_ms: float | None = None
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    commit: str = ""
    finished: str = ""

    @property
    def takeovers(self) -> int:
        """How many it made."""
        return len(self.crashed)

    def oddities(self) -> list[str]:
        """Why this run's capture should be looked at; empty for a run as it should be."""
        return [*self.violations, *self.notes]
