"""Faults on labs with the real daemons: configured labs, shared ones, what the client heard, what the daemons said."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.constants import RST, SYN
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.errors import CommandError
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import Measurement, measure, read_capture
from nfq_failover.lab.state import LabState, Options, Store, write_private
from nfq_failover.lab.testbed import Workload
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.lab.workloads.content import REQUEST_SIZE, Kind, Request
from tests.support.lab_world import PORT, SERVER, eventually, fresh_name

# A slow heartbeat, so that a starved processor is not taken for a dead host.
CALM_MS = 200
DETECTION_S = 3 * CALM_MS / 1000
FENCE_DEADLINE_S = 1.0  # the lab's
# What a takeover may take beyond the detection: one heartbeat interval (the last one may just have been sent), fence,
# epoch on disk, and a busy machine.
ALLOWANCE_S = CALM_MS / 1000 + 0.4
# How long a primary that hears no backup holds acknowledgements: never less than detection and fence may take, from
# a heartbeat that may just have come; at most with the margins for heartbeats on their way and for a loop that stalls.
HOLD_AT_LEAST_S = DETECTION_S + FENCE_DEADLINE_S - CALM_MS / 1000
HOLD_AT_MOST_S = 2 * DETECTION_S + FENCE_DEADLINE_S + 0.3 + ALLOWANCE_S
# Two packets of one host may overtake each other by this much.
REORDERING_S = 0.01


class FaultWorld:
    """A lab with the workloads' server on both hosts, and what tests of faults do with it."""

    def __init__(self, made: Lab) -> None:
        self.lab = made
        self.driver = LabDriver(made.name)

    # ------------------------------------------------------------------------------------------ what the daemons say

    def ask(self, node: str) -> dict[str, Any]:
        """The daemon's own status; {} if there is none."""
        return nodes.ask_daemon(self.lab.store, node) or {}

    def state(self, node: str) -> str | None:
        """The daemon's state; None if it does not answer."""
        return self.ask(node).get("state")

    def states(self) -> dict[str, str | None]:
        """Both daemons' states, as the lab's status tells them."""
        return {node: row["state"] for node, row in self.lab.status()["nodes"].items()}

    def membership(self) -> dict[str, str | None]:
        """Both daemons' states as the hosts have agreed on them, whatever limits the protection."""
        return {node: self.ask(node).get("membership") for node in TWO_HOSTS.hosts}

    def epoch(self) -> int:
        """The epoch of whoever serves."""
        return int(self.lab.status()["epoch"])

    def becomes(self, **expected: str) -> None:
        """Wait for states, like a="unprotected"; says what is there instead if they don't come about."""
        there = eventually(lambda: expected.items() <= self.states().items())
        assert there, f"{self.states()} instead of {expected}\n{self._last_words()}"

    def _last_words(self) -> str:
        return "\n".join(self.log(host)[-2000:] for host in self.lab.topology.hosts)

    def protects(self, connection: socket.socket) -> bool:
        """Whether the connection comes to be listed as protected."""
        return eventually(lambda: (self.row(connection) or {}).get("protected") is True, 5)

    def why_not(self, connection: socket.socket) -> str:
        """The reason why the connection is not protected, as it is listed."""
        row = self.row(connection)
        assert row is not None
        assert row["protected"] is False
        assert row["reason"]
        return str(row["reason"])

    def is_protected(self) -> bool:
        """Whether one host serves protected and the other shadows it."""
        rows = {node: self.ask(node) for node in TWO_HOSTS.hosts}
        return sorted(str(row.get("state")) for row in rows.values()) == ["protected", "shadowing"]

    def log(self, node: str) -> str:
        """All that the node's daemons have said."""
        return self.lab.store.log(f"daemon-{node}").read_text(errors="replace")

    def said(self, node: str, since: int, *words: str) -> list[str]:
        """The lines of the log after its first `since` bytes that hold all the words."""
        return [line for line in self.log(node)[since:].splitlines() if all(word in line for word in words)]

    def comes(self, node: str, since: int, *words: str) -> bool:
        """Wait for such a line: what is logged is written a moment later."""
        return eventually(lambda: bool(self.said(node, since, *words)))

    def row(self, connection: socket.socket) -> dict[str, Any] | None:
        """The row of this connection in the lab's status."""
        client = "{}:{}".format(*connection.getsockname())
        return next((row for row in self.lab.status()["connections"] if row["client"] == client), None)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lab's events of one kind."""
        return [event for event in self.lab.store.read().events if event["event"] == name]

    # ------------------------------------------------------------------------------------------ faults

    def kill_daemon(self, node: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the daemon process alone."""
        os.kill(self.lab.daemon_pid(node), number)

    @contextlib.contextmanager
    def fence_fails(self, node: str) -> Iterator[None]:
        """While inside, the node's fence command fails, as one does whose power switch can't be reached."""
        path = self.lab.store.directory / node / "fence"
        kept = path.read_text()
        write_private(path, "#!/bin/sh\necho no power switch answers\nexit 1\n", mode=0o700)
        try:
            yield
        finally:
            write_private(path, kept, mode=0o700)

    @contextlib.contextmanager
    def stopped(self, pids: list[int]) -> Iterator[None]:
        """While inside, these processes stand still."""
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # ------------------------------------------------------------------------------------------ the client

    def start(self, *words: str) -> Workload:
        """A workload at the client; its connections are open."""
        return self.driver.start_workload([*words, "--port", str(PORT), "--stall-timeout", "15"])

    def capture(self, path: Path) -> Capture:
        """What the client hears and says."""
        return self.driver.capture(path)

    def restart_daemon(self, node: str) -> None:
        """Start a daemon that has ended."""
        self.lab.start_daemon(node)


def whole(running: Capture) -> Measurement:
    """Measure a finished capture, which must be whole."""
    assert running.counts is not None
    result = measure(read_capture(running.path, TWO_HOSTS.service), running.counts.missing)
    assert result.dropped_by_capture == 0
    return result


def faultless(running: Capture) -> Measurement:
    """Measure a finished capture in which nothing may be wrong."""
    result = whole(running)
    assert [text for text in result.problems() if not text.startswith("timestamp")] == []
    assert clock_set_back(running.path) == []
    assert window_taken_back(running.path) == []
    return result


def clock_set_back(path: Path) -> list[int]:
    """Frames from the service with an older TSval than one that came clearly before: the client's PAWS would drop data.

    Not those that another has overtaken on its way (`REORDERING_S`).
    """
    newest: dict[int, tuple[int, float]] = {}
    frames = []
    for packet in read_capture(path, TWO_HOSTS.service):
        if not packet.from_service or packet.tsval is None or packet.flags & RST:
            continue
        tsval, when = newest.get(packet.stream, (packet.tsval, packet.time))
        if (packet.tsval - tsval) % (1 << 32) < 1 << 31:
            newest[packet.stream] = (packet.tsval, packet.time)
        elif packet.time - when > REORDERING_S:
            frames.append(packet.number)
    return frames


def window_taken_back(path: Path) -> list[int]:
    """Frames from the service that take back more of what was granted before than rounding explains.

    In units of the window scale one ACK number can't say exactly what another can (RFC 7323, section 2.4). Nor do those
    count that another has overtaken on its way (`REORDERING_S`).
    """
    argv = ["tshark", "-n", "-r", str(path), "-Y", f"ip.src == {TWO_HOSTS.service} && tcp.flags.syn == 1"]
    argv += ["-T", "fields", "-e", "tcp.stream", "-e", "tcp.options.wscale.shift"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    scales = {int(stream): int(shift or 0) for stream, shift in (line.split("\t") for line in text.splitlines())}
    granted: dict[int, tuple[int, float]] = {}
    frames = []
    for packet in read_capture(path, TWO_HOSTS.service):
        if packet.from_service and packet.stream in scales and not packet.flags & (SYN | RST):
            now = packet.ack + packet.window
            edge, when = granted.get(packet.stream, (now, packet.time))
            if now >= edge:
                granted[packet.stream] = (now, packet.time)
            elif edge - now > max(1 << scales[packet.stream], ROUNDING_BYTES) and packet.time - when > REORDERING_S:
                frames.append(packet.number)
    return frames


def ended_well(workload: Workload) -> dict[str, Any]:
    """The workload's report; every byte was right."""
    report = workload.result(40)
    assert report["ok"], report["error"]
    assert (report["wrong_bytes"], report["failed_connections"]) == (0, 0)
    return report


@dataclass(frozen=True)
class Heard:
    """A packet from the service address at the client. `time`: Unix time; `ack` counts from the stream's first byte."""

    time: float
    node: str
    ack: int


def heard(path: Path) -> list[Heard]:
    """Everything that the client's capture has from the service address, and who sent it, by the source MAC."""
    fields = ("frame.time_epoch", "eth.src", "icmp.type", "tcp.ack")
    argv = ["tshark", "-n", "-r", str(path), "-Y", f"ip.src == {TWO_HOSTS.service}", "-T", "fields"]
    argv += [part for name in fields for part in ("-e", name)]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    owners = {TWO_HOSTS.hardware(node): node for node in TWO_HOSTS.hosts}
    rows = []
    for line in text.splitlines():
        when, mac, icmp, ack = line.split("\t")
        rows.append(Heard(float(when), owners[mac], 0 if icmp else int(ack or 0)))
    return rows


def speakers(path: Path) -> list[str]:
    """The hosts heard from the service address, one entry for each time that one followed another."""
    turns: list[str] = []
    for packet in heard(path):
        if not turns or turns[-1] != packet.node:
            turns.append(packet.node)
    return turns


# ------------------------------------------------------------------------------------------------------ connections


class Talk:
    """A connection over which requests of 150 bytes are echoed, now and then."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._number = 0

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def abort(self) -> None:
        """End it with a reset from the client, which repeats nothing."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def exchange(self) -> None:
        """Send one request and check its answer. OSError (a TimeoutError too) if none comes."""
        data = Request(Kind.ECHO, 7, self._number, 0, False).encode()
        self._number += 1
        self.connection.sendall(data)
        answer = b""
        while len(answer) < REQUEST_SIZE:
            part = self.connection.recv(REQUEST_SIZE - len(answer))
            if not part:
                raise ConnectionError(f"the stream ended after {len(answer)} bytes")
            answer += part
        assert answer == data

    def exchange_slowly(self, end: threading.Event) -> None:
        """Exchange over any number of time-outs, until `end`."""
        data = Request(Kind.ECHO, 7, self._number, 0, False).encode()
        self._number += 1
        self.connection.sendall(data)
        answer = b""
        while len(answer) < REQUEST_SIZE and not end.is_set():
            with contextlib.suppress(TimeoutError):
                part = self.connection.recv(REQUEST_SIZE - len(answer))
                if not part:
                    raise ConnectionError(f"the stream ended after {len(answer)} bytes")
                answer += part
        assert data.startswith(answer)

    def stays_silent(self, seconds: float = 0.4) -> bool:
        """Whether nothing comes, no reset and no end of the stream either."""
        self.connection.settimeout(seconds)
        try:
            self.connection.recv(1)
        except TimeoutError:
            return True
        except OSError:
            return False
        return False


def talk(world: FaultWorld, timeout_s: float = 10.0) -> Talk:
    """A connection to the service, with one exchange behind it."""
    with netns.entered(namespace(world.lab.name, TWO_HOSTS.client)):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    connection.connect((TWO_HOSTS.service, PORT))
    made = Talk(connection)
    made.exchange()
    return made


# ------------------------------------------------------------------------------------------------------------- labs

Edit = Callable[[str], str]


def without_fence(split_brain: str) -> Edit:
    """A configuration that has no fence."""

    def edit(text: str) -> str:
        text, count = re.subn(r"(?m)^fence = .*$", f'split_brain = "{split_brain}"', text)
        assert count == 1
        return text

    return edit


def adding(line: str) -> Edit:
    """A configuration with one more setting."""
    return lambda text: f"{line}\n{text}"


@contextlib.contextmanager
def world(options: Options | None = None, edit: Edit | None = None) -> Iterator[FaultWorld]:
    """A lab that is up and serves, with an edited configuration on both hosts; taken away whatever happens."""
    made = Lab(fresh_name())
    write = nodes.write_config

    def edited(store: Store, state: LabState, node: str) -> Path:
        path = write(store, state, node)
        if edit is not None:
            write_private(path, edit(path.read_text()))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "write_config", edited)
        made.up(options or Options(rate="100mbit", heartbeat_ms=CALM_MS))
    try:
        made.serve(SERVER)
        yield FaultWorld(made)
    finally:
        with contextlib.suppress(CommandError):
            made.down()
