"""Plain TCP through the scrambler: every byte arrives, and the wire shows other numbers than the kernel chose."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nfq_failover.constants import ACK, DEFAULT_MARK, SYN
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.scramble import iptables_variant
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.wire.segment import Segment
from tests.support.namespaces import CLIENT, SERVICE, Namespace, pair

pytestmark = pytest.mark.netns

MASK = 0xFFFFFFFF
QUEUES = ("--queue-out", "7781", "--queue-in", "7780")
# linux/tcp.h; a socket under repair tells its own sequence numbers.
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_SEND_QUEUE, TCP_REPAIR_OFF_NO_WP = 19, 20, 21, 2, -1
# Any of these means that a peer saw numbers that did not fit.
MUST_BE_ZERO = (
    *("TcpInCsumErrors", "TcpExtTSEcrRejected", "TcpExtPAWSActive", "TcpExtPAWSEstab", "TcpExtPAWSTimewait"),
    *("TcpExtTCPSACKDiscard", "TcpExtTCPDSACKIgnoredOld", "TcpExtTCPACKSkippedPAWS", "TcpExtTCPACKSkippedSeq"),
    *("TcpExtTCPACKSkippedChallenge", "TcpExtTCPChallengeACK", "TcpExtTCPSYNChallenge", "TcpOutRsts"),
)


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    with pair() as both:
        yield both


@contextlib.contextmanager
def scrambler(server: Namespace, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        server.argv(
            *(sys.executable, "-m", "nfq_failover.lab.scramble", "--service", SERVICE, "--ports", "80,7000:7099"),
            *(*QUEUES, "--ready-fd", str(writer), *options),
        ),
        pass_fds=[writer],
    )
    os.close(writer)
    try:
        with open(reader, "rb") as ready:
            assert ready.read(1) == b"R"
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def diversions(server: Namespace) -> int:
    """How many rules of the scrambler are in force; the chain and the jump to it are there if any is."""
    count = 0
    for table, hook in (("raw", "OUTPUT"), ("mangle", "INPUT")):
        lines = server.run(iptables_variant(), "-w", "-t", table, "-S").splitlines()
        found = sum("NFQUEUE" in line for line in lines)
        assert lines.count(f"-A {hook} -j LAB-SCRAMBLE") == lines.count("-N LAB-SCRAMBLE") == bool(found)
        count += found
    return count


def counters(namespace: Namespace) -> dict[str, int]:
    lines = namespace.run("nstat", "-asz").splitlines()[1:]
    return {words[0]: int(words[1]) for words in map(str.split, lines)}


def lose_segments(namespace: Namespace) -> None:
    """Lose one in a hundred wire segments, where they arrive."""
    namespace.run("ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off")
    namespace.run(
        "nft",
        'table netdev loss { chain ingress { type filter hook ingress device "eth0" priority 0;'
        " meta l4proto tcp numgen random mod 100 < 1 counter drop ; } ; }",
    )


def own_sequence_number(connection: socket.socket) -> int:
    """The number of the next byte that the application will write, as its kernel sees it."""
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)
    number = connection.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ)
    connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
    return number & MASK


def download_and_upload(client: Namespace, server: Namespace, size: int) -> int:
    """On one connection `size` random bytes down, then up; gives ISS as the server's kernel knows it."""
    payload = random.Random(size).randbytes(size)
    digest = hashlib.sha256(payload).digest()
    results: dict[str, object] = {}
    with server.entered():
        listener = socket.create_server((SERVICE, 80))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            results["iss"] = (own_sequence_number(connection) - 1) & MASK
            connection.sendall(payload)
            received = hashlib.sha256()
            while chunk := connection.recv(1 << 20):
                received.update(chunk)
            connection.sendall(received.digest())

    thread = threading.Thread(target=serve)
    with listener:
        thread.start()
        with client.entered():
            connection = socket.create_connection((SERVICE, 80), timeout=60)
        with connection:
            connection.settimeout(60)
            received, left = hashlib.sha256(), size
            while left:
                chunk = connection.recv(min(left, 1 << 20))
                assert chunk
                received.update(chunk)
                left -= len(chunk)
            assert received.digest() == digest
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == digest
            assert connection.recv(100) == b""
        thread.join()
    iss = results["iss"]
    assert isinstance(iss, int)
    return iss


@dataclass
class Sent:
    """What the client saw the server send."""

    syn_ack: tuple[int, int, int]  # SEQ, TSval, wall clock in ms
    seq: list[int]
    tsval: list[int]
    sacks_from_client: int


