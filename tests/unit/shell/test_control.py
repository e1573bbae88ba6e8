"""The control socket: questions of well-behaved and of ill-behaved clients."""

from __future__ import annotations

import json
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.control import MAX_CLIENTS, MAX_LINE, ControlServer, ask, status_only

BIG = "x" * 4_000_000


def handler(command: str, request: dict[str, Any]) -> dict[str, Any]:
    if command == "ping":
        return {"pong": True, "echo": request.get("echo")}
    if command == "big":
        return {"big": BIG}
    if command == "bug":
        raise ZeroDivisionError("a bug")
    if command == "unserialisable":
        return {"value": object()}
    return {"error": f"unknown command '{command}'"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    s = ControlServer(tmp_path / "control.sock", handler)
    yield s
    s.close()


@pytest.fixture
def running(server: ControlServer) -> Iterator[ControlServer]:
    """Served by a thread, as the daemon's loop does; the longest step is kept."""
    stop = threading.Event()
    longest = [0.0]

    def loop() -> None:
        while not stop.is_set():
            if select.select([server], [], [], 0.02)[0]:
                began = time.monotonic()
                server.serve()
                longest[0] = max(longest[0], time.monotonic() - began)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
    assert longest[0] < 2


def connect(server: ControlServer) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(server.path))
    return client


def line(client: socket.socket) -> dict[str, Any]:
    with client.makefile("rb") as file:
        answer = json.loads(file.readline())
    assert isinstance(answer, dict)
    return answer


def test_a_question_is_answered(running: ControlServer) -> None:
    assert ask(running.path, "ping") == {"pong": True, "echo": None}


def test_only_the_owner_may_ask(server: ControlServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_several_questions_in_one_packet_and_one_in_several(running: ControlServer) -> None:
    with connect(running) as client, client.makefile("rb") as answers:
        client.sendall(b'{"command":"ping","echo":1}\n{"command":"ping","echo":2}\n{"comma')
        client.sendall(b'nd":"ping","echo":3}\n')
        assert [json.loads(answers.readline())["echo"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("text", [b"", b"{", b"7", b"[]", b'{"command":7}', b"\xff\xfe", b'{"x":"y"}'])
def test_garbage_gets_an_explanation(running: ControlServer, text: bytes) -> None:
    with connect(running) as client:
        client.sendall(text + b"\n")
        assert "JSON" in line(client)["error"]


@pytest.mark.parametrize("command", ["bug", "unserialisable"])
def test_a_bug_behind_a_question_ends_neither_server_nor_client(running: ControlServer, command: str) -> None:
    with connect(running) as client:
        client.sendall(json.dumps({"command": command}).encode() + b"\n")
        assert "internal error" in line(client)["error"]
        client.sendall(b'{"command":"ping"}\n')
        assert line(client)["pong"]


def test_a_line_without_end_is_cut_off(running: ControlServer) -> None:
    with connect(running) as client:
        client.sendall(b"x" * (MAX_LINE + 1))
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_keeps_nobody_waiting(server: ControlServer) -> None:
    """Served by hand, so that a step that waits would hang the test."""
    with connect(server) as lazy, connect(server) as other:
        lazy.sendall(b'{"command":"big"}\n')
        other.sendall(b'{"command":"ping"}\n')
        for _ in range(5):
            server.serve()
        assert line(other)["pong"]
        # And when it reads at last, the whole answer is there.
        received = bytearray()
        lazy.setblocking(False)
        while not received.endswith(b"\n"):
            server.serve()
            try:
                received += lazy.recv(1 << 20)
            except BlockingIOError:
                continue
        assert json.loads(received) == {"big": BIG}


def test_clients_that_leave_are_forgotten(server: ControlServer) -> None:
    for _ in range(3 * MAX_CLIENTS):
        client = connect(server)
        server.serve()
        client.close()
        server.serve()
    server.serve()
    assert not server._clients
    with connect(server) as client:
        client.sendall(b'{"command":"ping"}\n')
        server.serve()
        server.serve()
        assert line(client)["pong"]


def test_too_many_clients_are_turned_away(server: ControlServer) -> None:
    clients = []
    try:
        for _ in range(MAX_CLIENTS + 1):
            clients.append(connect(server))
            server.serve()
        assert clients[-1].recv(1) == b""
    finally:
        for client in clients:
            client.close()


def test_a_stale_socket_file_is_replaced_and_ours_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = ControlServer(path, handler)
    assert path.is_socket()
    server.close()
    server.close()
    assert not path.exists()


def test_a_path_too_long_for_a_socket_is_explained(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    with pytest.raises(CommandError, match="shorter path"):
        ControlServer(directory / "control.sock", handler)


def test_asking_a_daemon_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nfq-failover run"):
        ask(tmp_path / "control.sock", "status")


def test_a_refusal_reaches_the_asker(running: ControlServer) -> None:
    with pytest.raises(CommandError, match="unknown command 'dance'"):
        ask(running.path, "dance")


def test_a_daemon_that_hangs_is_told_from_one_that_is_gone(server: ControlServer) -> None:
    with pytest.raises(CommandError, match="timed out"):
        ask(server.path, "ping", timeout_s=0.2)


def test_who_may_only_look_can_order_nothing() -> None:
    answered = status_only(lambda command, request: {"did": command})
    assert answered("status", {}) == {"did": "status"}
    assert answered("ping", {}) == {"did": "ping"}
    for command in ("claim", "leave", "replica-is-whole", "reload", "Status", ""):
        assert "is for root" in answered(command, {})["error"]


@pytest.mark.parametrize(("group", "mode"), [(False, 0o600), (True, 0o666)])
def test_a_groups_socket_is_for_everybody_whom_its_directory_lets_through(
    tmp_path: Path, group: bool, mode: int
) -> None:
    server = ControlServer(tmp_path / "control.sock", handler, group=group)
    assert stat.S_IMODE(server.path.stat().st_mode) == mode
    server.close()
