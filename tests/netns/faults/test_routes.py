"""Routes of the backup that lead its answers elsewhere, under way: whose connections are unprotected, and how long."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.fault_world import CALM_MS, FaultWorld, Talk, talk, world
from tests.support.lab_world import PORT, eventually

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OTHER = "10.77.0.9"  # a second address of the client's host


@contextlib.contextmanager
def talk_from(pair: FaultWorld, address: str) -> Iterator[Talk]:
    """A connection from another address of the client's host."""
    with netns.entered(namespace(pair.lab.name, TWO_HOSTS.client)):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(10.0)
    connection.bind((address, 0))
    connection.connect((TWO_HOSTS.service, PORT))
    with Talk(connection) as made:
        made.exchange()
        yield made


def test_one_client_without_a_way_then_all_of_them_then_none() -> None:
    with world(Options(heartbeat_ms=CALM_MS, scramble=False)) as pair:
        client, backup = (namespace(pair.lab.name, node) for node in (TWO_HOSTS.client, pair.lab.resolve("backup")))
        netns.tool(["ip", "address", "add", f"{OTHER}/24", "dev", "eth0"], namespace=client)
        with talk(pair) as stays, talk_from(pair, OTHER) as hindered:
            assert pair.protects(stays.connection) and pair.protects(hindered.connection)
            netns.tool(["ip", "route", "add", "blackhole", f"{OTHER}/32"], namespace=backup)
            assert eventually(lambda: set(pair.states().values()) == {"degraded"}, 4.0)
            assert "its route is 'blackhole'" in pair.why_not(hindered.connection)
            assert pair.protects(stays.connection)
            netns.tool(["ip", "rule", "add", "pref", "9", "from", TWO_HOSTS.service, "prohibit"], namespace=backup)
            assert eventually(lambda: set(pair.states().values()) == {"unprotected"}, 4.0)
            assert "its route is 'prohibit'" in pair.why_not(stays.connection)
            netns.tool(["ip", "rule", "del", "pref", "9"], namespace=backup)
            netns.tool(["ip", "route", "del", "blackhole", f"{OTHER}/32"], namespace=backup)
            assert eventually(pair.is_protected, 4.0)
            assert pair.protects(stays.connection) and pair.protects(hindered.connection)
            pair.lab.crash("primary")
            stays.exchange()
            hindered.exchange()
