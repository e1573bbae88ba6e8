"""Raw injection of whole IPv4 packets, past our own rules.

A packet for an address of this host (the service address) goes over lo into the local TCP; any other leaves by the
routing table. The mark keeps both out of our queues.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; not in Python's socket
_SNDBUF: Final = 16 << 20
_MAX_ADDRESSES: Final = 4096


class Injector:
    """A raw socket (IPPROTO_RAW, header included) whose packets carry `mark`.

    A failure never raises: the packet counts as lost on the wire, which TCP repairs. `sent` and `failed` (by errno
    name) are counters for the status.
    """

    def __init__(self, mark: int) -> None:
        """Raises OSError without CAP_NET_RAW and CAP_NET_ADMIN."""
        self.sent = 0
        self.failed: dict[str, int] = {}
        self._destinations: dict[bytes, tuple[str, int]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SNDBUF)
        except OSError:
            self._socket.close()
            raise

    def send(self, packet: bytes | bytearray) -> bool:
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
            self._socket.sendto(packet, destination)
        except OSError as problem:
            return self._count(errno.errorcode.get(problem.errno or 0, str(problem.errno)))
        self.sent += 1
        return True

    def _count(self, reason: str) -> bool:
        self.failed[reason] = self.failed.get(reason, 0) + 1
        return False

    def close(self) -> None:
        """Close the socket. Can be repeated."""
        self._socket.close()
