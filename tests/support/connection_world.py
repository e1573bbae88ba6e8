"""One lab for many cases: each opens connections, crashes the primary, and is judged by bytes and by the capture."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nfq_failover.errors import NfqFailoverError
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import measure, read_capture
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.client_capture import Stream, read_streams
from tests.support.lab_world import PORT, eventually, fresh_name
from tests.support.scripted_server import content, linger_zero

FASTOPEN_PORT, MPTCP_PORT, MD5_PORT = 7001, 7002, 7003
SERVER_PROGRAM = str(Path(__file__).with_name("scripted_server.py"))
SERVES = (f"{PORT}", f"{FASTOPEN_PORT}/fastopen", f"{MPTCP_PORT}/mptcp")
CALM = 200  # ms between heartbeats: a busy machine must not look like a crash
STATELESS = ("[application]", 'state = "none"')  # a connection without a replica is no matter to the others
Steps = list[list[Any]]


class Talk:
    """A client's connection and what it has asked the server to do. A context manager: closed at the end."""

    def __init__(self, connection: socket.socket, steps: Steps) -> None:
        self.socket = connection
        self.id = secrets.token_hex(6)
        self.name = "{}:{}".format(*connection.getsockname())
        self.port: int = connection.getsockname()[1]
        self.line = json.dumps({"id": self.id, "steps": steps}).encode() + b"\n"

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self) -> Talk:
        """Tell the server the steps."""
        self.socket.sendall(self.line)
        return self

    def receive(self, size: int) -> bytes:
        """Receive exactly `size` bytes."""
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(min(size - len(data), 1 << 18))
            assert piece, f"the stream ended {size - len(data)} bytes early"
            data += piece
        return bytes(data)

    def expect_end(self) -> None:
        """Receive nothing more but the end of the stream."""
        assert self.socket.recv(1) == b""

    def echo(self, seed: int, size: int = 100) -> None:
        """`size` bytes there and back."""
        data = content(seed, size)
        self.socket.sendall(data)
        assert self.receive(size) == data

    def reset(self) -> None:
        """Close with an RST."""
        linger_zero(self.socket)
        self.socket.close()


class Case:
    """What one test does in the lab, from the start of the capture to its judgement."""

    def __init__(self, lab: Lab, directory: Path, stack: contextlib.ExitStack, resets: bool, in_order: bool) -> None:
        self.lab = lab
        self.directory = directory
        self._stack = stack
        self._resets = resets
        self._in_order = in_order
        self._pcap = directory / "client.pcap"
        enter = ["ip", "netns", "exec", namespace(lab.name, TWO_HOSTS.client)]
        self._capture = stack.enter_context(Capture(self._pcap, TWO_HOSTS.service, enter))
        self._streams: list[Stream] | None = None

    def open(
        self,
        steps: Steps,
        port: int = PORT,
        prepare: Callable[[socket.socket], None] = lambda connection: None,
        protocol: int = 0,
        ask: bool = True,
        connect: bool = True,
    ) -> Talk:
        """Connect, and send the server its steps. `prepare` is called before the connection is made, or makes it."""
        with netns.entered(namespace(self.lab.name, TWO_HOSTS.client)):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
        connection.settimeout(20.0)
        self._stack.callback(connection.close)
        prepare(connection)
        if connect:
            connection.connect((TWO_HOSTS.service, port))
        talk = Talk(connection, steps)
        return talk.ask() if ask else talk

    def row(self, talk: Talk) -> dict[str, Any]:
        """What the primary's status says of the connection; empty if it does not list it."""
        rows = [row for row in self.lab.status()["connections"] if row["client"] == talk.name]
        assert len(rows) <= 1
        return rows[0] if rows else {}

    def daemon(self, node: str) -> dict[str, Any]:
        """All that the daemon of a host says of itself."""
        status = nodes.ask_daemon(self.lab.store, node)
        assert status is not None, f"the daemon on {node} does not answer"
        return status

    def assert_protected(self, *talks: Talk, within_s: float = 10.0) -> None:
        """Wait until the primary says that the connection is protected."""

        def protected() -> bool:
            rows = {row["client"]: row for row in self.lab.status()["connections"]}
            return all(rows.get(talk.name, {}).get("protected") for talk in talks)

        assert eventually(protected, within_s), self.lab.status()["connections"]

    def crash(self, wait: bool = True) -> str:
        """Power loss of the primary; returns the survivor, which is the primary by then unless `wait` is False."""
        survivor = TWO_HOSTS.other(str(self.lab.crash("primary")["node"]))
        if wait:
            self.wait_for(survivor)
        return survivor

    def wait_for(self, survivor: str) -> None:
        """Wait until the survivor has taken over."""
        assert eventually(lambda: self.lab.status()["nodes"][survivor]["state"] == "unprotected")

    def gate(self, name: str) -> Path:
        """A file that does not exist so far, for the server's step `gate`; `touch` opens it."""
        return self.directory / f"gate-{name}"

    def ends(self, talk: Talk) -> dict[str, dict[str, Any]]:
        """How the conversation ended, by node, as the applications told."""
        found = {}
        for node in TWO_HOSTS.hosts:
            log = self.lab.store.log(f"serve-0-{node}")
            for line in log.read_text().splitlines() if log.exists() else ():
                if line.startswith("{") and (row := json.loads(line))["id"] == talk.id:
                    found[node] = row
        return found

    def assert_ends(self, talk: Talk, end: str, *nodes: str) -> dict[str, dict[str, Any]]:
        """Wait until the conversation has ended in this way on these nodes."""
        assert eventually(lambda: set(nodes) <= set(self.ends(talk))), self.ends(talk)
        rows = self.ends(talk)
        assert {node: rows[node]["end"] for node in nodes} == dict.fromkeys(nodes, end)
        return rows

    def set_client(self, **sysctls: str) -> None:
        """Parameters net.ipv4.NAME of the client's kernel, until the case ends."""
        inside = namespace(self.lab.name, TWO_HOSTS.client)
        with netns.entered(inside):
            before = {f"net.ipv4.{name}": Path(f"/proc/sys/net/ipv4/{name}").read_text() for name in sysctls}
        self._stack.callback(netns.write_sysctls, inside, before)
        netns.write_sysctls(inside, {f"net.ipv4.{name}": value for name, value in sysctls.items()})

    def finish(self) -> list[Stream]:
        """End the capture and judge it: no connection is broken, no number is wrong. Returns the connections."""
        if self._streams is not None:
            return self._streams
        counts = self._capture.stop()
        assert counts.missing == 0
        self._streams = streams = read_streams(self._pcap)
        assert streams
        order = self._in_order
        problems = [f"port {one.client_port}: {text}" for one in streams for text in one.problems(in_order=order)]
        result = measure(read_capture(self._pcap, TWO_HOSTS.service), counts.missing)
        assert not problems, "\n".join(problems[:10])
        assert not result.unseen_acknowledged, result.unseen_acknowledged
        assert not (order and result.timestamps_back), result.timestamps_back
        if not self._resets:
            found = [one.raw for each in streams for sender in (True, False) for one in each.resets(sender)]
            assert not found, found
        return streams


