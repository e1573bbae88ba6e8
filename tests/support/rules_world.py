"""A client and two servers at a switch, for tests of the firewall rules: packets in, packets seen, no daemon."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nfq_failover.constants import ACK, DEFAULT_MARK, PSH, SYN
from tests.support.namespaces import CLIENT, SERVICE, Namespace, run

SCRIPT = Path(__file__).resolve().parents[2] / "iptables" / "nfq-failover-rules"
PORTS = "80,7000:7099"
MARK = DEFAULT_MARK
VARIANTS = ("nft", "legacy")
MULTICAST_MAC = "01:00:5e:4d:00:64"
_OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h


@dataclass
class RulesHost:
    """A server: its namespace, its own address and MAC address, and the rules script in one of iptables' variants."""

    namespace: Namespace
    address: str
    mac: str
    variant: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """For the script: which iptables, and a lock of our own, since namespaces share /run/xtables.lock."""
        return dict(os.environ, IPTABLES=f"iptables-{self.variant}", XTABLES_LOCKFILE=str(self.lock_file))

    def outcome(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command, which may fail."""
        argv = self.namespace.argv(*command)
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=self.environment)

    def rules(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        return self.outcome("/bin/sh", str(SCRIPT), *arguments, "--state-dir", str(self.directory))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run the script beside the test."""
        argv = self.namespace.argv("/bin/sh", str(SCRIPT), *arguments, "--state-dir", str(self.directory))
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=self.environment)

    @property
    def lock_file(self) -> Path:
        return self.directory.parent / "xtables.lock"

    def install(self, role: str, *options: str, peer: RulesHost | None = None) -> str:
        """Install a role; gives what it said on stderr. Fails the test if it fails."""
        base = ["--service", SERVICE, "--ports", PORTS, "--interface", "eth0"]
        if peer is not None:
            base += ["--peer", peer.address, "--peer-mac", peer.mac]
        done = self.rules("install", "--role", role, *base, *options)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def iptables(self, *arguments: str) -> str:
        return self.namespace.run(f"iptables-{self.variant}", *arguments)

    def saved(self) -> list[str]:
        """All rules as iptables-save prints them, less comments and counters."""
        lines = self.namespace.run(f"iptables-{self.variant}-save").splitlines()
        return [line.split(" [")[0] for line in lines if not line.startswith("#")]

    def flush(self) -> None:
        """What a firewall's restart does: all of iptables, both kinds, and all of nft."""
        for table in ("raw", "mangle", "filter", "nat"):
            for variant in VARIANTS:
                self.namespace.run(f"iptables-{variant}", "-t", table, "-F")
        self.namespace.run("nft", "flush", "ruleset")

    def ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.namespace.name, *arguments)

    def serve(self) -> None:
        self.ip("address", "add", f"{SERVICE}/32", "dev", "eth0")

    @contextlib.contextmanager
    def listener(self, port: int = 80) -> Iterator[socket.socket]:
        """A listening socket; the kernel completes the handshakes."""
        with self.namespace.entered():
            server = socket.create_server((SERVICE, port), backlog=500)
        server.settimeout(2)
        with server:
            yield server


