"""IPv4 BIG TCP (Linux 6.3): super-segments above 64 KiB. iproute2 before 6.3 can't switch it on."""

from __future__ import annotations

import socket
import struct

from tests.support.namespaces import Namespace

SIZE = 180_000
_NEWLINK, _GETLINK = 16, 18
_GSO, _GRO = 63, 64  # IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE


def _link(sock: socket.socket, kind: int, flags: int, interface: str, attributes: bytes = b"") -> bytes:
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(interface), 0, 0) + attributes
    sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    return sock.recv(1 << 16)


def allow_big_tcp(side: Namespace, interface: str) -> bool:
    """Let an interface send and merge segments of up to `SIZE` bytes. False if this kernel can't."""
    attributes = b"".join(struct.pack("=HHI", 8, kind, SIZE) for kind in (_GSO, _GRO))
    with side.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        answer = _link(sock, _NEWLINK, 5, interface, attributes)
        assert not struct.unpack_from("=i", answer, 16)[0], f"{interface}: {answer!r}"
        return struct.pack("=HHI", 8, _GSO, SIZE) in _link(sock, _GETLINK, 1, interface)
