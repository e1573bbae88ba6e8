"""The application's listening sockets (linux/inet_diag.h): a new life of the application has others."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from nfq_failover.core.events import ListenersSeen, Sockets

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_FLAGS: Final = 0x001 | 0x300  # request, dump
_LISTENING: Final = 1 << 10  # include/net/tcp_states.h
# nlmsghdr; inet_diag_req_v2: family, protocol, extensions, padding, states; inet_diag_sockid without a connection.
_DUMP = Struct("=IHHII BBBxI 48s")
_HEADER = Struct("=IHHII")
_SOCKET = Struct("!4xH2x16s")  # the beginning of inet_diag_msg: our port, their port, our address
_INTERFACE = Struct("=I")  # SO_BINDTODEVICE; 0: none
_INTERFACE_AT: Final = 40
_ANY_OR_LO: Final = (0, 1)  # lo has this index in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h)
_INODE = Struct("=I")
_INODE_AT: Final = 68  # in inet_diag_msg, which has 72 bytes
_ATTRIBUTES_AT: Final = 72
_ATTRIBUTE = Struct("=HH")
_SKV6ONLY: Final = 11  # INET_DIAG_SKV6ONLY: a byte, which the kernel tells of every listening IPv6 socket
_DUMP_BYTES: Final = 1 << 16
_ANY: Final = bytes(16)
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2


LOOK_EVERY_S: Final = 1.0
WANTED_EVERY_S: Final = 0.05


class Look(NamedTuple):
    """`sockets` as (port, inode); `bound`: ports where all of them are bound to an interface other than lo, in order,
    and the interface's name (several: separated by a comma). `interfaces`: the indices of all that any is bound to."""

    sockets: Sockets
    bound: tuple[tuple[int, str], ...] = ()
    interfaces: frozenset[int] = frozenset()


class Listening:
    """Looks at them once a second, and when it is wanted."""

    def __init__(self, service: bytes, serves: Callable[[int], bool]) -> None:
        self._service = service
        self._serves = serves
        self._next = self._next_wanted = 0.0
        self._seen: Look | None = None
        self._looked_at = 0.0

    @property
    def interfaces(self) -> frozenset[int]:
        """The indices of the interfaces that they were bound to at the last look."""
        return frozenset() if self._seen is None else self._seen.interfaces

    def tick(self, now: float, wanted: bool = False) -> ListenersSeen | None:
        """Returns what there is now, if that has changed or is wanted. A kernel that can't be asked changes nothing."""
        if now < (self._next_wanted if wanted else self._next):
            return None
        self._next, self._next_wanted = now + LOOK_EVERY_S, now + WANTED_EVERY_S
        before = self._looked_at if self._seen is not None else now
        known = True
        try:
            found = look(self._service, self._serves)
        except OSError:
            if self._seen is not None:
                return None
            found, known = Look(frozenset()), False
        self._looked_at = now
        if found == self._seen and not wanted:
            return None
        self._seen = found
        return ListenersSeen(found.sockets, now - before, known, found.bound)


def look(service: bytes, serves: Callable[[int], bool]) -> Look:
    """Returns the sockets that listen at the service's address, or at any, and at its ports.

    Raises OSError if the kernel can't be asked (no module tcp_diag).
    """
    found: set[tuple[int, int, int]] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
            head = (_DUMP.size, _SOCK_DIAG_BY_FAMILY, _FLAGS, 1, 0)
            diag.send(_DUMP.pack(*head, family, socket.IPPROTO_TCP, 0, _LISTENING, b""))
            over = False
            while not over:  # Ends: each read takes a part of the dump, and raises if there is none.
                over = _take(diag.recv(_DUMP_BYTES, socket.MSG_DONTWAIT), service, serves, found)
    over_lo = {port for port, _, interface in found if interface in _ANY_OR_LO}
    bound: dict[int, set[str]] = {}
    for port, _, interface in found:
        if port not in over_lo:
            bound.setdefault(port, set()).add(_name(interface))
    return Look(
        frozenset((port, inode) for port, inode, _ in found),
        tuple((port, ", ".join(sorted(names))) for port, names in sorted(bound.items())),
        frozenset(interface for _, _, interface in found if interface),
    )


def _name(interface: int) -> str:
    try:
        return socket.if_indextoname(interface)
    except OSError:  # it has been removed: the socket stays bound to it
        return f"interface {interface}"


def _take(data: bytes, service: bytes, serves: Callable[[int], bool], found: set[tuple[int, int, int]]) -> bool:
    """Take a part of the dump, as (port, inode, interface). Returns True at its end."""
    at = 0
    while at + _HEADER.size <= len(data):  # Ends: `at` grows by a message, which has a header at least
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            code = -int.from_bytes(data[at + 16 : at + 20], "little", signed=True)
            raise OSError(code, os.strerror(code))
        if length < _HEADER.size:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
        port, address = _SOCKET.unpack_from(data, at + _HEADER.size)
        (inode,) = _INODE.unpack_from(data, at + _HEADER.size + _INODE_AT)
        (interface,) = _INTERFACE.unpack_from(data, at + _HEADER.size + _INTERFACE_AT)
        here = (_ANY, service.ljust(16, b"\0"), _MAPPED + service)
        if inode and serves(port) and address in here and not _ipv6_only(data[at + _HEADER.size : at + length]):
            found.add((port, inode, interface))
        at += (length + 3) & ~3
    return False


def _ipv6_only(message: bytes) -> bool:
    """Whether a socket takes no IPv4 connections, though it may listen at all addresses."""
    at = _ATTRIBUTES_AT
    while at + _ATTRIBUTE.size < len(message):  # Ends: `at` grows by an attribute, which has a header at least
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _SKV6ONLY:
            return bool(message[at + _ATTRIBUTE.size])
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return False