class SharedLab:
    """A lab that is shared by cases. Whatever a case did to it, the next one finds it protected."""

    def __init__(self, options: Options, seed: int, serves: tuple[str, ...] = SERVES) -> None:
        self._options = options
        self._seed = seed
        self._serves = serves
        self.lab = Lab(fresh_name())
        self._start()

    def _start(self) -> None:
        self.lab.up(self._options, self._seed)
        self.lab.serve(self.program(*self._serves))

    @staticmethod
    def program(*ports: str) -> list[str]:
        """The command line of the scripted server."""
        return [sys.executable, SERVER_PROGRAM, *(word for port in ports for word in ("--port", port))]

    def down(self) -> None:
        """Take the lab away."""
        with contextlib.suppress(NfqFailoverError):
            self.lab.down()

    def _mend(self) -> None:
        try:
            for node, row in self.lab.status()["nodes"].items():
                if not row["alive"]:
                    self.lab.restore(node)
            states = sorted(row["state"] for row in self.lab.status()["nodes"].values())
            if states == ["protected", "shadowing"]:
                return
        except NfqFailoverError:
            pass
        self.down()
        self.lab = Lab(fresh_name())
        self._start()

    @contextlib.contextmanager
    def case(
        self, directory: Path, *, resets: bool = False, in_order: bool = True, judged: bool = True
    ) -> Iterator[Case]:
        """A case. `resets`: connections are meant to be reset; `in_order`: the path neither reorders nor repeats;
        `judged`: the capture is (it can't be with fragments in it)."""
        self._mend()
        with contextlib.ExitStack() as stack:
            case = Case(self.lab, directory, stack, resets, in_order)
            yield case
            if judged:
                case.finish()


def client_listener(lab: Lab, port: int) -> socket.socket:
    """A listening socket on the client."""
    with netns.entered(namespace(lab.name, TWO_HOSTS.client)):
        listener = socket.create_server((TWO_HOSTS.address(TWO_HOSTS.client), port))
    listener.settimeout(10.0)
    return listener


def pause(seconds: float) -> None:
    """Let the kernels' own timers run; nothing to wait for can be seen from outside."""
    time.sleep(seconds)