@dataclass
class RulesWorld:
    """The client's namespace and the servers a and b."""

    client: Namespace
    a: RulesHost
    b: RulesHost

    def point_to(self, mac: str) -> None:
        """From now on the client's packets for the service go to this MAC address."""
        options = ("lladdr", mac, "dev", "eth0", "nud", "permanent")
        run("ip", "-n", self.client.name, "neighbor", "replace", SERVICE, *options)

    def send(self, flags: int, port: int = 80, *, count: int = 1, source_port: int = 30000) -> None:
        """Segments of the client to the service, out of thin air."""
        with self.client.entered():
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with out:
            for number in range(count):
                out.sendto(segment(CLIENT, SERVICE, source_port, port, 1000 + number, flags), (SERVICE, 0))

    def ping(self) -> None:
        """An ICMP echo request to the service."""
        with self.client.entered():
            out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with out:
            body = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
            out.sendto(body[:2] + checksum(body).to_bytes(2, "big") + body[4:], (SERVICE, 0))

    def connects(self, port: int = 80, source_port: int = 0, timeout: float = 0.4) -> bool:
        """Whether the client gets a connection."""
        with self.client.entered():
            out = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with out:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            out.bind((CLIENT, source_port))
            out.settimeout(timeout)
            try:
                out.connect((SERVICE, port))
            except TimeoutError:
                return False
        return True

    def provoke(self) -> None:
        """All that could make a host with the service address say something."""
        self.send(SYN, 80, count=3)
        self.send(ACK | PSH, 80, count=3)
        self.send(ACK, 7050)
        self.send(SYN, 5000)
        self.ping()
        time.sleep(0.15)


def segment(source: str, destination: str, source_port: int, port: int, seq: int, flags: int) -> bytes:
    """A TCP segment without options, with a valid checksum; 5 bytes of data if PSH is set."""
    data = b"hello" if flags & PSH else b""
    head = struct.pack("!HHIIBBHHH", source_port, port, seq, 1, 0x50, flags, 8192, 0, 0) + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", 6, len(head))
    return head[:16] + checksum(pseudo + head).to_bytes(2, "big") + head[18:]


def checksum(data: bytes) -> int:
    """The internet checksum, RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Sniffer:
    """IPv4 packets that reach a namespace's eth0 from outside."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("eth0", 0x0800))

    def __enter__(self) -> Sniffer:
        self.packets()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packets(self, wait: float = 0.05) -> list[bytes]:
        """What has come since the last call; returns when nothing more comes for `wait` seconds."""
        found = []
        while select.select([self._socket], [], [], wait)[0]:
            data, address = self._socket.recvfrom(65536)
            if address[2] != _OUTGOING:
                found.append(data)
        return found

    def from_service(self) -> list[bytes]:
        """Those that claim to come from the service address."""
        return [packet for packet in self.packets() if packet[12:16] == socket.inet_aton(SERVICE)]

    def to_service(self) -> list[bytes]:
        """Those that go to the service address."""
        return [packet for packet in self.packets() if packet[16:20] == socket.inet_aton(SERVICE)]


@contextlib.contextmanager
def world(variant: str, directory: Path) -> Iterator[RulesWorld]:
    """Three namespaces at a bridge; nobody has the service address yet."""
    token = secrets.token_hex(3)
    switch, client, a, b = (Namespace(f"r{token}{letter}") for letter in "wcab")
    try:
        for namespace in (switch, client, a, b):
            run("ip", "netns", "add", namespace.name)
        run("ip", "-n", switch.name, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", switch.name, "link", "set", "br0", "up")
        for number, namespace in enumerate((client, a, b), start=1):
            port, mac = f"p{number}", f"02:77:00:00:00:{number:02x}"
            run(
                *("ip", "link", "add", "eth0", "netns", namespace.name, "address", mac, "type", "veth"),
                *("peer", "name", port, "netns", switch.name),
            )
            run("ip", "-n", switch.name, "link", "set", port, "master", "br0", "up")
            namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            run("ip", "-n", namespace.name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            run("ip", "-n", namespace.name, "link", "set", "lo", "up")
            run("ip", "-n", namespace.name, "link", "set", "eth0", "up")
        hosts = [
            RulesHost(
                namespace, f"10.77.0.{number}", f"02:77:00:00:00:{number:02x}", variant, directory / namespace.name
            )
            for number, namespace in ((2, a), (3, b))
        ]
        yield RulesWorld(client, *hosts)
    finally:
        for namespace in (switch, client, a, b):
            if Path(f"/run/netns/{namespace.name}").exists():
                run("ip", "netns", "delete", namespace.name)
