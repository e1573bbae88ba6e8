"""Copies of inbound segments from a real packet socket, alone and beside queue and injection."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from nfq_failover.constants import ACK, DEFAULT_MARK, FIN, IPPROTO_TCP, RST, SYN
from nfq_failover.core.events import FrameCopied, PacketQueued, Queue
from nfq_failover.shell.packets.copies import InboundCopies
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK
from tests.support.namespaces import CLIENT, SERVICE, Namespace, pair

pytestmark = pytest.mark.netns

PORTS = ((80, 80), (7000, 7099))
MULTICAST_MAC = "03:00:0a:4d:00:64"
OTHER_MAC = "02:00:00:00:00:99"


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with pair() as both:
        yield both


@pytest.fixture
def client_raw(namespaces: tuple[Namespace, Namespace]) -> Iterator[Injector]:
    with namespaces[0].entered():
        raw = Injector(0)
    yield raw
    raw.close()


@pytest.fixture
def copies(namespaces: tuple[Namespace, Namespace]) -> Iterator[InboundCopies]:
    with namespaces[1].entered():
        it = InboundCopies("eth0", socket.inet_aton(SERVICE), PORTS)
    yield it
    it.close()


def segment(client_port: int, *, port: int = 80, flags: int = ACK, payload: bytes = b"hello") -> Segment:
    """From the client to the service, sealed."""
    addresses = socket.inet_aton(CLIENT) + socket.inet_aton(SERVICE)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 0, 0, 64, IPPROTO_TCP, 0) + addresses
    tcp = struct.pack("!HHIIBBHHH", client_port, port, 1000, 2000, 0x50, flags, 500, 0, 0)
    it = Segment(bytearray(ip + tcp + payload))
    it.seal()
    return it


def client_ports(copies: InboundCopies, raw: Injector) -> list[int]:
    """The client ports of the copies so far; a last segment tells that all have come."""
    assert raw.send(segment(9999).buf)
    ports: list[int] = []
    deadline = time.monotonic() + 5
    while 9999 not in ports and time.monotonic() < deadline:
        select.select([copies], [], [], 1)
        ports += [Segment(copy.packet).sport for copy in copies.read(1000)]
    assert ports.pop() == 9999
    return ports


def test_only_data_fin_and_rst_to_the_service(copies: InboundCopies, client_raw: Injector) -> None:
    for number, (flags, payload, port) in enumerate(
        (
            (ACK, b"x", 80),
            (ACK, b"", 80),
            (ACK | FIN, b"", 7000),
            (RST, b"", 7099),
            (SYN, b"", 80),
            (ACK, b"x", 81),
            (ACK, b"x", 7100),
            (ACK, bytes(1460), 7050),
        )
    ):
        assert client_raw.send(segment(1000 + number, port=port, flags=flags, payload=payload).buf)
    assert client_ports(copies, client_raw) == [1000, 1002, 1003, 1007]
    assert copies.lost() == 0


def test_copy_is_the_packet_and_its_checksum_is_there(copies: InboundCopies, client_raw: Injector) -> None:
    sent = segment(1234, payload=b"payload")
    assert client_raw.send(sent.buf)
    assert select.select([copies], [], [], 5)[0]
    (copy,) = copies.read(10)
    assert not copy.checksum_pending
    received = Segment(copy.packet)
    assert received.checksum_ok()
    assert received.payload() == b"payload"
    assert copy.packet[20:] == sent.buf[20:]


def test_multicast_frames_are_copied_and_other_hosts_frames_are_not(
    namespaces: tuple[Namespace, Namespace], copies: InboundCopies, client_raw: Injector
) -> None:
    client, server = namespaces
    server.run("ip", "link", "set", "eth0", "promisc", "on")
    own = server.run("cat", "/sys/class/net/eth0/address").strip()
    for port, mac in ((1000, MULTICAST_MAC), (1001, OTHER_MAC), (1002, own)):
        client.run("ip", "neigh", "replace", SERVICE, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        assert client_raw.send(segment(port).buf)
    assert client_ports(copies, client_raw) == [1000, 1002]


def test_clones_that_leave_and_injected_packets_are_not_copied(
    namespaces: tuple[Namespace, Namespace], copies: InboundCopies, client_raw: Injector
) -> None:
    client, server = namespaces
    server.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-d", SERVICE, "-j", "TEE", "--gateway", "10.77.0.3")
    server.run("ip", "neigh", "add", "10.77.0.3", "lladdr", OTHER_MAC, "dev", "eth0", "nud", "permanent")
    with client.entered():
        clones = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL
        clones.bind(("eth0", 0x0003))
    with server.entered():
        injector = Injector(DEFAULT_MARK)
    with clones:
        for port in range(1000, 1010):
            assert client_raw.send(segment(port).buf)
        assert injector.send(segment(2000).buf)  # from the server over lo
        assert client_ports(copies, client_raw) == list(range(1000, 1010))
        clones.settimeout(5)
        cloned = 0
        while cloned < 11:  # they did leave: 10 and the last one
            cloned += clones.recv(2000)[:6] == bytes.fromhex(OTHER_MAC.replace(":", ""))
    injector.close()


def test_lost_copies_are_counted_once(namespaces: tuple[Namespace, Namespace], client_raw: Injector) -> None:
    with namespaces[1].entered():
        copies = InboundCopies("eth0", socket.inet_aton(SERVICE), PORTS, rcvbuf=1 << 15)
    try:
        for _ in range(1000):
            assert client_raw.send(segment(1000, payload=bytes(1000)).buf)
        deadline = time.monotonic() + 5
        kept = lost = 0
        while kept + lost < 1000 and time.monotonic() < deadline:
            kept += len(copies.read(1000))
            lost += copies.lost()
        assert kept + lost == 1000
        assert lost > 0
        assert copies.lost() == 0
    finally:
        copies.close()


def test_link_down_and_up_again(
    namespaces: tuple[Namespace, Namespace], copies: InboundCopies, client_raw: Injector
) -> None:
    client, server = namespaces
    server.run("ip", "link", "set", "eth0", "down")
    assert copies.read(10) == []
    server.run("ip", "link", "set", "eth0", "up")
    own = server.run("cat", "/sys/class/net/eth0/address").strip()
    client.run("ip", "neigh", "replace", SERVICE, "lladdr", own, "dev", "eth0", "nud", "permanent")
    deadline = time.monotonic() + 5
    while not select.select([copies], [], [], 0.05)[0] and time.monotonic() < deadline:
        client_raw.send(segment(1000).buf)
    assert copies.read(1)


def test_unknown_interface_is_an_error(namespaces: tuple[Namespace, Namespace]) -> None:
    with namespaces[1].entered(), pytest.raises(OSError, match="No such device"):
        InboundCopies("eth7", socket.inet_aton(SERVICE), PORTS)


def reassembled(copies: list[FrameCopied]) -> bytes:
    """The client's stream out of one connection's copies; fails on a hole or on bytes that differ.

    Segments may come out of order: a sender that moves to another CPU overtakes itself on a veth.
    """
    segments = [Segment(copy.packet) for copy in copies]
    near = (segments[0].seq - (1 << 31)) & MASK
    segments.sort(key=lambda it: (it.seq - near) & MASK)
    start = segments[0].seq
    stream = bytearray()
    for it in segments:
        offset = (it.seq - start) & MASK
        if it.payload_len:
            assert offset <= len(stream)
            overlap = stream[offset : offset + it.payload_len]
            assert overlap == it.payload()[: len(overlap)]
            stream += it.payload()[len(overlap) :]
    return bytes(stream)


def test_upload_through_queue_and_injection_is_copied_whole(
    namespaces: tuple[Namespace, Namespace], copies: InboundCopies
) -> None:
    """The queue drops everything inbound and the injector delivers it instead, as a backup does with translated
    segments; the copies are the same stream, each segment once."""
    client, server = namespaces
    server.run(
        *("iptables", "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-m", "mark"),
        *("!", "--mark", f"{DEFAULT_MARK}/{DEFAULT_MARK}", "-j", "NFQUEUE", "--queue-num", "7760"),
    )
    payload = random.Random(1).randbytes(20 << 20)
    with server.entered():
        queue = PacketQueue(7760, Queue.IN)
        injector = Injector(DEFAULT_MARK)
        listener = socket.create_server((SERVICE, 80))
    done = threading.Event()
    copied: list[FrameCopied] = []
    queued = 0
    pending: set[bool] = set()
    checked: list[bool] = []  # of segments whose checksum is there already, such as the last ACK of a dead connection

    poll = select.poll()
    poll.register(queue, select.POLLIN)
    poll.register(copies, select.POLLIN)

    def work() -> None:
        nonlocal queued
        while not done.is_set():
            poll.poll(50)
            copied.extend(copies.read(64))
            for event in queue.read(64):
                assert isinstance(event, PacketQueued)
                it = Segment(event.packet)
                if not event.checksum_pending:
                    checked.append(it.checksum_ok())
                it.seal()
                queued += 1
                if it.payload_len:
                    pending.add(event.checksum_pending)
                queue.verdict(event.packet_id, False)
                injector.send(event.packet)
            queue.flush()

    def upload() -> None:
        with client.entered():
            connection = socket.create_connection((SERVICE, 80), timeout=30)
        with connection:
            connection.sendall(payload)

    threads = [threading.Thread(target=work), threading.Thread(target=upload)]
    for thread in threads:
        thread.start()
    try:
        listener.settimeout(30)
        connection, _ = listener.accept()
        received = bytearray()
        with connection, listener:
            connection.settimeout(30)
            while chunk := connection.recv(1 << 20):
                received += chunk
        threads[1].join()
    finally:
        done.set()
        threads[0].join()
    copied += copies.read(10_000)
    assert copies.lost() == 0
    with server.entered():
        assert queue.dropped() == 0
    queue.close()
    injector.close()
    digest = hashlib.sha256(payload).digest()
    assert hashlib.sha256(received).digest() == digest
    assert hashlib.sha256(reassembled(copied)).digest() == digest
    assert any(Segment(copy.packet).flags & FIN for copy in copied)
    assert any(len(copy.packet) > 1500 for copy in copied)  # super-segments, whole
    assert all(copy.checksum_pending for copy in copied)  # a veth computes none
    assert pending == {True}
    assert all(checked)
    assert injector.failed == {}
    assert injector.sent == queued
