"""The heartbeat sender as the process that it is: what arrives, when, and how it ends."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.peer.heartbeat_sender import decode_order, encode_order
from nfq_failover.wire.datagram import Kind, open_body, read_header
from nfq_failover.wire.heartbeat import HeartbeatBody, HeartbeatTemplate

KEY = bytes(range(32))
SESSION = 0x1122334455667788
INTERVAL_MS = 40


def template(state: int = 3, echo_ms: int = 0) -> bytes:
    body = HeartbeatBody(
        role=1,
        state=state,
        flags=0,
        stored_epoch=7,
        generation=2,
        loop_age_ms=0,
        sent_ms=0,
        echo_ms=echo_ms,
        release_after_ms=900,
    )
    return HeartbeatTemplate(SESSION, KEY, True, 7, body).encode()


class Wire:
    """A sender process and the socket that hears it."""

    def __init__(self, interval_ms: int) -> None:
        self.ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.ears.bind(("127.0.0.1", 0))
        self.ears.settimeout(5)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self.process = HeartbeatProcess(interval_ms, self.udp)

    def publish(self, order: bytes) -> None:
        self.process.publish(self.ears.getsockname(), order)

    def hear(self) -> tuple[int, HeartbeatBody]:
        """Counter and body of the next heartbeat, checked for key, session and source."""
        data, source = self.ears.recvfrom(2048)
        assert source == self.udp.getsockname()
        assert len(data) + 42 <= 128  # with Ethernet, IPv4 and UDP headers
        header = read_header(data)
        assert header.kind is Kind.HEARTBEAT
        assert (header.session, header.epoch) == (SESSION, 7)
        return header.counter, HeartbeatBody.decode(open_body(data, KEY))

    @property
    def pid(self) -> int:
        assert self.process._process is not None
        return self.process._process.pid

    def close(self) -> None:
        self.process.close()
        self.udp.close()
        self.ears.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    w = Wire(INTERVAL_MS)
    try:
        yield w
    finally:
        w.close()


@pytest.fixture
def slow_wire() -> Iterator[Wire]:
    """Of an interval that no test waits for."""
    w = Wire(5000)
    try:
        yield w
    finally:
        w.close()


def test_an_order_survives_the_way() -> None:
    slot, destination, decoded = decode_order(encode_order(3, ("10.77.0.3", 7766), template()))
    assert (slot, destination) == (3, ("10.77.0.3", 7766))
    assert decoded.encode() == template()


def test_heartbeats_keep_coming_and_their_counter_grows(wire: Wire) -> None:
    wire.publish(template())
    began = time.monotonic()
    heard = [wire.hear() for _ in range(12)]
    elapsed = time.monotonic() - began
    counters = [counter for counter, _ in heard]
    clocks = [body.sent_ms for _, body in heard]
    assert counters == sorted(set(counters))
    # The sender's own clock says when each was sent, so a slow reader does not matter.
    assert clocks[-1] - clocks[1] >= 9 * INTERVAL_MS
    assert elapsed < 5


def test_the_sender_tells_what_it_can_not_send_and_that_it_runs(wire: Wire) -> None:
    nowhere = ("255.255.255.255", 9)  # to all, which nobody may without asking for it
    here = wire.ears.getsockname()
    assert wire.process.failing(here) == 0, "not known yet"
    wire.publish(template())
    wire.process.publish(nowhere, template())
    wire.hear(), wire.hear()
    assert wire.process.failing(here) == 0
    assert wire.process.failing(nowhere) == errno.EACCES == wire.process.failing(nowhere), "it goes on failing"
    assert wire.process.silent_s() < 1
    os.kill(wire.pid, signal.SIGSTOP)
    time.sleep(0.3)
    assert 0.2 < wire.process.silent_s() < 5
    os.kill(wire.pid, signal.SIGCONT)


def test_the_age_of_the_loop_is_told(wire: Wire) -> None:
    wire.publish(template())
    wire.hear()
    while wire.hear()[1].loop_age_ms < 150:  # nobody calls progress()
        pass
    wire.process.progress()
    while wire.hear()[1].loop_age_ms > 100:  # what was on its way
        wire.process.progress()


def test_news_goes_out_at_once_but_an_echoed_clock_waits_its_turn(slow_wire: Wire) -> None:
    slow_wire.publish(template(state=3))
    assert slow_wire.hear()[1].state == 3
    slow_wire.publish(template(state=3, echo_ms=99))
    slow_wire.ears.settimeout(0.3)
    with pytest.raises(TimeoutError):
        slow_wire.hear()
    slow_wire.ears.settimeout(5)
    slow_wire.publish(template(state=8, echo_ms=99))
    body = slow_wire.hear()[1]
    assert (body.state, body.echo_ms) == (8, 99)


def test_of_many_changes_in_a_row_the_last_is_heard_without_a_storm(slow_wire: Wire) -> None:
    slow_wire.publish(template(state=3))
    slow_wire.hear()
    for state in (4, 5, 6, 7) * 5:
        slow_wire.publish(template(state=state))
    slow_wire.publish(template(state=8))
    heard = 0
    while slow_wire.hear()[1].state != 8:
        heard += 1
    assert heard < 20


def test_it_ends_with_the_daemon_and_not_before(wire: Wire) -> None:
    wire.publish(template())
    wire.hear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(wire.pid, number)
    time.sleep(0.2)
    assert not wire.process.died()
    wire.process._orders.close()
    assert wire.process._process is not None
    assert wire.process._process.wait(5) == 0


def test_one_that_died_is_started_again_and_its_counter_goes_on(wire: Wire) -> None:
    wire.publish(template())
    counter, _ = wire.hear()
    os.kill(wire.pid, signal.SIGKILL)
    while not wire.process.died():
        time.sleep(0.01)
    wire.process.restart()
    wire.publish(template())
    assert wire.hear()[0] > counter


def test_garbage_in_the_pipe_does_not_stop_it(wire: Wire) -> None:
    wire.publish(template())
    wire.hear()
    for garbage in (b"\xff", b"\x05ab", bytes(300)):
        wire.process._orders.send(garbage)
    counters = [wire.hear()[0] for _ in range(5)]
    assert counters == sorted(set(counters))
