"""The state behind the connections, and clients of connections that have no replica: redis and a listening client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.core.gate.missed import HEARD_S
from nfq_failover.errors import CommandError
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.nodes import ask_daemon
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import namespace
from nfq_failover.shell.host.listeners import LOOK_EVERY_S
from tests.support.lab_world import connect, declare_whole, eventually, fresh_name
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


GREETS = """
import socket
listener, taken = socket.create_server(("", {port})), []
while True:
    taken.append(listener.accept()[0])
    taken[-1].sendall(b"x")
"""
FULL = """
import socket, time
listener = socket.create_server(("", {port}), backlog=0)
waits = socket.create_connection(("127.0.0.1", {port}))
time.sleep(600)
"""  # one waits to be accepted, so that there is no room for another


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


def test_application_that_takes_no_connections_any_more_is_a_state_of_its_host(lab: Lab) -> None:
    """It listens, and its queue of connections is full, on the backup alone."""

    def concerns(node: str) -> dict[str, str]:
        said = ask_daemon(lab.store, node) or {}
        return {each["code"]: each["what"] for each in said.get("concerns", ())}

    programs = {"a": GREETS, "b": FULL}
    servers = {node: lab.popen(node, [sys.executable, "-c", text.format(port=DATA)]) for node, text in programs.items()}
    with contextlib.ExitStack() as clients:
        try:
            for node in programs:
                assert eventually(lambda node=node: _listens(lab, node), 10)  # type: ignore[misc]
            other = RedisClient(clients.enter_context(connect(lab, REDIS)))
            assert eventually(lambda: bool(row(lab, other.name).get("protected")), 20)
            talks = [clients.enter_context(connect(lab, DATA, 20.0)) for _ in range(3)]
            assert [talk.recv(1) for talk in talks] == [b"x"] * 3
            for node in programs:
                assert eventually(lambda node=node: "replicas-missing" in concerns(node), 20), concerns(node)  # type: ignore[misc]
                assert concerns(node)["replicas-missing"].startswith(f"the last 3 connections at {DATA} got no replica")
            assert lab.status()["nodes"]["a"]["state"] == "degraded", "redis has its replicas"
            assert row(lab, other.name)["protected"]
            servers["b"].kill()
            servers["b"].wait()
            servers["b"] = lab.popen("b", [sys.executable, "-c", GREETS.format(port=DATA)])
            assert eventually(lambda: "replicas-missing" not in concerns("a"), 20)
            assert eventually(lambda: lab.status()["nodes"]["a"]["state"] == "protected", 20)
            names = ["{}:{}".format(*talk.getsockname()) for talk in talks]
            assert eventually(lambda: all(row(lab, name).get("protected") for name in names), 20)
        finally:
            for server in servers.values():
                server.kill()
                server.wait()


class Redis:
    """The redis of each host: it ends, and is started anew with nothing."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._started: list[subprocess.Popen[bytes]] = []

    def end(self, node: str) -> None:
        """Kill it."""
        inside = subprocess.run(
            ["ip", "netns", "pids", namespace(self.lab.name, node)], capture_output=True, text=True, check=True
        )
        pids = [pid for pid in inside.stdout.split() if _is_redis(pid)]
        assert pids
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        assert eventually(lambda: not any(map(_is_redis, pids))), "one that is there for a moment yet keeps the port"

    def start(self, node: str) -> None:
        """Start one that knows nothing."""
        words = ["--port", str(REDIS), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        argv = ["redis-server", *words, "--bind", "0.0.0.0"]
        self._started.append(self.lab.popen(node, argv, stdout=subprocess.DEVNULL, cwd="/"))

    def close(self) -> None:
        """Take away what was started here."""
        for process in self._started:
            process.kill()
            process.wait()

    def found(self) -> list[tuple[str, list[str]]]:
        """The state that each host says, and the codes of all concerns that it knows."""
        rows = [ask_daemon(self.lab.store, node) or {} for node in ("a", "b")]
        return [(row.get("state", ""), [each["code"] for each in row.get("concerns", ())]) for row in rows]

    def says(self, code: str, state: str) -> None:
        """Wait until both hosts have a concern of this code, and are in this state."""
        said = eventually(lambda: all(found == state and code in codes for found, codes in self.found()))
        assert said, self.found()

    def protected(self) -> bool:
        """Whether nothing is wrong."""
        rows = self.lab.status()["nodes"].values()
        return sorted(str(row["state"]) for row in rows) == ["protected", "shadowing"]


def _is_redis(pid: str) -> bool:
    try:
        return b"redis-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def new_is_protected(lab: Lab) -> bool:
    """Whether a new connection is, or is not, protected: it is one or the other for good when it has been answered."""
    client = RedisClient(connect(lab, REDIS))
    with contextlib.closing(client.socket):
        assert client.ask("PING") == b"PONG"
        assert eventually(lambda: bool(row(lab, client.name)))
        return bool(row(lab, client.name)["protected"])


def test_application_that_ends_and_is_started_anew_on_one_host_while_nobody_is_connected(lab: Lab) -> None:
    with contextlib.closing(Redis(lab)) as redis:
        primary = lab.resolve("primary")
        backup = "b" if primary == "a" else "a"
        with connect(lab, REDIS) as client:
            assert RedisClient(client).ask("SET", "account", "1000") == b"OK"
        assert eventually(redis.protected)
        time.sleep(2 * LOOK_EVERY_S)  # the daemons have seen which application this is

        redis.end(primary)
        redis.start(primary)
        redis.says("application-anew", "degraded")
        time.sleep(HEARD_S - 2 * LOOK_EVERY_S)  # what the client has sent is long ago
        redis.end(backup)
        redis.start(backup)
        assert eventually(redis.protected), "nobody has sent anything to either since it began"
        assert new_is_protected(lab)

        redis.end(backup)
        redis.says("application-absent", "unprotected")
        redis.start(backup)
        redis.says("application-anew", "degraded")
        assert not new_is_protected(lab)
        declare_whole(lab)
        assert eventually(redis.protected)
        assert new_is_protected(lab)


def test_host_that_joins_after_the_other_one_has_served_alone_may_lack_what_came_meanwhile(lab: Lab) -> None:
    with contextlib.closing(Redis(lab)) as redis, contextlib.ExitStack() as clients:
        stays = RedisClient(clients.enter_context(connect(lab, REDIS, 20.0)))
        assert stays.ask("SET", "account", "1000") == b"OK"
        assert eventually(lambda: bool(row(lab, stays.name).get("protected")), 20)
        lab.crash("primary")
        survivor = "b"
        with connect(lab, REDIS, 20.0) as client:
            assert RedisClient(client).ask("SET", "account", "1001") == b"OK"
        assert stays.ask("INCR", "account") == 1002
        lab.restore("a")
        assert lab.resolve("primary") == survivor
        assert eventually(redis.protected), "it may have loaded that"
        assert eventually(lambda: all("joined-later" in codes for _, codes in redis.found())), redis.found()
        said = [each["what"] for each in (ask_daemon(lab.store, survivor) or {})["concerns"]]
        assert any("has served 2 connections" in what for what in said), "the one that was taken over counts"
        declare_whole(lab)
        assert eventually(lambda: not any("joined-later" in codes for _, codes in redis.found())), redis.found()
        assert redis.protected()


def _listens(lab: Lab, node: str) -> bool:
    """Whether the data port is open there."""
    return f":{DATA} " in lab.run(node, ["ss", "-ltn"]).stdout
