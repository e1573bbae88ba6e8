"""The packet queue and the injector against a real kernel."""

from __future__ import annotations

import contextlib
import importlib.util
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nfq_failover.constants import ACK, DEFAULT_MARK, FIN, PSH
from nfq_failover.core.events import PacketQueued, Queue, QueueOverrun
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.shell.packets.nfqueue import PacketQueue, QueueUnavailable, queue_row
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import MAX_LENGTH, Segment
from tests.support.big_tcp import allow_big_tcp
from tests.support.namespaces import CLIENT, SERVICE, Namespace, pair

pytestmark = pytest.mark.netns

NUMBER = 7761
MARK = DEFAULT_MARK
Decide = Callable[[PacketQueue, PacketQueued], None]


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with pair() as both:
        yield both


@pytest.fixture(params=["the library", "a message of our own"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who makes the queue: both must do."""
    maker: str = request.param
    if maker == "the library":
        assert importlib.util.find_spec("netfilterqueue"), "it belongs to what the tests install"
    else:
        monkeypatch.setattr("nfq_failover.shell.packets.binding.library", None)
    return maker


def divert_output(server: Namespace) -> None:
    server.run(
        *("iptables", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--sport", "80"),
        *("-m", "mark", "!", "--mark", f"{MARK}/{MARK}", "-j", "NFQUEUE", "--queue-num", str(NUMBER)),
    )


@contextlib.contextmanager
def queue_loop(queue: PacketQueue, decide: Decide) -> Iterator[None]:
    """Answer the queue's packets in a thread."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        poll = select.poll()
        poll.register(queue, select.POLLIN)
        try:
            while not stop.is_set():
                poll.poll(50)
                for event in queue.read(64):
                    assert isinstance(event, PacketQueued)
                    decide(queue, event)
                assert queue.flush()
        except BaseException as problem:
            failures.append(problem)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures


def wait_readable(queue: PacketQueue, seconds: float = 5.0) -> bool:
    return bool(select.select([queue], [], [], seconds)[0])


def stream(client: Namespace, server: Namespace, size: int) -> bytes:
    """The server sends `size` patterned bytes; what the client got."""
    payload = bytes(i * 7 & 0xFF for i in range(251)) * (size // 251 + 1)
    payload = payload[:size]
    with server.entered():
        listener = socket.create_server((SERVICE, 80))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(payload)

    with listener:
        thread = threading.Thread(target=serve)
        thread.start()
        received = bytearray()
        with client.entered():
            connection = socket.create_connection((SERVICE, 80), timeout=20)
        with connection:
            while chunk := connection.recv(1 << 20):
                received += chunk
        thread.join()
    assert received == payload
    return bytes(received)


def test_whole_super_segments_pass_rewritten_and_marked(namespaces: tuple[Namespace, Namespace], maker: str) -> None:
    client, server = namespaces
    divert_output(server)
    # An accepted packet leaves with our mark: count those that do, and those that don't.
    for condition in ([], ["!"]):
        server.run(
            *("iptables", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "--sport", "80"),
            *("-m", "mark", *condition, "--mark", f"{MARK}/{MARK}"),
        )
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        row = queue_row(NUMBER)
    assert row is not None
    assert (row.copy_mode, row.copy_range) == (2, 65531)
    seen = {"gso": 0, "pending": 0, "largest": 0}

    def decide(queue: PacketQueue, event: PacketQueued) -> None:
        assert event.queue is Queue.OUT
        segment = Segment(event.packet)
        assert segment.end == len(event.packet)
        seen["gso"] += event.gso
        seen["pending"] += event.checksum_pending
        seen["largest"] = max(seen["largest"], len(event.packet))
        if not event.gso:
            segment.seal()
        queue.verdict(event.packet_id, True, event.packet, MARK)

    try:
        with queue_loop(queue, decide):
            stream(client, server, 20 << 20)
        with server.entered():
            assert queue.dropped() == 0
            assert queue.overrun() is None
    finally:
        queue.close()
    assert seen["gso"] > 100
    assert seen["pending"] > seen["gso"]
    assert seen["largest"] > 60_000
    assert (queue.refused, queue.unreadable, queue.send_retries) == (0, 0, 0)
    counters = [
        int(line.split()[0])
        for line in server.run("iptables", "-t", "mangle", "-nvxL", "POSTROUTING").splitlines()
        if "mark match" in line
    ]
    assert counters[0] > 100
    assert counters[1] == 0


def test_our_bit_is_added_to_the_packets_own_mark(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    divert_output(server)
    server.run(*("iptables", "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "--mark", hex(MARK | 0x42)))
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        raw = Injector(0x42)  # any mark without our bit
    try:
        raw.send(sealed(SERVICE, CLIENT, 80, 1234))
        assert wait_readable(queue)
        (event,) = queue.read(8)
        assert isinstance(event, PacketQueued)
        assert not event.checksum_pending
        assert not event.gso
        assert queue.mark_of(event.packet_id) == 0x42
        queue.verdict(event.packet_id, True, None, MARK)
        assert queue.flush()
        assert queue.mark_of(event.packet_id) == 0
    finally:
        raw.close()
        queue.close()
    rules = server.run("iptables", "-t", "mangle", "-nvxL", "POSTROUTING").splitlines()
    assert int(rules[-1].split()[0]) == 1


def sealed(source: str, destination: str, sport: int, dport: int, payload: bytes = b"hello") -> bytearray:
    """A segment with an Ethernet-sized header and no options."""
    size = 40 + len(payload)
    header = bytearray(20)
    header[0] = 0x45
    header[2:4] = size.to_bytes(2, "big")
    header[8:10] = b"\x40\x06"
    header[12:16] = socket.inet_aton(source)
    header[16:20] = socket.inet_aton(destination)
    tcp = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(8) + bytes((0x50, ACK | PSH, 4, 0)) + bytes(4)
    segment = Segment(header + tcp + payload)
    segment.seal()
    return segment.buf


def test_verdicts_in_any_order_and_drop(namespaces: tuple[Namespace, Namespace]) -> None:
    client, server = namespaces
    divert_output(server)
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        raw = Injector(0)
    with client.entered():
        sniffer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    sniffer.settimeout(5)
    try:
        for port in range(1000, 1600):
            assert raw.send(sealed(SERVICE, CLIENT, 80, port))
        events: list[PacketQueued | QueueOverrun] = []
        while len(events) < 600 and wait_readable(queue):
            events += queue.read(1000)
        assert len(events) == 600
        for event in reversed(events):
            assert isinstance(event, PacketQueued)
            port = Segment(event.packet).dport
            queue.verdict(event.packet_id, port % 3 == 0, None, MARK)
        assert queue.flush()
        arrived = [int.from_bytes(sniffer.recv(100)[22:24], "big") for _ in range(200)]
        assert arrived == [port for port in reversed(range(1000, 1600)) if port % 3 == 0]
        row_waiting = queue_row_in(server)
        assert row_waiting == 0
    finally:
        sniffer.close()
        raw.close()
        queue.close()


def queue_row_in(server: Namespace) -> int:
    with server.entered():
        row = queue_row(NUMBER)
    assert row is not None
    return row.waiting


def test_unread_packets_beyond_the_buffers_are_told(namespaces: tuple[Namespace, Namespace], maker: str) -> None:
    _, server = namespaces
    divert_output(server)
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT, rcvbuf=1 << 16)
        raw = Injector(0)
        try:
            for _ in range(1000):
                raw.send(sealed(SERVICE, CLIENT, 80, 1234))
            events = queue.read(2000)
            overruns = [event for event in events if isinstance(event, QueueOverrun)]
            packets = [event for event in events if isinstance(event, PacketQueued)]
            assert len(overruns) == 1
            assert overruns[0].queue is Queue.OUT
            assert overruns[0].count == 1000 - len(packets)
            assert queue.dropped() == overruns[0].count
            assert queue.overrun() is None
            raw.send(sealed(SERVICE, CLIENT, 80, 1234))  # and it goes on
            assert len(queue.read(10)) == 1
        finally:
            raw.close()
            queue.close()


def test_packets_beyond_the_queue_length_are_counted(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    divert_output(server)
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT, max_len=10)
        raw = Injector(0)
        try:
            for _ in range(25):
                raw.send(sealed(SERVICE, CLIENT, 80, 1234))
            assert len(queue.read(100)) == 10
            assert queue.overrun() == QueueOverrun(Queue.OUT, 15)
            assert queue.overrun() is None
        finally:
            raw.close()
            queue.close()


def test_bound_number_names_its_holder_and_is_free_after_close(
    namespaces: tuple[Namespace, Namespace], maker: str
) -> None:
    _, server = namespaces
    divert_output(server)
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        raw = Injector(0)
        try:
            with pytest.raises(QueueUnavailable, match=r"7761 is already bound by process \d+ \(py.*configure another"):
                PacketQueue(NUMBER, Queue.OUT)
            for _ in range(3):
                raw.send(sealed(SERVICE, CLIENT, 80, 1234))
        finally:
            raw.close()
            queue.close()  # with packets unread
            queue.close()
        assert queue_row(NUMBER) is None
        PacketQueue(NUMBER, Queue.OUT).close()


def test_refused_verdicts_are_counted(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        try:
            queue.verdict(4711, True)
            queue.verdict(4712, False)
            assert queue.flush()
            assert queue.read(10) == []
            assert queue.refused == 2
        finally:
            queue.close()


def test_super_segments_above_64_kib_lose_no_byte(namespaces: tuple[Namespace, Namespace]) -> None:
    """IPv4 BIG TCP, on a kernel that has it."""
    client, server = namespaces
    allowed = [allow_big_tcp(side, "eth0") for side in (client, server)]
    divert_output(server)
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)

    def decide(queue: PacketQueue, event: PacketQueued) -> None:
        segment = Segment(event.packet)
        assert segment.end == len(event.packet) <= MAX_LENGTH
        if not event.gso:
            segment.seal()
        queue.verdict(event.packet_id, True, event.packet, MARK)

    try:
        with queue_loop(queue, decide):
            data = stream(client, server, 8 << 20)
    finally:
        queue.close()
    assert data[:251] == bytes(i * 7 & 0xFF for i in range(251))
    assert (queue.refused, queue.unreadable) == (0, 0)
    assert bool(queue.shortened) is all(allowed)


def test_packet_that_netlink_cannot_hold_is_a_shorter_one(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    divert_output(server)
    server.run("ip", "link", "set", "lo", "mtu", "65535")
    with server.entered():
        queue = PacketQueue(NUMBER, Queue.OUT)
        raw = Injector(0)
        ends = (socket.inet_aton("10.77.0.9"), 80), (socket.inet_aton(SERVICE), 1234)
        try:
            local = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            local.settimeout(5)
            for rewritten in (False, True):
                assert raw.send(build_segment(*ends, 1, 2, FIN | PSH | ACK, 500, b"", bytes(65535 - 40)))
                (event,) = queue.read(10)
                assert isinstance(event, PacketQueued) and not event.gso
                seg = Segment(event.packet)
                assert (seg.end, seg.flags, seg.checksum_ok()) == (65531, ACK, True)
                queue.verdict(event.packet_id, True, event.packet if rewritten else None)
                assert queue.flush()
                assert queue.refused == 0
                assert local.recv(1 << 17) == event.packet  # as the node has seen it, no byte more
            assert queue.shortened == 2
        finally:
            raw.close()
            local.close()
            queue.close()


def test_injected_packets_reach_the_local_tcp_and_the_client(namespaces: tuple[Namespace, Namespace]) -> None:
    client, server = namespaces
    divert_output(server)
    with server.entered():
        injector = Injector(MARK)  # nobody is bound to the queue: what is not exempt is lost
        local = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with client.entered():
        remote = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    local.settimeout(5)
    remote.settimeout(5)
    try:
        assert injector.send(bytes(sealed(CLIENT, SERVICE, 1234, 80)))
        assert local.recv(100)[20:24] == bytes((4, 210, 0, 80))
        assert injector.send(sealed(SERVICE, CLIENT, 80, 1234))
        arrived = remote.recv(100)
        assert arrived[20:24] == bytes((0, 80, 4, 210))
        assert Segment(bytearray(arrived)).checksum_ok()
        assert injector.sent == 2
        assert injector.failed == {}
    finally:
        injector.close()
        local.close()
        remote.close()


def test_routing_rules_for_the_service_address_count(namespaces: tuple[Namespace, Namespace]) -> None:
    """A host with two uplinks chooses one by the source address, also before the address is configured."""
    _, server = namespaces
    server.run("ip", "address", "flush", "to", f"{SERVICE}/32")
    for words in (
        "link add uplink type veth peer name beyond",
        "link set uplink up",
        "link set beyond up",
        f"neighbor add {CLIENT} lladdr 02:00:00:00:00:99 dev uplink nud permanent",
        "route add default dev uplink table 100",
        f"rule add from {SERVICE} lookup 100",
    ):
        server.run("ip", *words.split())
    with server.entered(), contextlib.closing(Injector(MARK, SERVICE)) as injector:
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        with sniffer:
            sniffer.bind(("uplink", 0x0003))
            sniffer.settimeout(5)
            assert injector.send(sealed(SERVICE, CLIENT, 80, 1234))
            packet = b""
            while packet[20:24] != bytes((0, 80, 4, 210)):
                packet = sniffer.recv(100)


def test_injection_failures_are_counted_not_raised(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    with server.entered():
        injector = Injector(MARK)
    server.run("iptables", "-A", "OUTPUT", "-d", "10.77.0.7", "-j", "DROP")
    try:
        assert not injector.send(b"")
        assert not injector.send(b"\x60" + bytes(39))
        assert not injector.send(sealed(SERVICE, "10.99.0.1", 80, 1234))
        assert not injector.send(sealed(SERVICE, CLIENT, 80, 1234, bytes(1461)))
        assert not injector.send(sealed(SERVICE, "10.77.0.7", 80, 1234))
        assert injector.failed == {"not-ipv4": 2, "ENETUNREACH": 1, "EMSGSIZE": 1, "EPERM": 1}
        assert injector.send(sealed(SERVICE, CLIENT, 80, 1234, bytes(1460)))
        server.run("ip", "link", "set", "eth0", "down")
        time.sleep(0.05)
        assert not injector.send(sealed(SERVICE, CLIENT, 80, 1234))
        assert injector.failed["ENETUNREACH"] == 2
    finally:
        injector.close()
