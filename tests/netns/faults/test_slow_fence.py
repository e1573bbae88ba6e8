"""A fence that takes seconds, as real ones do: the pause ends with it, not with somebody's doubled timer.

What a client has sent to a dead primary it repeats 0.2, 0.6, 1.4, 3, 6.2 s ... later; so does the replica's TCP with
what it has sent to nobody, and with its probes of a closed window. Here the takeover comes about 4 s after the crash,
with two seconds of silence ahead.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfq_failover.lab.state import Options, write_private
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.lab.workloads.content import Content, Kind, Request
from tests.support.fault_world import CALM_MS, FaultWorld, adding, ended_well, faultless, heard, speakers, talk, whole
from tests.support.fault_world import world as lab_world
from tests.support.namespaces import run

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FENCE_S = 3.3  # after the detection, 0.6 to 0.8 s
PROMPT_S = 0.5
REPEATED_S = 0.3 + PROMPT_S  # core/shadow/recovery.py's first timer


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


def pause(world: FaultWorld, capture: Path) -> Pause:
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
    assert speakers(running.path) == [crashed, TWO_HOSTS.other(crashed)]
    faultless(running)
    first = min(p.time for p in heard(running.path) if p.node == TWO_HOSTS.other(crashed))
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


def test_losses_at_the_takeover_are_made_good_at_once(tmp_path: Path) -> None:
    """The first ten segments of the survivor never reach the client. Our own TCP would repeat them 2 s later, and then
    take the round trip for one of seconds."""
    with lab_world(Options(heartbeat_ms=CALM_MS), slowly) as world:
        crashed = world.lab.resolve("primary")
        survivor = TWO_HOSTS.other(crashed)
        client = namespace(world.lab.name, TWO_HOSTS.client)
        ten = (
            f"-p tcp -m mac --mac-source {TWO_HOSTS.hardware(survivor)} -m length --length 1400: -m quota --quota 15000"
        )
        rule = ["iptables", "-t", "raw", "-I", "PREROUTING", *ten.split(), "-j", "DROP"]
        run("ip", "netns", "exec", client, *rule)
        with world.capture(tmp_path / "client.pcap") as running, world.start("bulk", "--size", "40M") as workload:
            time.sleep(0.3)
            at = time.time()
            world.lab.crash("primary")
            report = ended_well(workload)
        first = min(p.time for p in heard(running.path) if p.node == survivor) - at
        assert first > FENCE_S
        assert report["longest_silence_ms"] / 1000 < first + REPEATED_S
        assert world.ask(survivor)["counters"]["recovery-timeouts"] >= 1
        table = run("ip", "netns", "exec", client, "iptables", "-t", "raw", "-vnxL", "PREROUTING")
        assert table.splitlines()[2].split()[0] == "10"
        whole(running)


def test_window_that_was_opened_during_the_fence_is_heard_of(tmp_path: Path) -> None:
    size = 20_000_000
    with lab_world(Options(heartbeat_ms=CALM_MS), slowly) as world:
        crashed = world.lab.resolve("primary")
        with world.capture(tmp_path / "client.pcap") as running, talk(world, 30.0) as reading:
            assert world.protects(reading.connection)
            reading.connection.sendall(Request(Kind.BULK, 7, 1, size, False).encode())
            time.sleep(1.5)  # nothing is read: the window closes
            waiting = reading.connection.recv(size, socket.MSG_PEEK)
            assert 0 < len(waiting) < size
            world.lab.crash("primary")
            got = bytearray()
            beyond = []  # when the client had got more than its buffer held at the crash

            def read() -> None:
                while len(got) < size:
                    got.extend(reading.connection.recv(1 << 20))
                    if len(got) > len(waiting):
                        beyond.append(time.time())

            reader = threading.Thread(target=read)
            reader.start()  # now it is opened, and nobody hears that
            reader.join(30)
        assert bytes(got) == Content(7).read(size, size)
        assert speakers(running.path) == [crashed, TWO_HOSTS.other(crashed)]
        faultless(running)
        first = min(p.time for p in heard(running.path) if p.node == TWO_HOSTS.other(crashed))
        assert beyond[0] < first + PROMPT_S
