"""A fence that takes seconds, as real ones do: the pause ends with it, not with the client's doubled timer.

What a client has sent to a dead primary it repeats 0.2, 0.6, 1.4, 3, 6.2 s ... later. Here the takeover comes about 4 s
after it was sent, with two seconds of silence ahead.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_world import CALM_MS, World, adding, faultless, heard, speakers, talk
from fault_world import world as lab_world

from nfq_failover.lab.nodes import other
from nfq_failover.lab.state import Options, write_private

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FENCE_S = 3.3  # after the detection, 0.6 to 0.8 s
PROMPT_S = 0.5


def slowly(text: str) -> str:
    """A configuration whose fence takes its time."""
    line = next(line for line in text.splitlines() if line.startswith("fence = "))
    script = Path(line.split('"')[1])
    slow = script.with_name("fence_slow")
    write_private(slow, f'#!/bin/sh\nsleep {FENCE_S}\nexec {script} "$@"\n', mode=0o700)
    kept = [part for part in text.splitlines() if not part.startswith("fence_deadline_ms")]
    return "\n".join(["fence_deadline_ms = 10000", *kept, ""]).replace(str(script), str(slow), 1)


@dataclass(frozen=True)
class Pause:
    """Times since the request, in seconds: the survivor's first word, and the answer."""

    first_word_s: float
    answer_s: float


def pause(world: World, capture: Path) -> Pause:
    """A request just after the crash, and its answer; a connection that is idle meanwhile is as well afterwards."""
    crashed = world.lab.resolve("primary")
    with world.capture(capture) as running, talk(world, 30.0) as asking, talk(world) as idle:
        assert world.protects(asking.connection) and world.protects(idle.connection)
        world.lab.crash("primary")
        asked = time.time()
        asking.exchange()
        answered = time.time()
        idle.exchange()
        assert asking.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert speakers(running.path) == [crashed, other(crashed)]
    faultless(running)
    first = min(p.time for p in heard(running.path) if p.node == other(crashed))
    return Pause(first - asked, answered - asked)


def test_the_answer_comes_when_the_fence_is_over(tmp_path: Path) -> None:
    with lab_world(Options(heartbeat_ms=CALM_MS), slowly) as world:
        seen = pause(world, tmp_path / "client.pcap")
        assert seen.first_word_s > FENCE_S
        assert seen.answer_s < seen.first_word_s + PROMPT_S
        counters = world.ask(world.lab.resolve("primary"))["counters"]
        assert counters["backoff-reverts"] >= 2 * 3


def test_without_it_the_client_waits_as_long_again(tmp_path: Path) -> None:
    """So the other test measures what it says, and the setting works."""
    with lab_world(Options(heartbeat_ms=CALM_MS), lambda text: adding("revert_backoff = false")(slowly(text))) as world:
        seen = pause(world, tmp_path / "client.pcap")
        assert seen.answer_s > seen.first_word_s + 3 * PROMPT_S
