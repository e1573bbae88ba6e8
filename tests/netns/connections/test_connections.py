"""Connections as they are, through a crash of the primary: half-open, half-closed, stopped, idle, in small pieces.

Every case is judged twice: by the bytes at both ends, and by what the client's capture shows (client_capture.py).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from nfq_failover.constants import FIN
from nfq_failover.lab.state import Options
from tests.support.client_capture import Stream
from tests.support.connection_world import CALM, Case, SharedLab, Steps, Talk, pause
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

MB = 1_000_000


# Each case runs on one tap at least; the tests come in an order that needs each lab once.
ON_CLONE, ON_MULTICAST, ON_BOTH = (
    pytest.mark.parametrize("world", taps, indirect=True, scope="module")
    for taps in (["clone"], ["multicast"], ["clone", "multicast"])
)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[SharedLab]:
    made = SharedLab(Options(tap=request.param, rate="100mbit", heartbeat_ms=CALM), seed=5)
    yield made
    made.down()


# ---------------------------------------------------------------------------------------------------- half-open


class Storm:
    """Clients that connect, exchange and close, again and again; each keeps its first trouble."""

    def __init__(self, case: Case, clients: int, seconds: float) -> None:
        self._case = case
        self._until = time.monotonic() + seconds
        self.done: list[float] = []  # how long each connection took to open, in seconds
        self.troubles: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        number = 0
        while time.monotonic() < self._until:
            number += 1
            seed = index * 1000 + number
            try:
                self._one(seed)
            except (OSError, AssertionError) as error:
                self.troubles.append(f"client {index}, connection {number}: {error!r}")
                return

    def _one(self, seed: int) -> None:
        began = time.monotonic()
        with self._case.open([["echo", 100, 100], ["send", 3000, seed]], ask=False) as talk:
            self.done.append(time.monotonic() - began)
            talk.ask().echo(seed)
            assert talk.receive(3000) == content(seed, 3000)
            if seed % 2:
                talk.socket.shutdown(socket.SHUT_WR)  # half of them close first
            talk.expect_end()

    def join(self) -> None:
        """Until all have ended."""
        for thread in self._threads:
            thread.join()


@ON_BOTH
def test_connections_open_and_close_while_the_takeover_runs(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        storm = Storm(case, clients=20, seconds=3.0)
        time.sleep(1.0)
        case.crash()
        storm.join()
        assert storm.troubles == []
        assert len(storm.done) > 100
        # Some SYNs fell into the silence; the client's kernel repeats them after a second.
        assert max(storm.done) < 5


@ON_BOTH
def test_new_connection_from_the_port_of_one_that_was_taken_over_is_protected(world: SharedLab, tmp_path: Path) -> None:
    """The server has closed first, so the client's port is free at once; the survivor still knows the connection."""
    with world.case(tmp_path) as case:
        talks = [case.open([["send", 3000, seed]]) for seed in range(3)]
        for seed, talk in enumerate(talks):
            assert talk.receive(3000) == content(seed, 3000)
            talk.expect_end()
            talk.socket.close()
        case.crash()
    with world.case(tmp_path) as case:
        for number, old in enumerate(talks):
            known = case.daemon(case.lab.resolve("primary"))["bounds"]["shadow_connections"]["now"]
            assert known >= len(talks) - number, "the survivor has forgotten the connection already: nothing is tested"

            def from_the_same_port(connection: socket.socket, port: int = old.port) -> None:
                connection.bind(("", port))

            with case.open([["echo_all"]], prepare=from_the_same_port) as talk:
                talk.echo(1)
                case.assert_protected(talk)
                talk.socket.shutdown(socket.SHUT_WR)
                talk.expect_end()


# -------------------------------------------------------------------------------------------------- half-closed