def read_capture(path: Path) -> Sent:
    """Read a pcap file of Ethernet frames."""
    raw = path.read_bytes()
    sent = Sent((0, 0, 0), [], [], 0)
    offset = 24
    while offset < len(raw):
        seconds, micros, size, wire = struct.unpack_from("=IIII", raw, offset)
        packet = bytearray(raw[offset + 30 : offset + 16 + size]) + bytes(wire - size)
        offset += 16 + size
        segment = Segment(packet)
        if segment.sport != 80:
            sent.sacks_from_client += bool(segment.sack)
            continue
        if segment.flags & SYN:
            sent.syn_ack = (segment.seq, segment.tsval, seconds * 1000 + micros // 1000)
        sent.seq.append(segment.seq)
        sent.tsval.append(segment.tsval)
    return sent


def wraps(numbers: list[int]) -> bool:
    return any(high > 0xF0000000 and low < 0x10000000 for high, low in itertools.pairwise(numbers))


# Alone: with losses and a scrambler that waits for the processor a segment may be repeated for no need, and the kernel
# counts the client's D-SACK for it as old (TCPDSACKIgnoredOld), which would otherwise mean a number that does not fit.
@pytest.mark.parametrize("timestamps", [1, 0])
@pytest.mark.parametrize("loss", [False, pytest.param(True, marks=pytest.mark.alone)])
def test_bytes_survive_and_numbers_wrap(
    namespaces: tuple[Namespace, Namespace], tmp_path: Path, timestamps: int, loss: bool
) -> None:
    client, server = namespaces
    size = (20 if loss else 50) << 20
    server.run("sysctl", "-qw", f"net.ipv4.tcp_timestamps={timestamps}")
    if loss:
        lose_segments(client)
        lose_segments(server)
    options = ("--wrap-after-bytes", str(size // 3), "--wrap-after-ms", "30")
    with scrambler(server, *options), Capture(tmp_path / "x.pcap", SERVICE, client.argv()) as capture:
        iss = download_and_upload(client, server, size)
    assert capture.counts is not None
    assert capture.counts.captured > 1000
    sent = read_capture(tmp_path / "x.pcap")
    assert sent.syn_ack[0] == 2**32 - size // 3
    assert sent.syn_ack[0] != iss
    assert wraps(sent.seq)
    if timestamps:
        # A SYN-ACK that was lost is sent again after a second, or two more, and so on (RFC 6298 section 5).
        repeats = [0, 1000, 3000, 7000] if loss else [0]
        assert any((sent.syn_ack[1] - (2**32 - 30) - after) % 2**32 <= (100 if after else 0) for after in repeats)
        assert wraps(sent.tsval)
    else:
        assert set(sent.tsval) == {0}
    both = counters(client), counters(server)
    assert [(name, side[name]) for side in both for name in MUST_BE_ZERO if side.get(name, 0)] == []
    assert "TcpInCsumErrors" in both[0]
    assert "TcpExtPAWSEstab" in both[0]
    if loss:
        assert sent.sacks_from_client > 10
        assert both[1]["TcpExtTCPSackRecovery"] > 0
        assert both[0]["TcpExtTCPSackRecovery"] > 0


def test_constants_are_added_exactly(namespaces: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    client, server = namespaces
    server.run("sysctl", "-qw", "net.ipv4.tcp_timestamps=2")  # TSval is the kernel's clock, in ms
    seq_add, ts_add = 0xDEADBEEF, 0x87654321
    with (
        scrambler(server, "--seq-add", hex(seq_add), "--ts-add", str(ts_add)),
        Capture(tmp_path / "x.pcap", SERVICE, client.argv()),
    ):
        iss = download_and_upload(client, server, 1 << 20)
        clock = time.monotonic() * 1000, time.time() * 1000
    seq, tsval, wall = read_capture(tmp_path / "x.pcap").syn_ack
    assert seq == (iss + seq_add) & MASK
    boot_clock = clock[0] + wall - clock[1]
    assert abs(((tsval - ts_add) & MASK) - boot_clock) < 100


def test_the_end_takes_the_rules_away(namespaces: tuple[Namespace, Namespace]) -> None:
    client, server = namespaces
    with scrambler(server, "--seq-add", "1000"):
        assert diversions(server) == 4
    assert diversions(server) == 0
    download_and_upload(client, server, 1 << 20)


def test_rules_left_by_a_killed_scrambler_are_replaced(namespaces: tuple[Namespace, Namespace]) -> None:
    client, server = namespaces
    with contextlib.suppress(AssertionError), scrambler(server) as process:
        process.kill()
        process.wait()
    assert diversions(server) == 4
    with scrambler(server, "--seq-add", "1000"):
        assert diversions(server) == 4
        download_and_upload(client, server, 1 << 20)


def test_rules_none_leaves_the_diversion_to_the_caller(namespaces: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    _, server = namespaces
    with scrambler(server, "--rules", "none", "--ready-file", str(tmp_path / "ready")):
        assert (tmp_path / "ready").exists()
        assert diversions(server) == 0


def test_bound_queue_is_a_clear_error(namespaces: tuple[Namespace, Namespace]) -> None:
    _, server = namespaces
    with scrambler(server):
        argv = (sys.executable, "-m", "nfq_failover.lab.scramble", "--service", SERVICE, "--ports", "80", *QUEUES)
        done = subprocess.run(server.argv(*argv, "--rules", "none"), capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "queue 7781 is already bound by process" in done.stderr
    assert "Traceback" not in done.stderr


def segment(source: str, destination: str, sport: int, dport: int, *, options: bytes = b"") -> Segment:
    """SEQ 1000, ACK 2000, sealed."""
    size = 40 + len(options) + 5
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 6, 0) + addresses
    offset = (5 + len(options) // 4) << 4
    tcp = struct.pack("!HHIIBBHHH", sport, dport, 1000, 2000, offset, ACK, 500, 0, 0)
    it = Segment(bytearray(ip + tcp + options + b"hello"))
    it.seal()
    return it


class Wire:
    """Raw sockets: `client` sees what the server sends, `local` what the server's kernel gets to see."""

    def __init__(self, client: Namespace, server: Namespace) -> None:
        with client.entered():
            self.client = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with server.entered():
            self.local = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            self.marked = Injector(DEFAULT_MARK)
            self.unmarked = Injector(0)
        for sniffer in (self.client, self.local):
            sniffer.settimeout(5)

    def next(self, sniffer: socket.socket, port: int) -> bytearray:
        """The next packet with the client's port `port`."""
        while True:
            packet = bytearray(sniffer.recv(2000))
            if port in struct.unpack_from("!HH", packet, 20):
                return packet

    def close(self) -> None:
        for each in (self.client, self.local, self.marked, self.unmarked):
            each.close()


@pytest.fixture
def wire(namespaces: tuple[Namespace, Namespace]) -> Iterator[Wire]:
    _, server = namespaces
    server.run("iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")
    it = Wire(*namespaces)
    try:
        with scrambler(server, "--seq-add", "100", "--ts-add", "7"):
            yield it
    finally:
        it.close()


def test_injected_outward_is_exempt_and_inward_is_not(wire: Wire) -> None:
    wire.unmarked.send(segment(SERVICE, CLIENT, 7050, 1).buf)
    it = Segment(wire.next(wire.client, 1))
    assert (it.seq, it.ack, it.checksum_ok()) == (1100, 2000, True)
    wire.marked.send(segment(SERVICE, CLIENT, 7050, 2).buf)
    it = Segment(wire.next(wire.client, 2))
    assert (it.seq, it.ack, it.checksum_ok()) == (1000, 2000, True)
    wire.marked.send(segment(CLIENT, SERVICE, 3, 7050).buf)
    it = Segment(wire.next(wire.local, 3))
    assert (it.seq, it.ack, it.checksum_ok()) == (1000, 1900, True)
    wire.unmarked.send(segment(SERVICE, CLIENT, 81, 4).buf)  # no port of the service
    it = Segment(wire.next(wire.client, 4))
    assert (it.seq, it.ack) == (1000, 2000)


def test_corrupted_and_malformed_segments_pass_untouched(wire: Wire) -> None:
    corrupted = segment(CLIENT, SERVICE, 5, 80)
    corrupted.buf[-1] ^= 1
    wire.marked.send(corrupted.buf)
    arrived = wire.next(wire.local, 5)
    assert arrived[20:] == corrupted.buf[20:]
    for port, bad in ((6, b"\x08\x00\x01\x01"), (7, b"\x01\x01\x05\xff")):
        packet = segment(CLIENT, SERVICE, port, 80, options=b"\x01\x01\x01\x01").buf
        packet[40:44] = bad
        wire.marked.send(packet)
        assert wire.next(wire.local, port)[20:] == packet[20:]
    packet = segment(SERVICE, CLIENT, 80, 8).buf
    packet[32] = 0x10  # data offset 1
    wire.unmarked.send(packet)
    assert wire.next(wire.client, 8)[20:] == packet[20:]
