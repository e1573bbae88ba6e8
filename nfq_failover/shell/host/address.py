"""What a host needs so that the service address is there, and is heard only by the one that serves.

The address is a /32 on lo. With the clone tap, whoever serves answers ARP for it (arp_ignore=0) and announces it by
gratuitous ARP; the other host ignores it (arp_ignore=1). With the multicast tap nobody answers: the client or router
has a static entry with a multicast MAC, and both hosts join it. Everything is put back by `restore`; what has to be put
back is on record in a file, so that the daemon's next life can do it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from nfq_failover.errors import CommandError
from nfq_failover.shell.host.announcer import Announcer
from nfq_failover.shell.host.loopback import change_address, has_address

_SYSCTL = Path("/proc/sys/net/ipv4/conf")
_CHANGED = ("arp_announce", "arp_ignore")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/thread-self/ns/net")
_ETH_P_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_SIOCGIFHWADDR = 0x8927  # linux/sockios.h
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0

log = structlog.get_logger()


def _hardware_address(interface: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return fcntl.ioctl(s, _SIOCGIFHWADDR, struct.pack("256s", interface[:15].encode()))[18:24]


def gratuitous_arp(mac: bytes, address: bytes) -> tuple[bytes, bytes]:
    """Returns the announcement as request and as reply: some hosts take only the one, some the other (RFC 5227, 3)."""
    head = _BROADCAST + mac + struct.pack("!H", _ETH_P_ARP)
    request = head + _ARP.pack(1, 0x0800, 6, 4, 1, mac, address, b"\0" * 6, address)
    reply = head + _ARP.pack(1, 0x0800, 6, 4, 2, mac, address, _BROADCAST, address)
    return request, reply


class ServiceAddress:
    """The service address, and how the interface answers ARP for it."""

    def __init__(
        self,
        service: str,
        interface: str,
        tap: str,
        tap_mac: str | None,
        record: Path,
        change: Callable[[bool], str] | None = None,
        announce_refresh_s: float = 30.0,
    ) -> None:
        """`record`: the file that remembers what is ours to put back, for as long as this host is up.

        `change` adds the address (True) or removes it, and returns '' or the reason why not; this process does it by
        default.
        """
        self.service = service
        self._change = change or (lambda add: change_address(service, add))
        self.interface = interface
        self.tap = tap
        self._record = record
        self._life = [_BOOT_ID.read_text().strip(), str(_NETNS.readlink())]
        self._saved: dict[str, str] = {}
        self._owns_address = False
        self.announcer = Announcer(announce_refresh_s)
        self._membership: socket.socket | None = None
        self._raw: socket.socket | None = None
        self.lived = False  # an earlier daemon has left traces on this boot
        self._tap_mac = bytes.fromhex(tap_mac.replace(":", "")) if tap_mac else None
        self._read_record()

    # ------------------------------------------------------------------------------------ the record

    def _read_record(self) -> None:
        """Read what an earlier daemon, which was killed, has left to be put back."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["life"] == self._life:
                self.lived = True
                # Whoever can write the record must not have us write elsewhere, nor anything else.
                ours = {str(_SYSCTL / self.interface / name) for name in _CHANGED}
                found = {str(path): str(int(value)) for path, value in record["sysctls"].items()}
                self._saved = {path: value for path, value in found.items() if path in ours}
                self._owns_address = bool(record["address"])

    def _write_record(self) -> None:
        if not self._saved and not self._owns_address:
            self._record.unlink(missing_ok=True)
            return
        record = {"life": self._life, "sysctls": self._saved, "address": self._owns_address}
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(self._record)

    # ------------------------------------------------------------------------------------ start

    def prepare(self, silent: bool = True) -> None:
        """Set the sysctls and join the tap's group; silent until `own_address`, or as it was. Raises `CommandError`."""
        if not (_SYSCTL / self.interface).is_dir():
            raise CommandError(f"there is no interface '{self.interface}': set 'interface' to one of 'ip -br link'")
        # The kernel takes the greater of the values of "all" and of the interface.
        if self.tap == "clone" and int((_SYSCTL / "all" / "arp_ignore").read_text()) > 0:
            raise CommandError(
                "net.ipv4.conf.all.arp_ignore is not 0, so this host could never answer ARP for the service address: "
                "set it to 0, and to the old value for the interfaces that need it"
            )
        self._set("arp_announce", 2)
        if silent:
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
        if old != str(value):
            if str(path) not in self._saved:
                self._saved[str(path)] = old
                self._write_record()
            path.write_text(f"{value}\n")

    def has_address(self) -> bool:
        """Returns whether the service address is configured on this host."""
        return has_address(self.service)

    def add_address(self) -> None:
        """Configure the service address, unless it is there. Raises `CommandError`."""
        if self.has_address():
            if not self._owns_address:
                log.warning("the service address was there already and will stay", address=self.service)
            return
        self._owns_address = True
        self._write_record()
        if problem := self._change(True):
            raise CommandError(f"can't configure the service address: {problem}")

    # ------------------------------------------------------------------------------------ being heard

    def own_address(self, own: bool, announce: int, now: float) -> None:
        """Answer ARP for the service address and announce it, at least `announce` times; or do neither."""
        self.announcer.stop()
        if self.tap != "clone":
            return
        self._set("arp_ignore", 0 if own else 1)
        if own:
            self.announcer.start(announce, now)
            self.tick(now)

    def heard(self, now: float) -> None:
        """Note that a client's packet for the service has come in while this host serves."""
        if self.announcer.heard(now):
            log.info("clients reach this host", **self.announcer.describe())

    def tick(self, now: float) -> None:
        """Send the announcement that is due."""
        if self.announcer.due(now):
            self._announce()

    def _announce(self) -> None:
        with contextlib.suppress(OSError):  # link down, or interface gone: a later one may get through
            mac = _hardware_address(self.interface)
            for frame in gratuitous_arp(mac, socket.inet_aton(self.service)):
                if self._raw is not None:
                    self._raw.send(frame)

    # ------------------------------------------------------------------------------------ end

    def remove_address(self) -> None:
        """Remove the service address, if it was added here. Can be repeated."""
        if not self._owns_address:
            return
        problem = self._change(False)
        if problem and self.has_address():
            log.error("the service address can't be removed", address=self.service, error=problem)
            return
        self._owns_address = False
        self._write_record()

    def restore(self, stay: bool = False) -> None:
        """Put the sysctls back, unless the host goes on serving (`stay`), and leave the group. Can be repeated."""
        self.announcer.stop()
        if not stay:
            for path, value in self._saved.items():
                with contextlib.suppress(OSError):  # the interface is gone, and its settings with it
                    Path(path).write_text(f"{value}\n")
            self._saved.clear()
            self._write_record()
        for held in (self._membership, self._raw):
            if held is not None:
                held.close()
        self._membership = self._raw = None
