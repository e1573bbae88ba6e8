"""How connections end and come again: resets from either side, ports used again, connections that the server opens."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.constants import RST
from nfq_failover.core.gate.opening import DIALLED
from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.connection_world import CALM, Case, SharedLab, Steps, Talk, client_listener, pause
from tests.support.lab_world import PORT, eventually
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM), seed=12)
    yield made
    made.down()


# ------------------------------------------------------------------------------------------------------- resets


def test_a_reset_by_the_client_reaches_both_applications(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path, resets=True) as case:
        at_rest, after_data = case.open([["echo_all"]]), case.open([["echo_all"]])
        survivor_only = case.open([["echo_all"]])
        for number, talk in enumerate((at_rest, after_data, survivor_only)):
            talk.echo(number)
        case.assert_protected(at_rest, after_data, survivor_only)
        at_rest.reset()
        after_data.socket.sendall(content(9, 20_000))
        after_data.reset()
        case.assert_ends(at_rest, "reset", *TWO_HOSTS.hosts)
        case.assert_ends(after_data, "reset", *TWO_HOSTS.hosts)
        assert eventually(lambda: not case.row(at_rest) and not case.row(after_data))
        survivor = case.crash()
        survivor_only.echo(10)
        survivor_only.reset()
        case.assert_ends(survivor_only, "reset", survivor)
        streams = case.finish()
    assert [one.raw for each in streams for one in each.resets(from_service=True)] == []


def expect_reset(talk: Talk) -> None:
    """What comes next is the server's RST."""
    with pytest.raises(ConnectionResetError):
        while talk.socket.recv(1 << 16):
            pass


@pytest.mark.parametrize("crash_first", [False, True], ids=["primary", "survivor"])
def test_a_reset_by_the_server_reaches_the_client(world: SharedLab, tmp_path: Path, crash_first: bool) -> None:
    """By SO_LINGER, and by closing with unread data, at the primary, and at the survivor after a crash."""
    with world.case(tmp_path, resets=True) as case:
        gate = case.gate("end")
        linger = case.open([["echo", 100, 100], ["gate", str(gate)], ["reset"]])
        unread = case.open([["echo", 100, 100], ["gate", str(gate)], ["send", 5000, 3]])
        bystander = case.open([["echo_all"]])
        for talk in (linger, unread, bystander):
            talk.echo(talk.port)
        unread.socket.sendall(content(4, 5000))
        case.assert_protected(linger, unread, bystander)
        if crash_first:
            case.crash()
        gate.touch()
        expect_reset(linger)
        expect_reset(unread)
        if not crash_first:
            # What has been reset stays so, what has not goes on.
            assert eventually(lambda: not case.row(linger) and not case.row(unread))
            case.crash()
        bystander.echo(1, 50_000)
        streams = case.finish()
    by_port = {one.client_port: one for one in streams}
    for talk in (linger, unread):
        first, *_ = by_port[talk.port].resets(from_service=True)  # more may answer what was on its way
        before = [one for one in by_port[talk.port].sent(True) if not one.raw.flags & RST]
        assert first.seq == max(one.end for one in before)  # exactly where the stream was (RFC 5961 section 3.2)
    assert not [one for one in by_port[bystander.port].segments if one.raw.flags & RST]


# --------------------------------------------------------------------------------------------------- port reuse


def again(case: Case, steps: Steps, source_port: int) -> Talk:
    """A connection from a port that was in use a moment ago."""

    def connect(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("0.0.0.0", source_port))

        def connected() -> bool:
            try:
                connection.connect((TWO_HOSTS.service, PORT))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                return False  # the client's last FIN is not acknowledged yet
            return True

        assert eventually(connected)

    return case.open(steps, prepare=connect, connect=False)


def converse(case: Case, talk: Talk, seed: int, client_closes: bool) -> None:
    """A whole conversation; the side that closes first keeps TIME_WAIT."""
    talk.echo(seed, 3000)
    if client_closes:
        talk.socket.shutdown(socket.SHUT_WR)
    talk.expect_end()
    talk.socket.close()


