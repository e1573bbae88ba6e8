"""Addresses, interfaces, routes and neighbours, asked of the kernel or changed there (rtnetlink(7)).

Each call is one exchange with the kernel, which answers at once: some ten microseconds, and no process is started.
`Changes` is the other direction: the kernel says that an address or an interface has changed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct, error
from typing import Final

_NETLINK_ROUTE: Final = 0
_REQUEST, _ACK, _CREATE, _REPLACE, _EXCL, _DUMP = 0x1, 0x4, 0x400, 0x100, 0x200, 0x300  # linux/netlink.h
_ERROR, _DONE = 2, 3
_NEW_LINK, _GET_LINK, _NEW_ADDR, _DEL_ADDR, _GET_ADDR = 16, 18, 20, 21, 22  # linux/rtnetlink.h
_GET_ROUTE, _NEW_NEIGH, _GET_NEIGH, _GET_RULE = 26, 28, 30, 34
GROUP_LINK, GROUP_IPV4_ADDR, GROUP_IPV4_ROUTE, GROUP_IPV4_RULE = 0x1, 0x10, 0x40, 0x80
_GET_FILTER: Final = 46
_EGRESS: Final = 0xFFFFFFF3  # of clsact: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), linux/pkt_sched.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL = 1, 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME = 1, 3
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_MARK, _RTA_VIA = 1, 2, 4, 5, 16, 18
_FRA_SRC, _FRA_TABLE = 2, 15  # linux/fib_rules.h
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_USE: Final = 0x1
_NUD_STALE: Final = 0x04
NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent

IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_NOARP: Final = 0x80
SCOPE_UNIVERSE: Final = 0
SCOPE_HOST: Final = 254
RTN_UNICAST, RTN_LOCAL = 1, 2
NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_CODE = Struct("=i")
_U32 = Struct("=I")
_ADDR = Struct("=BBBBI")  # family, prefix length, flags, scope, index
_LINK = Struct("=BxHiII")  # family, type, index, flags, change
_ROUTE = Struct("=BBBBBBBBI")
_RULE = Struct("=BBBBBxxBI")  # family, lengths of destination and source, TOS, table, action, flags
_NEIGH = Struct("=BxxxiHBB")  # family, index, state, flags, type
_FILTER = Struct("=BxxxiIII")  # family, index, handle, parent, info
_QUESTION_S: Final = 0.2  # the kernel has answered when send() returns; this is for a socket that is broken
_RECEIVE_BYTES: Final = 1 << 17
_numbers = itertools.count(1)
_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this host. `local`: packed; `index`: of its interface."""

    index: int
    local: bytes
    prefix_bits: int
    scope: int = SCOPE_UNIVERSE
    label: str = ""

    def __str__(self) -> str:
        return f"{socket.inet_ntop(_family(self.local), self.local)}/{self.prefix_bits}"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `hardware`: its hardware address, b"" if it has none."""

    index: int
    name: str
    flags: int
    hardware: bytes = b""

    @property
    def answers_arp(self) -> bool:
        """Whether neighbours can ask for an address here."""
        return not self.flags & (IFF_LOOPBACK | IFF_NOARP)


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets go: `kind` is an RTN_*, `index` of the interface, `gateway` packed, b"" for a neighbour."""

    kind: int
    index: int
    gateway: bytes = b""


def _family(address: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):  # Ends: `at` grows by 4 or more.
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, number of the request, body) of each message."""
    at = 0
    while at + _HEADER.size <= len(data):  # Ends: `at` grows by 16 or more.
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, number, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def open_socket() -> socket.socket:
    """A socket for exchanges with the kernel; what must not fail for want of a descriptor keeps one. Raises OSError."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    opened.settimeout(_TIMEOUT_S)
    return opened


def _exchange(kind: int, flags: int, body: bytes, kept: socket.socket | None = None) -> list[bytes]:
    """One request, and the bodies of what the kernel answers. Raises OSError."""
    number = next(_numbers) & 0xFFFFFFFF
    found: list[bytes] = []
    with contextlib.nullcontext(kept) if kept is not None else open_socket() as asking:
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, number, 0) + body)
        # Ends: the kernel closes a dump and answers a request; one that says nothing for a second is an error.
        while True:
            for answer, about, content in _messages(asking.recv(_RECEIVE_BYTES)):
                if about != number:
                    continue  # the answer to an earlier request, that was late
                if answer == _DONE:
                    return found
                if answer == _ERROR:
                    (code,) = _CODE.unpack_from(content)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                found.append(content)
            if found and not flags & (_DUMP | _ACK):
                return found


