"""The state behind the connections, and clients of connections that have no replica: redis and a listening client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.nodes import ask_daemon
from nfq_failover.lab.state import Options
from tests.support.lab_world import connect, eventually, fresh_name
from tests.support.redis_client import RedisClient

REDIS, DATA = 7000, 7010
TALKS = """
import socket, time
listener = socket.create_server(("", {port}))
while True:
    taken, _ = listener.accept()
    with taken:
        while True:
            try: taken.sendall(b"x")
            except OSError: break
            time.sleep(0.05)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A pair with redis on both hosts."""
    made = Lab(fresh_name())
    try:
        made.up(Options(ports=("7000-7019",), heartbeat_ms=200, out_of_step_ms=2000), seed=72)
        options = "--save '' --appendonly no --protected-mode no --bind 0.0.0.0"
        made.serve(
            ["sh", "-c", f"cd $(mktemp -d {tmp_path}/redis-XXXXXX) && exec redis-server --port {REDIS} {options}"]
        )
        yield made
    finally:
        with contextlib.suppress(CommandError):
            made.down()


def row(lab: Lab, name: str) -> dict[str, Any]:
    """The primary's row of a client."""
    return next((each for each in lab.status()["connections"] if each["client"] == name), {})


def test_writes_on_a_connection_that_differs_are_at_the_survivor(lab: Lab) -> None:
    writer, reader = RedisClient(connect(lab, REDIS)), RedisClient(connect(lab, REDIS))
    with contextlib.closing(writer.socket), contextlib.closing(reader.socket):
        assert eventually(lambda: bool(row(lab, writer.name).get("protected")), 20)
        assert reader.ask("SUBSCRIBE", "news") == [b"subscribe", b"news", 1]
        writer.ask("COMMAND")  # in the order of a hash table whose seed is random
        assert eventually(lambda: "diverged" in row(lab, writer.name).get("reason", ""), 20)
        for number in range(20):
            assert writer.ask("SET", f"k{number}", f"v{number}") == b"OK"
        assert writer.ask("PUBLISH", "news", "before") == 1
        assert reader.answer() == [b"message", b"news", b"before"]
        assert row(lab, reader.name)["protected"]
        assert lab.status()["nodes"]["a"]["state"] == "protected", "nothing has been missed"

        lab.crash("primary")
        with pytest.raises(ConnectionResetError):
            writer.answer()
        after = RedisClient(connect(lab, REDIS, 20.0))
        with contextlib.closing(after.socket):
            assert [after.ask("GET", f"k{number}") for number in range(20)] == [b"v%d" % n for n in range(20)]
            assert after.ask("PUBLISH", "news", "after") == 1
            assert reader.answer() == [b"message", b"news", b"after"]
        survivor = ask_daemon(lab.store, lab.resolve("primary")) or {}
        assert any("diverged" in each["reason"] for each in survivor["mishaps"]), survivor["mishaps"]


def test_client_that_only_listens_to_one_host_alone_hears_of_the_takeover(lab: Lab) -> None:
    """As of a passive FTP transfer whose port the hosts have chosen each for itself."""
    primary = lab.resolve("primary")
    server = lab.popen(primary, [sys.executable, "-c", TALKS.format(port=DATA)])
    try:
        listening = contextlib.ExitStack()
        with listening:
            assert eventually(lambda: _listens(lab, primary), 10)
            client = listening.enter_context(connect(lab, DATA, 20.0))
            name = "{}:{}".format(*client.getsockname())
            assert client.recv(1) == b"x"
            assert eventually(lambda: row(lab, name).get("protected") is False, 10)
            assert client.recv(1) == b"x"
            lab.crash("primary")
            with pytest.raises(ConnectionResetError):
                while client.recv(100):
                    pass
            assert "input" not in str((ask_daemon(lab.store, lab.resolve("primary")) or {})["concerns"])
    finally:
        server.kill()
        server.wait()


def _listens(lab: Lab, node: str) -> bool:
    """Whether the data port is open there."""
    return f":{DATA} " in lab.run(node, ["ss", "-ltn"]).stdout
