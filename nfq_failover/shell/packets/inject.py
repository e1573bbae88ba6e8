"""Raw injection of whole IPv4 packets, past our own rules.

A packet for an address of this host (the service address) goes over lo into the local TCP, and what comes from lo is
not queued. Any other leaves by the routing table, with our mark, for the silence guard to let it out. Our rules know
it by the group of its socket, which nothing else has, and which no other rule can change; where that is impossible,
they go by the mark.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from typing import Final

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; not in Python's socket
_SNDBUF: Final = 16 << 20
_IP_FREEBIND: Final = 15  # linux/in.h; not in Python's socket
_MAX_ADDRESSES: Final = 4096
OWNER: Final = 0x4E465146
"""The group of the socket, "NFQF": the rules script has the same number (iptables/lib/options.sh)."""
_ANY_GROUP: Final = -1  # changes nothing, setfsgid(2)

_libc = ctypes.CDLL(None)


class Injector:
    """Two raw sockets (IPPROTO_RAW, header included): outward, whose packets carry `mark`, and inward.

    Inward there is no mark: a connection of ours could inherit it (sysctl tcp_fwmark_accept), and its segments would
    pass for the daemon's. A failure never raises: the packet counts as lost on the wire, which TCP repairs. `owned`:
    what is sent outward has the group `OWNER`. `sent` and `failed` (by errno name) are counters for the status.
    """

    def __init__(self, mark: int, source: str = "") -> None:
        """`source`: the service address; routing rules for it (`ip rule add from`) count then, as they do for what our
        TCP sends. Raises OSError without CAP_NET_RAW and CAP_NET_ADMIN. Without CAP_SETGID it is not `owned`."""
        self.sent = 0
        self.failed: dict[str, int] = {}
        self._destinations: dict[bytes, tuple[str, int]] = {}
        self._outward, self.owned = owned_socket(OWNER, source)
        try:
            self._outward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._inward = raw_socket()
        except OSError:
            self._outward.close()
            raise

    def send(self, packet: bytes | bytearray, inward: bool = False) -> bool:
        """Send an IPv4 packet with its TCP checksum in place; the kernel writes the IP checksum, and the ID if it is 0.

        The packet must fit the MTU: the kernel does not fragment what comes with a header. Returns False if it was not
        sent.
        """
        address = bytes(packet[16:20])
        destination = self._destinations.get(address)
        if destination is None:
            if len(packet) < 20 or packet[0] >> 4 != 4:
                return self._count("not-ipv4")
            if len(self._destinations) >= _MAX_ADDRESSES:
                self._destinations.clear()
            destination = self._destinations[address] = (socket.inet_ntoa(address), 0)
        try:
            (self._inward if inward else self._outward).sendto(packet, destination)
        except OSError as problem:
            return self._count(errno.errorcode.get(problem.errno or 0, str(problem.errno)))
        self.sent += 1
        return True

    def _count(self, reason: str) -> bool:
        self.failed[reason] = self.failed.get(reason, 0) + 1
        return False

    def close(self) -> None:
        """Close the sockets. Can be repeated."""
        self._outward.close()
        self._inward.close()


def owned_socket(group: int, source: str) -> tuple[socket.socket, bool]:
    """A raw socket of a group, bound to an address that may not be configured yet ('' for none), and whether the group
    took: it needs CAP_SETGID. Raises OSError."""
    before = _libc.setfsgid(group)  # of this thread; a socket keeps the group of the moment when it is made
    try:
        owned = bool(_libc.setfsgid(_ANY_GROUP) == group)
        made = raw_socket()
    finally:
        _libc.setfsgid(before)
    if source:
        try:
            made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            made.bind((source, 0))
        except OSError:
            made.close()
            raise
    return made, owned


def raw_socket() -> socket.socket:
    """A socket for whole IPv4 packets. Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SNDBUF)
    except OSError:
        made.close()
        raise
    return made
