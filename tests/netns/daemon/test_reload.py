"""A pair is given another configuration while it serves: connections go on, and an added port survives a crash."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.lab import netns, nodes
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import measure, read_capture
from nfq_failover.lab.state import Options, Store
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.fault_world import (
    CALM_MS,
    FaultWorld,
    Talk,
    clock_set_back,
    ended_well,
    speakers,
    talk,
    window_taken_back,
)
from tests.support.lab_world import PORT, connect, eventually, lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ADDED = PORT + 1


@pytest.fixture
def world() -> Iterator[FaultWorld]:
    with lab(Options(ports=(str(PORT),), rate="100mbit", heartbeat_ms=CALM_MS)) as made:
        world = FaultWorld(made)
        world.driver.serve_workloads(str(PORT), str(ADDED))
        assert eventually(world.is_protected)
        yield world


def config(world: FaultWorld, node: str) -> Path:
    return world.lab.store.directory / node / "config.toml"


def edit(world: FaultWorld, node: str, old: str, new: str) -> None:
    path = config(world, node)
    text = path.read_text()
    assert len(re.findall(old, text)) == 1
    path.write_text(re.sub(old, new, text))


def reload(world: FaultWorld, node: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nfq_failover", "reload", "--config", str(config(world, node))]
    return world.lab.run(node, argv)


def codes(world: FaultWorld, node: str) -> set[str]:
    return {concern["code"] for concern in world.ask(node)["concerns"]}


def test_connections_go_on_and_an_added_port_survives_a_crash(world: FaultWorld, tmp_path: Path) -> None:
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    both = f"ports = [{PORT}, {ADDED}]"
    with world.capture(tmp_path / "client.pcap") as running, talk(world) as old:
        early = Talk(connect(world.lab, ADDED))  # at a port that nobody protects so far
        early.exchange()
        load = world.start("bulk", "--size", "80M")  # 7 s

        # One host has the port, and the other has not: that is named, and nothing is lost.
        edit(world, primary, r"ports = .*", f"{both}\nlog_level = 'debug'\nqueue_max_packets = 9999")
        done = reload(world, primary)
        assert done.returncode == 0, done.stderr
        assert f"applied: ports: {PORT} -> {PORT}, {ADDED}" in done.stdout
        assert "takes a restart: queue_max_packets" in done.stdout
        assert f"ports {ADDED} are not protected until the other host has them" in done.stdout
        assert eventually(lambda: "differs-added-ports" in codes(world, backup))
        assert world.membership() == {primary: "protected", backup: "shadowing"}
        assert world.protects(old.connection)
        early.exchange()

        # A file that is wrong changes nothing.
        said = len(world.log(backup))
        edit(world, backup, r"ports = .*", f"ports = [{PORT}, {ADDED}, 99999]")
        done = reload(world, backup)
        assert done.returncode == 1 and "99999" in done.stderr and "nothing has changed" in done.stderr
        assert world.comes(backup, said, "configuration not reloaded", "config.toml:")

        # Then the other host, by a signal.
        edit(world, backup, r", 99999", "")
        world.kill_daemon(backup, signal.SIGHUP)
        assert world.comes(backup, said, "configuration reloaded")
        assert eventually(lambda: "differs-added-ports" not in codes(world, primary))
        assert eventually(world.is_protected)
        early.exchange()
        early.connection.close()
        with Talk(connect(world.lab, ADDED)) as new:
            new.exchange()
            assert world.protects(new.connection), (world.row(new.connection), world.ask(primary)["concerns"])
            assert world.protects(old.connection)
            crashed_at = world.lab.crash(primary)["time_s"]
            new.exchange()
            old.exchange()
            ended_well(load)
    protected_is_faultless(running, crashed_at)
    assert speakers(running.path) == [primary, backup]


def protected_is_faultless(running: Capture, crashed_at: float) -> None:
    """Nothing is wrong with any connection, but that the survivor resets the second one, which nobody protected: it
    may be listed still, though its client has closed it. Of its numbers the survivor knows little."""
    assert running.counts is not None
    every = read_capture(running.path, TWO_HOSTS.service)
    lost = {p.number for p in every if p.stream == 1 and p.from_service and p.time > crashed_at}
    packets = [p for p in every if p.number not in lost]
    assert len({packet.stream for packet in packets}) == 4
    found = measure(packets, running.counts.missing)
    assert found.dropped_by_capture == 0
    problems = [text for text in found.problems() if not text.startswith("timestamp")]
    assert not problems, problems
    assert {*clock_set_back(running.path), *window_taken_back(running.path)} <= lost


def test_a_restart_with_a_wrong_file_goes_on_with_the_one_before(
    world: FaultWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = world.lab.resolve("backup")
    primary = TWO_HOSTS.other(backup)

    def start(store: Store, node: str) -> subprocess.Popen[bytes]:
        """As the unit does."""
        argv = [sys.executable, "-m", "nfq_failover", "run", "--config", str(config(world, node))]
        argv += ["--last-good", str(store.directory / node / "last-good.toml")]
        process = netns.spawn(namespace(store.name, node), argv, store.log(f"daemon-{node}"))
        (store.directory / node / "daemon.pid").write_text(f"{process.pid}\n")
        return process

    def restart() -> None:
        world.kill_daemon(backup, signal.SIGTERM)
        assert eventually(lambda: nodes.ask_daemon(world.lab.store, backup) is None)
        netns.reap()
        world.lab.start_daemon(backup)
        assert eventually(lambda: world.membership() == {primary: "protected", backup: "shadowing"})

    monkeypatch.setattr(nodes, "start_daemon", start)
    restart()
    said = len(world.log(backup))
    edit(world, backup, r"ports = .*", f"ports = [{PORT}, 99999")
    restart()
    assert world.comes(backup, said, "configuration wrong, going on with the one before", "config.toml:")
    for node in (primary, backup):
        assert eventually(lambda node=node: "configuration-wrong" in codes(world, node))  # type: ignore[misc]
    assert reload(world, backup).returncode == 1
    edit(world, backup, ", 99999", "]")
    assert reload(world, backup).returncode == 0
    for node in (primary, backup):
        assert eventually(lambda node=node: "configuration-wrong" not in codes(world, node))  # type: ignore[misc]
    with talk(world) as new:
        assert world.protects(new.connection)
