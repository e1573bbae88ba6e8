"""What a host needs so that the service address is there, and is heard only by the one that serves.

The address is a /32 on lo. With the clone tap, whoever serves answers ARP for it (arp_ignore=0) and announces it by
gratuitous ARP; the other one ignores (arp_ignore=1). With the multicast tap nobody answers: the client or router has a
static entry with a multicast MAC, and both hosts join it. Everything is put back by `restore`.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import subprocess
from pathlib import Path

from nfq_failover.errors import CommandError

_SYSCTL = Path("/proc/sys/net/ipv4/conf")
_ETH_P_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_SIOCGIFFLAGS = 0x8913
_SIOCGIFHWADDR = 0x8927
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0


def _ioctl(interface: str, request: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return fcntl.ioctl(s, request, struct.pack("256s", interface[:15].encode()))


def link_up(interface: str) -> tuple[bool, str]:
    """Whether our own link is up (administratively, and with a carrier)."""
    try:
        (flags,) = struct.unpack_from("H", _ioctl(interface, _SIOCGIFFLAGS), 16)
    except OSError as error:
        return False, f"{interface}: {error.strerror}"
    if not flags & _IFF_UP:
        return False, f"{interface} is down"
    if not flags & _IFF_RUNNING:
        return False, f"{interface} has no carrier"
    return True, ""


def gratuitous_arp(mac: bytes, address: bytes) -> tuple[bytes, bytes]:
    """The announcement as request and as reply (RFC 5227 section 3; some hosts take only the one, some the other)."""
    head = _BROADCAST + mac + struct.pack("!H", _ETH_P_ARP)
    request = head + _ARP.pack(1, 0x0800, 6, 4, 1, mac, address, b"\0" * 6, address)
    reply = head + _ARP.pack(1, 0x0800, 6, 4, 2, mac, address, _BROADCAST, address)
    return request, reply


class Host:
    """The service address and the interface's ARP behaviour. Made once per daemon."""

    def __init__(self, service: str, interface: str, tap: str, tap_mac: str | None, owned_mark: Path) -> None:
        """`owned_mark`: a file that remembers over restarts that the address is ours to remove."""
        self.service = service
        self.interface = interface
        self.tap = tap
        self._mark = owned_mark
        self._saved: dict[Path, str] = {}
        self._owns_address = owned_mark.exists()
        self._membership: socket.socket | None = None
        self._raw: socket.socket | None = None
        self._tap_mac = bytes.fromhex(tap_mac.replace(":", "")) if tap_mac else None

    def prepare(self) -> None:
        """Sysctls and tap membership; silent until `be_heard`. Raises `CommandError`."""
        if not (_SYSCTL / self.interface).is_dir():
            raise CommandError(f"there is no interface '{self.interface}': set 'interface' to one of 'ip -br link'")
        self._set("arp_announce", 2)
        self._set("arp_ignore", 1)
        self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._raw.bind((self.interface, 0))
        if self.tap == "multicast" and self._tap_mac:
            index = socket.if_nametoindex(self.interface)
            request = struct.pack("iHH8s", index, _PACKET_MR_MULTICAST, 6, self._tap_mac + b"\0\0")
            self._membership = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._membership.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)

    def _set(self, name: str, value: int) -> None:
        path = _SYSCTL / self.interface / name
        old = path.read_text().strip()
        self._saved.setdefault(path, old)
        if old != str(value):
            path.write_text(f"{value}\n")

    def has_address(self) -> bool:
        """Whether the service address is configured on this host."""
        out = subprocess.run(["ip", "-o", "addr", "show", "to", self.service], capture_output=True, check=False)
        return bool(out.stdout.strip())

    def add_address(self) -> None:
        """Configure the service address, unless it is there. Raises `CommandError`."""
        if self.has_address():
            return
        command = ["ip", "addr", "add", f"{self.service}/32", "dev", "lo"]
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        if out.returncode:
            raise CommandError(f"can't configure the service address: {out.stderr.strip()}")
        self._mark.touch()
        self._owns_address = True
        with contextlib.suppress(OSError):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=False)

    def be_heard(self, own: bool) -> None:
        """Answer ARP for the service address, or don't."""
        if self.tap == "clone":
            self._set("arp_ignore", 0 if own else 1)

    def announce(self) -> None:
        """Send the gratuitous ARPs once."""
        if self.tap != "clone" or self._raw is None:
            return
        mac = _ioctl(self.interface, _SIOCGIFHWADDR)[18:24]
        for frame in gratuitous_arp(mac, socket.inet_aton(self.service)):
            with contextlib.suppress(OSError):  # link down: the next repetition
                self._raw.send(frame)

    def remove_address(self) -> None:
        """Take the service address away again, if we configured it."""
        if self._owns_address:
            command = ["ip", "addr", "del", f"{self.service}/32", "dev", "lo"]
            subprocess.run(command, capture_output=True, check=False)
            self._mark.unlink(missing_ok=True)
            self._owns_address = False

    def restore(self) -> None:
        """Sysctls as they were, memberships left. Repeatable."""
        for path, value in self._saved.items():
            with contextlib.suppress(OSError):
                path.write_text(f"{value}\n")
        self._saved.clear()
        for held in (self._membership, self._raw):
            if held is not None:
                held.close()
        self._membership = self._raw = None
