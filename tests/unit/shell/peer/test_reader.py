"""Turns of the sync socket: what ends them, what is refused unread, what the kernel has dropped."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from nfq_failover.core.events import DatagramReceived, DatagramsLost, StrangerHeard
from nfq_failover.core.node import Node
from nfq_failover.core.pair.inquiry import Inquiry
from nfq_failover.errors import CommandError
from nfq_failover.shell.peer import reader as sync_reader
from nfq_failover.shell.peer import socket as sync_socket
from nfq_failover.shell.peer.reader import MAX_REFUSED, SyncReader
from nfq_failover.shell.peer.socket import open_sync
from tests.support import configured


class Reading:
    """A reader on loopback, its node, and a peer that sends."""

    def __init__(self) -> None:
        self.sockets = open_sync(("127.0.0.1", 0))
        self.udp = self.sockets.records
        self.peer = self._sender("127.0.0.2")
        self.stranger = self._sender("127.0.0.3")
        settings = configured.settings(peers=(configured.peer("b", *self.peer.getsockname()),))
        self.node = Node(settings, lambda n: bytes(n), 0, False, time.monotonic())
        self.fed = self.strangers = 0
        self.reader = SyncReader(self.sockets, self.node, self._feed)

    def _sender(self, address: str) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, 0))
        return made

    def _feed(self, event: DatagramReceived | StrangerHeard, now: float) -> None:
        self.fed += isinstance(event, DatagramReceived)
        self.strangers += isinstance(event, StrangerHeard)
        self.node.handle(event, now)

    def send(self, count: int, by: socket.socket | None = None, data: bytes = b"garbage") -> None:
        for _ in range(count):
            (by or self.peer).sendto(data, self.udp.getsockname())

    def read(self) -> bool:
        return self.reader.read(lambda: None)

    def counter(self, name: str) -> int:
        return self.node.out.counters[name]

    def close(self) -> None:
        for each in (self.sockets, self.peer, self.stranger):
            each.close()


@pytest.fixture
def reading() -> Iterator[Reading]:
    made = Reading()
    yield made
    made.close()


def test_refused_datagrams_end_a_turn(reading: Reading) -> None:
    reading.send(MAX_REFUSED + 10)
    assert not reading.read()
    assert reading.fed == reading.counter("datagram-truncated") == MAX_REFUSED
    assert reading.read()
    assert reading.fed == MAX_REFUSED + 10


def test_strangers_are_refused_unread_and_counted(reading: Reading) -> None:
    reading.send(MAX_REFUSED, reading.stranger)
    assert not reading.read()
    assert (reading.fed, reading.counter("datagram-wrong-source")) == (0, MAX_REFUSED)
    assert reading.strangers == 1  # they may tell why the peer is not heard, but a flood of them gains nothing


def test_oversized_datagrams_are_seen_as_such(reading: Reading) -> None:
    reading.send(3, data=b"\1\1" + bytes(5000))
    assert reading.read()
    assert reading.counter("datagram-oversized") == 3


def test_time_ends_a_turn(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_reader, "MAX_REFUSED", 10**6)
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.001)
    reading.send(100)
    assert not reading.read()
    assert 10 <= reading.fed <= 25


def test_timers_wait_for_an_empty_socket_but_not_as_long_as_a_pause(reading: Reading) -> None:
    assert reading.read()
    now = time.monotonic()
    patience = reading.reader.patience_s
    assert not reading.reader.overdue(now)
    assert reading.reader.overdue(now + patience + 0.001)
    assert patience < reading.node.settings.detection_ms / 1000


def test_what_the_kernel_drops_is_reported_once(reading: Reading) -> None:
    reading.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert reading.reader.lost() is None
    reading.send(200, data=bytes(1000))
    lost = reading.reader.lost()
    assert lost is not None
    assert 100 <= lost.count < 200
    assert reading.reader.lost() is None
    gauge = reading.reader.gauge()
    assert gauge["full"] == lost.count
    assert gauge["limit"] <= 2 * 4096
    reading.node.handle(lost, time.monotonic())
    assert reading.counter("datagrams-lost") == lost.count
    assert isinstance(lost, DatagramsLost)


def test_buffer_is_as_long_as_configured() -> None:
    sockets = open_sync(("127.0.0.1", 0), 1 << 16)
    assert sockets.records.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) in (1 << 16, 1 << 17)
    sockets.close()


def test_heartbeats_do_not_wait_behind_records(reading: Reading) -> None:
    assert reading.sockets.heartbeats is not None, "this kernel can part them"
    order: list[int] = []
    reading.reader._feed = lambda event, now: order.append(event.data[1])
    for kind in (3, 1, 3, 4, 3, 4 | 0x80, 0x83, 2):
        reading.send(1, data=bytes([1, kind]) + bytes(60))
    reading.send(1, data=b"x")  # too short to have a kind
    reading.reader._feed = lambda event, now: order.append(event.data[1] if len(event.data) > 1 else -1)
    assert reading.read()
    assert order == [4, 0x84, 3, 1, 3, 3, 0x83, 2, -1]


def test_heartbeats_go_before_records_where_a_queue_has_classes() -> None:
    sockets = open_sync(("127.0.0.1", 0))
    heartbeats, records = sockets.for_heartbeats, sockets.records
    assert heartbeats.getsockname() == records.getsockname()
    for level, option, more, less in (
        (socket.IPPROTO_IP, socket.IP_TOS, 0xC0, 0),
        (socket.SOL_SOCKET, socket.SO_PRIORITY, 6, 0),
    ):
        assert [each.getsockopt(level, option) for each in (heartbeats, records)] == [more, less]
    sockets.close()


def test_kernel_that_can_not_part_them_is_served_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(sync_socket, "attach", refuses)
    sockets = open_sync(("127.0.0.1", 0))
    assert sockets.heartbeats is None and sockets.both == (sockets.records,)
    assert sockets.for_heartbeats is sockets.records
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(20):
            sender.sendto(b"\1\4", sockets.records.getsockname())
        for _ in range(20):
            assert sockets.records.recv(10) == b"\1\4"
    sockets.close()


def test_port_is_nobody_elses() -> None:
    sockets = open_sync(("127.0.0.1", 0))
    with pytest.raises(CommandError, match="check 'listen'"):
        open_sync(sockets.records.getsockname())
    sockets.close()


def test_questions_come_from_any_port_and_garbage_does_not_keep_them_away(reading: Reading) -> None:
    question = Inquiry(configured.settings(name="b", peers=(configured.peer("a"),)), configured.peer("a"), bytes)
    doctor = reading._sender("127.0.0.2")
    reading.send(10, reading.stranger)
    reading.send(10, doctor, question.question())
    reading.send(10, data=question.question())
    assert reading.read()
    assert (reading.fed, reading.strangers) == (0, 2)
    assert reading.counter("questions-answered") == 1
    doctor.close()


def test_questions_are_refused_unread_when_there_are_many(reading: Reading) -> None:
    reading.send(MAX_REFUSED + 1, data=b"\2\5" + bytes(60))
    assert not reading.read()
    assert (reading.fed, reading.strangers) == (0, 1)
