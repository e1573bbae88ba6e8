"""A router says "fragmentation needed", quoting a segment as the client would have seen it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.connection_world import CALM, SharedLab
from tests.support.lab_world import PORT, eventually
from tests.support.raw_client import raw_client
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

SOURCE_PORTS = (23_461, 23_462)
MTU = 620
SYN_OPTIONS = bytes((2, 4, 5, 180))  # an MSS of 1460


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    # The lab's scrambling changes numbers between the daemon and its kernel, but not inside of ICMP messages.
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM, scramble=False), seed=7)
    yield made
    made.down()


def complain(inside: str, port: int, seq: int) -> None:
    """A router at the client's address does not get a segment of the service through."""
    segment = IP(src=TWO_HOSTS.service, dst=TWO_HOSTS.address(TWO_HOSTS.client)) / TCP(sport=PORT, dport=port, seq=seq)
    error = (
        IP(dst=TWO_HOSTS.service, src=TWO_HOSTS.address(TWO_HOSTS.client))
        / ICMP(type=3, code=4, nexthopmtu=MTU)
        / bytes(segment)[:28]
    )
    with netns.entered(inside):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sender:
        sender.sendto(bytes(error), (TWO_HOSTS.service, 0))


@pytest.mark.parametrize("crash", [False, True], ids=["primary", "survivor"])
def test_path_mtu_is_learnt(world: SharedLab, tmp_path: Path, crash: bool) -> None:
    with world.case(tmp_path) as case:
        inside, port = namespace(case.lab.name, TWO_HOSTS.client), SOURCE_PORTS[crash]
        with raw_client(inside, port, PORT) as client:
            client.open(SYN_OPTIONS)
            client.send(json.dumps({"id": f"mtu-{crash}", "steps": [["echo_all"]]}).encode() + b"\n")
            client.send(content(1, 900))
            assert client.receive(900) == content(1, 900)
            serving = case.crash() if crash else case.lab.resolve("primary")

            def path_mtu() -> int:
                words = ["ss", "-Htin", "src", TWO_HOSTS.service, "dport", "=", str(port)]
                found = re.search(r" pmtu:(\d+)", case.lab.run(serving, words).stdout)
                assert found
                return int(found[1])

            client.send(content(2, 300))
            assert client.receive(300) == content(2, 300)
            assert path_mtu() == 1500
            complain(inside, port, client.expected + 300_000)  # nothing of that kind is in flight: a forgery
            client.send(content(3, 300))
            assert client.receive(300) == content(3, 300)
            assert path_mtu() == 1500
            complain(inside, port, client.expected)
            assert eventually(lambda: path_mtu() == MTU)
            client.send(content(4, 3000))
            assert client.receive(3000) == content(4, 3000)
            assert path_mtu() == MTU
            case.finish()  # while the client's kernel is kept from answering
