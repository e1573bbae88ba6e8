"""A real daemon whose peer is not heard, and what it finds out about that from its kernel and from what arrives."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.core.pair.session import Session
from tests.support.daemon_world import DaemonWorld, daemon_world, wait_until
from tests.support.session_pair import hello, make

pytestmark = pytest.mark.netns

PEER = "10.77.0.3"
KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as made:
        yield made


def unheard(world: DaemonWorld) -> str:
    """What the daemon says of its peer; nothing if it says nothing."""
    found = [each["what"] for each in world.status()["concerns"] if each["code"] == "peer-unheard"]
    return found[0] if found else ""


class Speaker:
    """Says HELLO to the daemon from an address of the client's host."""

    def __init__(self, world: DaemonWorld, source: tuple[str, int], session: Session) -> None:
        self.session = session
        with world.client.entered():
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(source)
        self.now = 0.0

    def until(self, world: DaemonWorld, words: str) -> None:
        """Say HELLO until the daemon says these words; they have come within 3 s."""
        began = time.monotonic()

        def said() -> bool:
            self.now += 10.0
            self.udp.sendto(hello(self.session, self.now), ("10.77.0.2", 7766))
            return words in unheard(world)

        wait_until(said)
        assert time.monotonic() - began < 3.0
        self.udp.close()


def test_it_says_why_its_peer_is_not_heard(world: DaemonWorld) -> None:
    _, log = world.ready(world.config(ports=[80]))
    began = time.monotonic()
    wait_until(lambda: f"there is no way to {PEER}:7766" in unheard(world))  # nobody answers ARP
    world.client.run("ip", "address", "add", f"{PEER}/24", "dev", "eth0")
    wait_until(lambda: f"nobody listens at {PEER}:7766" in unheard(world))
    reject = ("-p", "udp", "--dport", "7766", "-j", "REJECT", "--reject-with", "icmp-admin-prohibited")
    world.client.run("iptables", "-I", "INPUT", *reject)
    wait_until(lambda: f"a firewall refuses what this host sends to {PEER}:7766" in unheard(world))
    world.client.run("iptables", "-F", "INPUT")
    world.server.run("iptables", "-I", "OUTPUT", "-d", PEER, "-j", "DROP")
    wait_until(lambda: f"this host can't send to {PEER}:7766: Operation not permitted" in unheard(world))
    world.server.run("iptables", "-F", "OUTPUT")

    Speaker(world, (PEER, 7766), make("b", "a", key=b"x" * 32)).until(
        world, f"datagrams come from {PEER}, but with another key"
    )
    Speaker(world, (PEER, 7766), make("gamma", "a", key=KEY)).until(
        world, f"datagrams come from {PEER}, but they call themselves 'gamma', this host expects 'b'"
    )
    Speaker(world, ("10.77.0.1", 4711), make("b", "a", key=KEY)).until(
        world, f"datagrams of b come from 10.77.0.1:4711, this host expects {PEER}:7766"
    )
    text = log.read_text()
    assert "waiting for the peer" in text
    lines = [line for line in text.splitlines() if re.search(r"\[error +\]", line)]
    assert any("with another key" in line for line in lines)
    assert len(lines) <= 8  # one for each kind, however often it was seen
    assert time.monotonic() - began < 30
