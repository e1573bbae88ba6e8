"""Every shape of a partition, with and without fence and witness: one host is heard at a time, as the client has it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab import cables, netns, nodes, power
from nfq_failover.lab.state import Cut, Options, write_private
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace
from tests.support.fault_world import FaultWorld, Talk, heard, speakers, talk
from tests.support.lab_world import eventually
from tests.support.shared_lab import Shared, each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HEARTBEAT_MS = 100
LEASE_S = 9 * HEARTBEAT_MS / 1000  # three times the detection time
WITNESSED = Options(rate="100mbit", heartbeat_ms=HEARTBEAT_MS, fence=False, witness=True)


shared = shared_lab(WITNESSED)
world = each_world()


class Caller(threading.Thread):
    """A client that goes on asking on one connection. `stop` tells how many answers came; a wrong byte is an error."""

    def __init__(self, connection: Talk) -> None:
        super().__init__(daemon=True)
        self.talk = connection
        self.talk.connection.settimeout(0.05)
        self.answers = 0
        self.error: Exception | None = None
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.is_set():
            try:
                self.talk.exchange_slowly(self._end)
                self.answers += 1
            except Exception as error:
                self.error = error
                return
            time.sleep(0.02)

    def goes_on(self) -> bool:
        """Whether another answer comes, soon."""
        before = self.answers
        return eventually(lambda: self.answers > before + 1 or self.error is not None) and self.error is None

    def stop(self) -> None:
        """End it."""
        self._end.set()
        self.join(20)
        assert not self.is_alive()


def cut(world: FaultWorld, node: str, only: str | None, direction: str | None = None) -> None:
    world.lab.cut(Cut(node, only, direction))


def healed(world: FaultWorld) -> None:
    """All cables are whole, and the pair is protected again: one owner."""
    for node in ("a", "b"):
        world.lab.heal(node)
    assert eventually(world.is_protected, 20), world.states()


@pytest.mark.parametrize("direction", [None, "in", "out"])
def test_witness_for_the_backup(world: FaultWorld, direction: str | None, tmp_path: Path) -> None:
    """The primary reaches neither its backup nor the witness: it is silent before the backup speaks."""
    primary = world.lab.resolve("primary")
    backup, epoch = TWO_HOSTS.other(primary), world.epoch()
    lines = len(world.log(primary))
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        caller = Caller(connection)
        assert caller.goes_on()
        cut(world, primary, "witness")
        cut(world, primary, "sync", direction)
        if direction == "in":
            # The backup hears the primary well, and has no cause to ask: nobody is heard until the cut is repaired.
            assert eventually(lambda: world.membership() == {primary: "doubt", backup: "shadowing"})
            assert eventually(lambda: bool(world.said(primary, lines, "votes are too old")))
            answers = caller.answers
            time.sleep(0.5)
            assert caller.answers <= answers + 1
            healed(world)
            assert caller.goes_on()
            expected = [primary]
        else:
            world.becomes(**{backup: "unprotected"})
            assert caller.goes_on(), "the same connection, on the other host"
            assert world.states()[primary] != "protected"
            expected = [primary, backup]
        caller.stop()
    assert caller.error is None
    assert speakers(running.path) == expected
    if direction != "in":
        packets = heard(running.path)
        first = min(p.time for p in packets if p.node == backup)
        last = max(p.time for p in packets if p.node == primary)
        assert last < first
    healed(world)
    assert (world.epoch() > epoch) is (direction != "in")


def test_witness_for_the_primary(world: FaultWorld, tmp_path: Path) -> None:
    """The backup reaches neither: the primary goes on alone, without waiting for the backup's time to pass."""
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        caller = Caller(connection)
        assert caller.goes_on()
        cut(world, backup, "witness")
        cut(world, backup, "sync")
        world.becomes(**{primary: "unprotected", backup: "asking"})
        assert caller.goes_on()
        world.lab.heal(backup)
        assert eventually(world.is_protected, 20), world.states()
        caller.stop()
    assert caller.error is None
    assert speakers(running.path) == [primary]


def test_both_reach_the_witness(world: FaultWorld, tmp_path: Path) -> None:
    primary = world.lab.resolve("primary")
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        caller = Caller(connection)
        cut(world, primary, "sync")
        assert eventually(lambda: sorted(map(str, world.states().values())) in SETTLED, 20), world.states()
        assert caller.goes_on()
        caller.stop()
    assert caller.error is None
    assert len(speakers(running.path)) <= 2
    healed(world)


SETTLED = (["refused", "unprotected"], ["unprotected", "waiting"])


def test_nobody_reaches_the_witness(world: FaultWorld, tmp_path: Path) -> None:
    """Nobody is heard, however long it takes, until one of them reaches it."""
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        caller = Caller(connection)
        assert caller.goes_on()
        for node in (primary, backup):
            cut(world, node, "witness")
        cut(world, primary, "sync")
        world.becomes(**{primary: "doubt", backup: "asking"})
        silent = caller.answers
        time.sleep(1.2 * LEASE_S)
        assert caller.answers <= silent + 1
        assert world.states() == {primary: "doubt", backup: "asking"}
        world.lab.heal(backup)  # the sync channel is cut at the primary
        world.becomes(**{backup: "unprotected"})
        assert caller.goes_on()
        caller.stop()
    assert caller.error is None
    assert speakers(running.path) == [primary, backup]
    healed(world)


def test_a_crash_with_a_witness_and_no_fence(world: FaultWorld, tmp_path: Path) -> None:
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        caller = Caller(connection)
        assert caller.goes_on()
        crash = world.lab.crash(primary)
        world.becomes(**{backup: "unprotected"})
        assert caller.goes_on()
        caller.stop()
    assert caller.error is None
    assert speakers(running.path) == [primary, backup]
    first = min(p.time for p in heard(running.path) if p.node == backup)
    assert first - crash["time_s"] >= LEASE_S - 2 * HEARTBEAT_MS / 1000, "not before the lease has ended"


