"""A server that takes turns with its client, and ends the connection of one that speaks before it has been answered, as
PostgreSQL does with what follows a client's question whether it speaks TLS. Its replica is late."""

from __future__ import annotations

import contextlib
import sys

import pytest

from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.lab_world import connect, eventually, lab

pytestmark = pytest.mark.netns

LATE_S = 0.1
SERVER = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
    own.connect(({client!r}, 9))
    late = own.getsockname()[0] == {late!r}
listener = socket.create_server(("", {port}))
while True:
    taken, _ = listener.accept()
    with taken:
        while taken.recv(8, socket.MSG_WAITALL):
            if late: time.sleep({late_s})
            try:
                taken.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                taken.sendall(b"N")
            taken.sendall(b"%d" % len(taken.recv(100, socket.MSG_WAITALL)))
"""


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_a_late_replica_is_not_spoken_to_before_it_has_answered(tap: str) -> None:
    with lab(Options(ports=("7000",), tap=tap, heartbeat_ms=100), seed=5) as made:
        late, address = made.resolve("backup"), TWO_HOSTS.address
        made.serve(
            [
                sys.executable,
                "-c",
                SERVER.format(client=address(TWO_HOSTS.client), late=address(late), port=7000, late_s=LATE_S),
            ]
        )
        with contextlib.closing(connect(made, 7000)) as client:
            name = "{}:{}".format(*client.getsockname())

            def row() -> dict[str, object]:
                return next((each for each in made.status()["connections"] if each["client"] == name), {})

            def turn() -> None:
                client.sendall(b"question")
                assert client.recv(1) == b"N"
                client.sendall(bytes(100))
                assert client.recv(3) == b"100"

            assert eventually(lambda: bool(row().get("protected")))
            for _ in range(5):
                turn()
            assert row()["protected"], row()
            made.crash("primary")
            for _ in range(3):
                turn()