@pytest.mark.parametrize("client_closes", [False, True], ids=["server-closes", "client-closes"])
def test_a_port_is_used_again_out_of_time_wait(world: SharedLab, tmp_path: Path, client_closes: bool) -> None:
    """Three times before the crash, the last one lives through it; then again at the survivor."""
    with world.case(tmp_path) as case:
        # A second of TIME_WAIT is enough for a client that uses timestamps (ip-sysctl, tcp_tw_reuse).
        case.set_client(tcp_tw_reuse="1")
        steps: Steps = [["echo_all"]] if client_closes else [["echo", 3000, 1000]]

        def wait() -> None:
            pause(1.1 if client_closes else 0.05)

        port = 0
        for number in range(2):
            talk = again(case, steps, port)
            assert port in (0, talk.port)
            port = talk.port
            case.assert_protected(talk)
            converse(case, talk, number, client_closes)
            wait()
        talk = again(case, [["echo", 100, 100], *steps], port)
        case.assert_protected(talk)
        talk.echo(5)
        survivor = case.crash()
        converse(case, talk, 6, client_closes)
        case.assert_ends(talk, "done", survivor)
        for number in range(2):
            wait()
            talk = again(case, steps, port)
            converse(case, talk, 10 + number, client_closes)
            case.assert_ends(talk, "done", survivor)
        streams = case.finish()
    assert [one.client_port for one in streams] == [port] * 5


# ------------------------------------------------------------------------------- connections the server opens


def accept_and_answer(listener: socket.socket, port: int, size: int) -> str:
    """Serve one connection from the server; who it came from."""
    connection, (address, source_port) = listener.accept()
    with connection:
        connection.settimeout(10)
        got = b""
        while len(got) < size:
            got += connection.recv(size - len(got))
        assert got == content(port, size)
        connection.sendall(content(port + 1, size))
        assert connection.recv(1) == b""
    return f"{address}:{source_port}"


@pytest.mark.parametrize("source_port", [7055, 45_455], ids=["from-a-port-of-the-service", "from-another-port"])
def test_connections_that_the_server_opens_are_left_alone(world: SharedLab, tmp_path: Path, source_port: int) -> None:
    """From the service address to the client: they work, at the primary and at the survivor, and are not protected."""
    with world.case(tmp_path) as case, client_listener(case.lab, 9100) as listener:
        primary, backup = case.lab.resolve("primary"), case.lab.resolve("backup")
        gates = {when: case.gate(f"{when}-{{node}}") for when in ("first", "second")}

        def let(when: str, node: str) -> None:
            Path(str(gates[when]).replace("{node}", node)).touch()

        dial = ["dial", source_port, 9100, 20_000]
        steps: Steps = [["gate", str(gates["first"])], dial, ["gate", str(gates["second"])], dial, ["send", 10, 1]]
        talk = case.open(steps)
        case.assert_protected(talk)
        # The replica dials, too: nothing of that may get out, or the client would hear it.
        let("first", backup)
        pause(0.3)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(10)
        ours = f"{TWO_HOSTS.service}:{source_port}"
        let("first", primary)
        assert accept_and_answer(listener, 9100, 20_000) == ours
        rows = [row for row in case.lab.status()["connections"] if row["server"] == ours]
        assert not any(row["protected"] for row in rows)
        if source_port != 45_455:  # what comes from no port of the service is none of the daemon's business
            assert [row["reason"] for row in rows] == [DIALLED]
        case.assert_protected(talk)
        pause(5.0)  # the replica's dialling ends in its timeout
        case.crash()
        let("second", backup)
        assert accept_and_answer(listener, 9100, 20_000) == ours
        assert talk.receive(10) == content(1, 10)
        talk.expect_end()
        rows_by_node = case.assert_ends(talk, "done", backup)
        assert rows_by_node[backup]["notes"] == ["not dialled: TimeoutError", "dialled"]


# --------------------------------------------------------------------------------------- a replica that is late


def test_a_replica_whose_listener_comes_up_late(world: SharedLab, tmp_path: Path) -> None:
    """It is served unprotected, says why, is protected when the replica is there, and lives on without the primary."""
    late = PORT + 90
    with world.case(tmp_path) as case:
        primary, backup = case.lab.resolve("primary"), case.lab.resolve("backup")
        program = world.program(f"{late}")

        def start(node: str) -> None:
            case.lab.detach(node, program)
            inside = namespace(case.lab.name, node)
            assert eventually(lambda: late in netns.listeners(inside, lambda port: True).values())

        start(primary)
        began = time.monotonic()
        talk = case.open([["echo_all"]], port=late)
        assert 0.9 < time.monotonic() - began < 3.5  # the SYN-ACK waited for the replica, but not for ever
        talk.echo(1, 30_000)
        row = case.row(talk)
        assert (row["protected"], row["reason"]) == (False, "replica not ready")
        start(backup)
        case.assert_protected(talk)
        assert case.row(talk)["reason"] == ""
        talk.echo(2, 30_000)
        case.crash()
        talk.echo(3, 30_000)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()
