"""A replica that stands still does not hold the primary's clients; they are protected again when it goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace, port
from tests.support.connection_world import CALM, Case, SharedLab
from tests.support.lab_world import PORT, eventually
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

STOPPED = PORT + 91
BYTES = 8_000_000  # more than any window


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM), seed=14)
    yield made
    made.down()


def start(case: Case, role: str) -> int:
    """Start a server of its own on a host. Returns its process id when it listens."""
    node = case.lab.resolve(role)
    pid, _ = case.lab.detach(node, SharedLab.program(f"{STOPPED}"))
    inside = namespace(case.lab.name, node)
    assert eventually(lambda: STOPPED in netns.listeners(inside, lambda port: True).values())
    return pid


def test_an_upload_goes_on_without_a_replica_that_stands_still_and_is_protected_again(
    world: SharedLab, tmp_path: Path
) -> None:
    with world.case(tmp_path) as case:
        start(case, "primary")
        replica = start(case, "backup")
        talk = case.open([["take", BYTES], ["echo_all"]], port=STOPPED)
        case.assert_protected(talk)
        os.kill(replica, signal.SIGSTOP)
        try:
            began = time.monotonic()
            talk.socket.sendall(content(1, BYTES))
            assert time.monotonic() - began < 8.0  # 0.7 s for the bytes, and 2 s of patience
            row = case.row(talk)
            assert not row["protected"]
            assert row["reason"] == "the replica does not take what the client sends"
            late = case.open([["echo_all"]], port=STOPPED)
            late.echo(1, 3000)
            assert not case.row(late)["protected"]
        finally:
            os.kill(replica, signal.SIGCONT)
        case.assert_protected(talk, late, within_s=10.0)  # 2 s, most of it until the first try
        case.crash()
        talk.echo(2, 3000)
        late.echo(3, 3000)


def codes(case: Case) -> list[set[str]]:
    """What is wrong, as each of the two hosts says."""
    return [{each["code"] for each in case.daemon(host)["concerns"]} for host in TWO_HOSTS.hosts]


def test_a_backup_whose_link_is_the_brake_is_told(world: SharedLab, tmp_path: Path) -> None:
    """Nothing is lost, and no replica is late: the client is only slower."""
    with world.case(tmp_path) as case:
        cable, switch = port(case.lab.resolve("backup")), namespace(case.lab.name, SWITCH)
        talk = case.open([["take", BYTES], ["echo_all"]])
        case.assert_protected(talk)
        sending = threading.Thread(target=talk.socket.sendall, args=(content(1, BYTES),))
        netns.tool(f"tc qdisc add dev {cable} root tbf rate 10mbit burst 16384 limit 262144".split(), namespace=switch)
        try:
            sending.start()
            assert eventually(lambda: all("backup-brakes" in found for found in codes(case)))
            assert case.row(talk)["protected"]
        finally:
            netns.tool(["tc", "qdisc", "delete", "dev", cable, "root"], namespace=switch)
            sending.join()
        assert eventually(lambda: not any("backup-brakes" in found for found in codes(case)))
        talk.echo(2, 3000)