@ON_BOTH
def test_the_rest_comes_after_the_client_has_closed_its_half(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        talk = case.open([["take_all"], ["digest"], ["send", 4 * MB, 1]])
        talk.socket.sendall(content(2, 50_000))
        talk.socket.shutdown(socket.SHUT_WR)
        case.assert_protected(talk)
        first = talk.receive(64 + MB)
        assert first[:64] == sha256(content(2, 50_000)).hexdigest().encode()
        survivor = case.crash(wait=False)
        assert first[64:] + talk.receive(3 * MB) == content(1, 4 * MB)
        talk.expect_end()
        case.assert_ends(talk, "done", survivor)


@ON_MULTICAST
def test_an_upload_goes_on_after_the_server_has_closed_its_half(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        talk = case.open([["send", 50_000, 1], ["shutdown"], ["take_all"]])
        assert talk.receive(50_000) == content(1, 50_000)
        talk.expect_end()
        case.assert_protected(talk)
        body = content(2, 4 * MB)
        talk.socket.sendall(body[:MB])
        survivor = case.crash(wait=False)
        talk.socket.sendall(body[MB:])
        talk.socket.shutdown(socket.SHUT_WR)
        rows = case.assert_ends(talk, "done", survivor)
        assert rows[survivor]["sha256"] == sha256(body).hexdigest()


# -------------------------------------------------------------------------------------------------- zero window


def upload_in_background(talk: Talk, body: bytes) -> threading.Thread:
    thread = threading.Thread(target=talk.socket.sendall, args=(body,))
    thread.start()
    return thread


def smallest_window(stream: Stream, from_service: bool) -> int:
    return min(one.edge - one.ack for one in stream.sent(from_service) if one.edge is not None)


@ON_MULTICAST
def test_a_client_that_stops_reading(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        talk = case.open(
            [["send", 3 * MB, 1]], prepare=lambda it: it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        )
        first = talk.receive(100_000)
        pause(0.5)  # until the window is closed
        case.assert_protected(talk)
        survivor = case.crash()
        pause(0.5)  # the replica probes the closed window
        assert first + talk.receive(3 * MB - 100_000) == content(1, 3 * MB)
        talk.expect_end()
        case.assert_ends(talk, "done", survivor)
        streams = case.finish()
    assert smallest_window(streams[0], from_service=False) == 0


@ON_CLONE
@pytest.mark.parametrize("slow", ["both", "primary", "backup"])
def test_an_application_that_stops_reading(world: SharedLab, tmp_path: Path, slow: str) -> None:
    with world.case(tmp_path) as case:
        primary, backup = case.lab.resolve("primary"), case.lab.resolve("backup")
        closed = {"both": (primary, backup), "primary": (primary,), "backup": (backup,)}[slow]
        gates = {node: case.gate(node) for node in (primary, backup)}
        for node in {primary, backup} - set(closed):
            gates[node].touch()
        talk = case.open([["take", 10_000], ["gate", str(case.gate("{node}"))], ["take", 3 * MB - 10_000], ["digest"]])
        body = content(1, 3 * MB)
        thread = upload_in_background(talk, body)
        pause(0.7)  # until the window is closed
        assert thread.is_alive()
        case.assert_protected(talk)
        case.crash()
        pause(0.4)  # the client probes the closed window
        gates[backup].touch()
        thread.join()
        assert talk.receive(64) == sha256(body).hexdigest().encode()
        talk.expect_end()
        case.assert_ends(talk, "done", backup)
        streams = case.finish()
    assert smallest_window(streams[0], from_service=True) < 1500


# --------------------------------------------------------------------------------------------------------- idle


@ON_MULTICAST
def test_an_idle_connection_with_keepalives(world: SharedLab, tmp_path: Path) -> None:
    def keepalive(connection: socket.socket) -> None:
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    with world.case(tmp_path) as case:
        talk = case.open([["echo_all"]], prepare=keepalive)
        talk.echo(1)
        case.assert_protected(talk)
        pause(1.3)
        survivor = case.crash()
        crashed_at = time.time()
        pause(2.5)
        talk.echo(2, 20_000)
        talk.echo(3)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()
        case.assert_ends(talk, "done", survivor)
        streams = case.finish()
    probes = [one for one in streams[0].sent(False) if one.raw.is_pure_ack and one.end < streams[0].segments[-1].ack]
    assert [one for one in probes if one.time > crashed_at], "no keepalive was sent after the crash"


# ------------------------------------------------------------------------------------------------- small pieces


@ON_CLONE
def test_segments_of_a_few_bytes(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        size = 4000
        plain = case.open([["echo", size, 5], ["cork", 1], ["send", 700, 8], ["shutdown"], ["take_all"]])
        eager = case.open([["nodelay"], ["echo", size, 3], ["cork", 1], ["send", 700, 9]])
        eager.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        case.assert_protected(plain, eager)
        bodies = {plain: content(6, size), eager: content(7, size)}
        received: dict[Talk, bytes] = {}

        def read(talk: Talk) -> None:
            received[talk] = talk.receive(size)

        readers = [threading.Thread(target=read, args=(talk,)) for talk in bodies]
        for reader in readers:
            reader.start()
        survivor = ""
        for at in range(0, size, 7):
            for talk, body in bodies.items():
                talk.socket.sendall(body[at : at + 7])
            time.sleep(0.001)
            if at == 7 * 250:
                survivor = case.crash(wait=False)
        for reader in readers:
            reader.join()
        assert received == bodies
        # Corked, so the last bytes and the FIN are one segment; the client does the same.
        assert plain.receive(700) == content(8, 700)
        assert eager.receive(700) == content(9, 700)
        plain.expect_end()
        eager.expect_end()
        plain.socket.send(content(10, 500), socket.MSG_MORE)
        plain.socket.shutdown(socket.SHUT_WR)
        rows = case.assert_ends(plain, "done", survivor)
        assert rows[survivor]["sha256"] == sha256(bodies[plain] + content(10, 500)).hexdigest()
        case.assert_ends(eager, "done", survivor)
        streams = case.finish()
    for from_service in (True, False):
        assert any(one.raw.flags & FIN and one.raw.payload_len for one in streams[0].sent(from_service))


@ON_CLONE
def test_data_and_fin_in_one_segment_while_the_primary_dies(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        gate = case.gate("answer")
        steps: Steps = [["take_all"], ["gate", str(gate)], ["cork", 1], ["digest"], ["send", 900, 1]]
        talks = [case.open(steps) for _ in range(8)]
        case.assert_protected(*talks)
        for number, talk in enumerate(talks):
            talk.socket.send(content(number, 1000), socket.MSG_MORE)
            talk.socket.shutdown(socket.SHUT_WR)
            if number == 4:
                survivor = case.crash(wait=False)
        gate.touch()
        for number, talk in enumerate(talks):
            assert talk.receive(64) == sha256(content(number, 1000)).hexdigest().encode()
            assert talk.receive(900) == content(1, 900)
            talk.expect_end()
            case.assert_ends(talk, "done", survivor)
        streams = case.finish()
    assert all(any(one.raw.flags & FIN and one.raw.payload_len for one in each.sent(False)) for each in streams)
    assert len(streams) == 8
