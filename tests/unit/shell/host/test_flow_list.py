"""The kernel's own list of connections, on this machine's loopback."""

from __future__ import annotations

import socket
import time

import pytest

from nfq_failover.shell.host.flow_list import FlowList
from nfq_failover.wire.segment import FlowKey

HOME = socket.inet_aton("127.0.0.1")


def walk(port: int) -> list[FlowKey]:
    found = FlowList(HOME, lambda number: number == port)
    found.start()
    give_up = time.monotonic() + 10
    while (flows := found.step()) is None:
        assert time.monotonic() < give_up
    assert found.step() is None
    return flows


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_established_connections_of_the_service_are_listed(family: int, address: str) -> None:
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        port = listener.getsockname()[1]
        assert walk(port) == []
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
            assert walk(port) == [(HOME, client.getsockname()[1], HOME, port)]
            assert walk(port + 1 if port < 65535 else 1) == []