def addresses(family: int = socket.AF_INET, kept: socket.socket | None = None) -> list[Address]:
    """All addresses of this host. Raises OSError."""
    found = []
    for body in _exchange(_GET_ADDR, _DUMP, _ADDR.pack(family, 0, 0, 0, 0), kept):
        with contextlib.suppress(error):
            _, prefix_bits, _, scope, index = _ADDR.unpack_from(body)
            values = dict(_attributes(body[_ADDR.size :]))
            local = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
            label = values.get(_IFA_LABEL, b"").rstrip(b"\0").decode(errors="replace")
            found.append(Address(index, local, prefix_bits, scope, label))
    return found


def links(kept: socket.socket | None = None) -> dict[int, Link]:
    """All interfaces, by their index. Raises OSError."""
    found = {}
    for body in _exchange(_GET_LINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0), kept):
        with contextlib.suppress(error):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            values = dict(_attributes(body[_LINK.size :]))
            name = values.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
            found[index] = Link(index, name, flags, values.get(_IFLA_ADDRESS, b""))
    return found


def change_address(add: bool, address: Address, kept: socket.socket | None = None) -> None:
    """Add an address, or remove it; no error if there is nothing to do. Needs CAP_NET_ADMIN. Raises OSError."""
    family = _family(address.local)
    body = _ADDR.pack(family, address.prefix_bits, 0, address.scope, address.index)
    body += _attribute(_IFA_LOCAL, address.local) + _attribute(_IFA_ADDRESS, address.local)
    if address.label and family == socket.AF_INET:
        body += _attribute(_IFA_LABEL, address.label.encode() + b"\0")
    try:
        if add:
            _exchange(_NEW_ADDR, _ACK | _CREATE | _EXCL, body, kept)
        else:
            _exchange(_DEL_ADDR, _ACK, body, kept)
    except OSError as problem:
        if problem.errno != (errno.EEXIST if add else errno.EADDRNOTAVAIL):
            raise


def set_up(index: int) -> None:
    """Bring an interface up. Needs CAP_NET_ADMIN. Raises OSError."""
    _exchange(_NEW_LINK, _ACK, _LINK.pack(0, 0, index, IFF_UP, IFF_UP))


def next_hop(destination: bytes, source: bytes) -> tuple[int, bytes] | None:
    """By which interface, and to which neighbour, a packet goes: (index, packed address); None if nowhere."""
    family = _family(destination)
    bits = 8 * len(destination)
    body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
    body += _attribute(_RTA_DST, destination) + _attribute(_RTA_SRC, source)
    try:
        (answer,) = _exchange(_GET_ROUTE, 0, body)
    except (OSError, ValueError):
        return None
    values = dict(_attributes(answer[_ROUTE.size :]))
    if _RTA_OIF not in values:
        return None
    return _U32.unpack(values[_RTA_OIF])[0], values.get(_RTA_GATEWAY, destination)


def rules_from(source: bytes) -> list[int]:
    """The tables of the routing rules that are for what comes from an address, or from a network around it.

    Raises OSError.
    """
    family, found = _family(source), []
    for body in _exchange(_GET_RULE, _DUMP, _RULE.pack(family, 0, 0, 0, 0, 0, 0)):
        with contextlib.suppress(error):
            _, _, bits, _, table, _, _ = _RULE.unpack_from(body)
            values = dict(_attributes(body[_RULE.size :]))
            whose, shift = values.get(_FRA_SRC, b""), 8 * len(source) - bits
            if bits and int.from_bytes(whose, "big") >> shift == int.from_bytes(source, "big") >> shift:
                found.append(_U32.unpack(values[_FRA_TABLE])[0] if _FRA_TABLE in values else table)
    return found


def neighbours(index: int, family: int = socket.AF_INET) -> dict[bytes, bytes]:
    """The hardware addresses that the kernel knows of its neighbours at an interface. Raises OSError."""
    found = {}
    for body in _exchange(_GET_NEIGH, _DUMP, _NEIGH.pack(family, 0, 0, 0, 0)):
        with contextlib.suppress(error):
            _, at, state, _, _ = _NEIGH.unpack_from(body)
            values = dict(_attributes(body[_NEIGH.size :]))
            if at == index and state & NUD_USABLE and values.get(_NDA_LLADDR):
                found[values[_NDA_DST]] = values[_NDA_LLADDR]
    return found


