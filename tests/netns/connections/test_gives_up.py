"""A backup whose TCP gives up sooner than the primary's: clients that answer are none of its business."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.core.shadow.vanished import GIVEN_UP, SUSPECTED_EVERY_S
from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.connection_world import CALM, SharedLab
from tests.support.lab_world import PORT, eventually
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

BYTES = 2_000_000  # more than any window
RESTS_S = 4.5  # the primary's TCP probes after 0.2, 0.6, 1.4 and 3 s; the backup's loses patience 1.4 s after an answer


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM), seed=15)
    yield made
    made.down()


def sockets(inside: str) -> int:
    """How many connections to the service the kernel has there."""
    found = netns.tool(["ss", "-tnH", "state", "established", f"( sport = :{PORT} )"], namespace=inside)
    return len(found.splitlines())


def test_a_client_that_does_not_read_and_one_that_answers_nobody(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path, resets=True) as case:
        client, backup = (namespace(case.lab.name, node) for node in (TWO_HOSTS.client, case.lab.resolve("backup")))
        netns.write_sysctls(backup, {"net.ipv4.tcp_retries2": "2", "net.ipv4.tcp_retries1": "1"})
        slow = case.open(
            [["send", BYTES, 1], ["echo_all"]],
            prepare=lambda made: made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536),
        )
        case.assert_protected(slow)
        time.sleep(RESTS_S)
        assert sockets(backup) == 1
        assert case.row(slow)["protected"]

        mute = case.open([["gate", str(case.gate("go"))], ["send", 10_000, 2], ["echo_all"]])
        case.assert_protected(mute)
        rule = f"PREROUTING -t raw -p tcp --dport {mute.socket.getsockname()[1]} -j DROP".split()
        netns.tool(["iptables", "-A", *rule], namespace=client)
        case.gate("go").touch()
        assert eventually(lambda: sockets(backup) == 1, 8.0), "our kernel has not given up what nobody acknowledges"
        assert eventually(lambda: not case.row(mute)["protected"], SUSPECTED_EVERY_S + 0.5)
        assert case.row(mute)["reason"] == GIVEN_UP
        netns.tool(["iptables", "-D", *rule], namespace=client)
        assert mute.receive(10_000) == content(2, 10_000)
        mute.echo(3)  # by the primary alone

        assert slow.receive(BYTES) == content(1, BYTES)
        case.assert_protected(slow)
        case.crash()
        slow.echo(4, 3000)
        with pytest.raises(ConnectionResetError):
            mute.socket.recv(1)