def test_the_clients_side_alone_is_no_cause_to_act(world: FaultWorld, tmp_path: Path) -> None:
    """The hosts hear each other: who serves stays, whatever the client hears."""
    primary, epoch = world.lab.resolve("primary"), world.epoch()
    for direction in (None, "in", "out"):
        cut(world, primary, "client", direction)
        time.sleep(0.3)
        world.lab.heal(primary)
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        connection.exchange()
        cut(world, TWO_HOSTS.other(primary), "client")
        connection.exchange()
    assert speakers(running.path) == [primary]
    assert world.epoch() == epoch
    healed(world)


def flaps(world: FaultWorld, path: Path, gaps: tuple[float, ...]) -> None:
    """The sync channel comes and goes; whoever is heard, it is one at a time, and in the end the pair is protected."""
    epoch = world.epoch()
    with world.capture(path) as running:
        for gap in gaps:
            with talk(world) as connection:
                caller = Caller(connection)
                try:
                    cut(world, "a", "sync")
                    time.sleep(gap)
                    world.lab.heal("a")
                except CommandError:
                    assert not power.is_on(world.lab.name, "a")  # it was fenced since we looked
                time.sleep(0.1)
                caller.stop()
            if not all(world.ask(node) for node in ("a", "b")):
                break  # one was fenced
        eventually(lambda: "unprotected" in world.states().values() or world.is_protected(), 20)
        with talk(world) as connection:
            connection.exchange()
    turns = speakers(running.path)
    assert len(turns) - 1 <= world.epoch() - epoch, "each change of the speaker is a change of the epoch"


def test_a_flapping_channel_with_a_witness(world: FaultWorld, tmp_path: Path) -> None:
    flaps(world, tmp_path / "client.pcap", (0.15, 0.35, 0.55, 0.25, 1.1))
    healed(world)


def test_a_witness_that_restarts_remembers(world: FaultWorld) -> None:
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    cut(world, backup, "witness")
    cut(world, backup, "sync")
    world.becomes(**{primary: "unprotected", backup: "asking"})
    for pid in netns.pids(namespace(world.lab.name, SWITCH)):
        if b"--state-dir" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    nodes.start_witness(world.lab.store, TWO_HOSTS)
    with world.lab.store.changing() as state:
        state.cuts = [one for one in state.cuts if one.only != "witness"]
        cables.apply(world.lab.name, state)
    world.becomes(**{primary: "unprotected", backup: "refused"})
    healed(world)


# ------------------------------------------------------------------------------------------------------- with a fence


# The lab's own fence command behind the standard interface. The very first `off` fails; the status has the last word.
AGENT = """#!/bin/bash
while IFS='=' read -r name value; do declare "given_$name=$value"; done
[ "$given_password" = hunter2 ] || exit 1
echo "password=$given_password"
case $given_action in
    off)
        rm -f "$0.off"
        [ -e "$0.once" ] || { touch "$0.once"; exit 1; }
        SCRIPT "$given_plug" && touch "$0.off"
        ;;
    status) [ -e "$0.off" ] && exit 2; exit 0 ;;
    *) exit 1 ;;
esac
"""


def with_agent(text: str) -> str:
    """A configuration with a fence agent in the place of the lab's command."""
    line = next(line for line in text.splitlines() if line.startswith("fence = "))
    script = line.split('"')[1]
    agent = Path(script).with_name("fence_lab")
    write_private(agent, AGENT.replace("SCRIPT", script), mode=0o700)
    table = f'\n[fence]\nagent = "{agent}"\n[fence.parameters]\nplug = "{{peer}}"\npassword = "hunter2"\n'
    return "fence_retry_ms = 200\n" + text.replace(line, "") + table


fenced = shared_lab(Options(rate="100mbit", heartbeat_ms=HEARTBEAT_MS), edit=with_agent)


def test_a_fence_agent(fenced: Shared, tmp_path: Path) -> None:
    """The standard interface, end to end."""
    world = fenced.ready()
    with talk(world) as connection, world.capture(tmp_path / "client.pcap") as running:
        world.lab.crash("a")
        world.becomes(b="unprotected")
        connection.exchange()
    assert speakers(running.path) == ["b"]
    assert eventually(lambda: bool(world.said("b", 0, "its status is off", "after 2 attempts")))
    assert "hunter2" not in world.log("b")


def test_a_refused_host_serves_when_a_later_fence_succeeds(fenced: Shared, tmp_path: Path) -> None:
    """Nobody serves as long as the fence fails, though the primary is dead; then the survivor does, but not the old
    connections: meanwhile the primary might have let them go on without it."""
    world = fenced.ready()
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    lines = len(world.log(backup))
    with talk(world) as idle, world.capture(tmp_path / "client.pcap") as running:
        with world.fence_fails(backup):
            world.lab.crash(primary)
            assert eventually(lambda: len(world.said(backup, lines, "error", "after=refused")) >= 2, 20), "loud, again"
        world.becomes(**{backup: "unprotected"})
        with pytest.raises(OSError):
            idle.exchange()  # a reset, rather than wrong bytes
        with talk(world) as new:
            new.exchange()
    assert speakers(running.path) == [backup]
    assert world.said(backup, lines, "after=retrying")


def test_a_flapping_channel_with_a_fence(fenced: Shared, tmp_path: Path) -> None:
    flaps(fenced.ready(), tmp_path / "client.pcap", (0.15, 0.3, 0.8))