def resolve(index: int, address: bytes) -> None:
    """Have the kernel find a neighbour's hardware address as if it had a packet for it. Needs CAP_NET_ADMIN.

    Raises OSError.
    """
    body = _NEIGH.pack(_family(address), index, 0, _NTF_USE, 0) + _attribute(_NDA_DST, address)
    _exchange(_NEW_NEIGH, _ACK | _CREATE, body)


def egress_filters(index: int) -> list[bytes]:
    """The filters of traffic control that an interface has at its egress (clsact), as the kernel shows them: a classic
    BPF program is in there as it was given. Raises OSError."""
    return _exchange(_GET_FILTER, _DUMP, _FILTER.pack(0, index, 0, _EGRESS, 0))


class Questions:
    """A socket that is opened once: what is asked while a host is in trouble must not need another descriptor.

    Addresses are packed. All of it raises OSError, with the kernel's reason.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
        self._socket.settimeout(_QUESTION_S)
        self._number = 0

    def route(
        self, destination: bytes, source: bytes = b"", mark: int = 0, ports: tuple[int, int] | None = None
    ) -> Route:
        """Where packets for `destination` would go, sent from `source`; TCP's, with these `ports` (source and
        destination), if rules go by them; with `mark`, if rules go by that."""
        bits = 8 * len(destination)
        body = _ROUTE.pack(_family(destination), bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
        body += _attribute(_RTA_DST, destination)
        if source:
            body += _attribute(_RTA_SRC, source)
        if mark:
            body += _attribute(_RTA_MARK, _U32.pack(mark))
        if ports is not None:
            body += _attribute(_RTA_IP_PROTO, bytes((socket.IPPROTO_TCP,)))
            body += _attribute(_RTA_SPORT, ports[0].to_bytes(2, "big"))
            body += _attribute(_RTA_DPORT, ports[1].to_bytes(2, "big"))
        answer = self._ask(_GET_ROUTE, body)
        values = dict(_attributes(answer[_ROUTE.size :]))
        kind = _ROUTE.unpack_from(answer)[7]
        gateway = values.get(_RTA_GATEWAY) or values.get(_RTA_VIA, b"")[2:]  # RTA_VIA: of another family
        return Route(kind, _U32.unpack(values.get(_RTA_OIF, bytes(4)))[0], gateway)

    def neighbour(self, index: int, address: bytes) -> int:
        """The state (NUD_*) of a neighbour's entry; 0 if there is none. Before Linux 5.0 the kernel can't be asked."""
        body = _NEIGH.pack(_family(address), index, 0, 0, 0) + _attribute(_NDA_DST, address)
        try:
            answer = self._ask(_GET_NEIGH, body)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                return 0
            raise
        return int(_NEIGH.unpack_from(answer)[2])

    def _ask(self, kind: int, body: bytes) -> bytes:
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, self._number, 0) + body)
        # Ends: each turn takes an answer out of the socket, of which the kernel has put in one for each question.
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            try:
                _, answer, _, number, _ = _HEADER.unpack_from(data)
                if number != self._number:
                    continue  # to a question whose answer nobody has waited for
                if answer == _ERROR:
                    (code,) = _CODE.unpack_from(data, _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
            except error:
                raise OSError(errno.EBADMSG, "the kernel's answer makes no sense") from None
            return data[_HEADER.size :]

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()


def know(index: int, address: bytes, hardware: bytes) -> None:
    """Have the kernel know a neighbour, unverified: it asks that neighbour itself once it has used the entry.

    What it knows already stays. Needs CAP_NET_ADMIN. Raises OSError.
    """
    body = _NEIGH.pack(_family(address), index, _NUD_STALE, 0, 0)
    body += _attribute(_NDA_DST, address) + _attribute(_NDA_LLADDR, hardware)
    _exchange(_NEW_NEIGH, _ACK | _CREATE | _REPLACE, body)


class Changes:
    """The kernel's word that something of this host has changed: by default an address or an interface."""

    def __init__(self, groups: int = GROUP_LINK | GROUP_IPV4_ADDR) -> None:
        """`groups`: GROUP_*. Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """The descriptor, readable when something has changed."""
        return self._socket.fileno()

    def read(self) -> bool:
        """Returns whether something has changed since the last call; what, the kernel's tables say."""
        changed = False
        for _ in range(256):
            try:
                self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno not in (errno.ENOBUFS, errno.EINTR):  # told once: some have been lost
                    raise
            changed = True
        return changed

    def close(self) -> None:
        """Close the socket. Can be repeated."""
        self._socket.close()
