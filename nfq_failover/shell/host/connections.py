"""Which connections the kernel has (linux/inet_diag.h).

`FlowQueries` looks known connections up, one by one: that is exact, whereas a walk through all sockets may miss one
that moves in the meantime, and its cost does not grow with the host's other sockets. `FlowList` walks through all
sockets at the service's ports, to find the connections that nobody knows. Both do a little at a time, and both find the
IPv4 connections of an application that listens on `::`.

A socket that is bound to an interface (SO_BINDTODEVICE, or its listener was) is found by that interface alone, one that
is not bound by any. A look-up names one interface, so a connection that is not found by one is looked up by the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import islice
from struct import Struct
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.wire.segment import FlowKey

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 0x001
_NLM_F_DUMP: Final = 0x300
_TCP_ESTABLISHED: Final = 1  # include/net/tcp_states.h
_TCP_SYN_RECV: Final = 3
_TCP_TIME_WAIT: Final = 6
_TCP_CLOSE_WAIT: Final = 8
_TCP_LAST_ACK: Final = 9
_TCP_LISTEN: Final = 10
_TCP_CLOSING: Final = 11
_TCP_NEW_SYN_RECV: Final = 12
_ALL_STATES: Final = 0xFFFFFFFF
_OPEN_STATES: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11  # ESTABLISHED to CLOSING, RFC 9293
_ENDED_STATES: Final = frozenset((_TCP_TIME_WAIT, _TCP_LAST_ACK, _TCP_CLOSING))  # both ends have sent their FIN
_NO_COOKIE: Final = 0xFFFFFFFF
# nlmsghdr; inet_diag_req_v2: family, protocol, extensions, padding, states; inet_diag_sockid: our port, their port,
# our address, their address (16 bytes each), interface, cookie.
_REQUEST = Struct("=IHHII BBBxI 2s2s16s16sIII")
_DUMP = Struct("=IHHII BBBxI 48s")  # the same without a connection
_HEADER = Struct("=IHHII")
_ERROR = Struct("=i")
_INODE = Struct("=I")
_INODE_AT: Final = 68  # inet_diag_msg: four bytes, inet_diag_sockid (48), expires, rqueue, wqueue, uid; inode
_SOCKET = Struct("!4x2s2s16s16s")  # the beginning of inet_diag_msg: our port and theirs, our address and theirs
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)  # a listener on `::` has IPv4 connections of the second kind
_BATCH: Final = 64  # about a millisecond
_LO: Final = 1  # lo's index in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h)
_AT_A_TIME: Final = 256  # look-ups by other interfaces, also about a millisecond
_FEW: Final = 64  # interfaces that can all be asked for
_INDICES_S: Final = 1.0
_ANSWER_BYTES: Final = 4096
_DUMP_BYTES: Final = 1 << 16


def look_up(flows: list[FlowKey], interface: int = 0) -> tuple[list[FlowKey], list[FlowKey]]:
    """Returns those of `flows` that the kernel has no socket for (TIME_WAIT and half-open ones count as sockets), and
    those whose socket is there only because of what the other end may not know: both have ended.

    `interface`: sockets that are bound to the interface with this index are found, and those that are not bound.
    Raises OSError if the kernel can't be asked (no module tcp_diag).
    """
    missing: list[FlowKey] = []
    ended: list[FlowKey] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        for start in range(0, len(flows), _BATCH):
            batch = flows[start : start + _BATCH]
            diag.send(b"".join(_request(flow, number, interface) for number, flow in enumerate(batch)))
            # Every request has had its answer when send returns; the answers come in their order.
            for number, flow in enumerate(batch):
                state = _state(diag.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT), number)
                if state is None:
                    missing.append(flow)
                elif state in _ENDED_STATES:
                    ended.append(flow)
    return missing, ended


class Peered(Enum):
    """What the kernel has of one end of a connection."""

    NONE = "no socket"
    OPENING = "half open, or waiting for data before it is shown to the application"
    QUEUED = "waits to be accepted"
    ACCEPTED = "the application has it, or has closed it already"


def peered(flow: FlowKey) -> Peered:
    """Returns what the kernel has of the server's end of a connection that this host has with itself, over lo. Raises
    OSError as `look_up` does."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.send(_request(flow, 0, _LO))
        answer = diag.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
    state = _state(answer, 0)
    if state is None:
        return Peered.NONE
    if state in (_TCP_SYN_RECV, _TCP_NEW_SYN_RECV):
        return Peered.OPENING
    (inode,) = _INODE.unpack_from(answer, _HEADER.size + _INODE_AT)
    # An inode belongs to what the application has accepted; in the other states the connection is about to end.
    return Peered.QUEUED if state in (_TCP_ESTABLISHED, _TCP_CLOSE_WAIT) and not inode else Peered.ACCEPTED


def _request(flow: FlowKey, number: int, interface: int = 0) -> bytes:
    client, client_port, server, server_port = flow
    return _REQUEST.pack(
        *(_REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, number, 0),
        *(socket.AF_INET if len(server) == 4 else socket.AF_INET6, socket.IPPROTO_TCP, 0, _ALL_STATES),
        *(server_port.to_bytes(2, "big"), client_port.to_bytes(2, "big"), server, client),
        *(interface, _NO_COOKIE, _NO_COOKIE),
    )


def _state(answer: bytes, number: int) -> int | None:
    """The state of the connection that was asked for; None if there is none."""
    _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
    if sequence != number:
        raise OSError(errno.EPROTO, "an answer to another question")
    if kind == _NLMSG_ERROR:
        (code,) = _ERROR.unpack_from(answer, _HEADER.size)
        if code != -errno.ENOENT:
            raise OSError(-code, os.strerror(-code))
        return None
    # Without a connection the kernel shows the listener.
    state: int = answer[_HEADER.size + 1]
    return None if state == _TCP_LISTEN else state


class FlowQueries:
    """Questions answered a little at a time, so that thousands of connections do not keep packets waiting."""

    def __init__(self, interface: str, bound: Callable[[], Iterable[int]] = tuple) -> None:
        """`interface`: the one that clients come by. `bound`: the indices of those that the application's listening
        sockets are bound to."""
        self._interfaces = Interfaces(interface, bound)
        self._asked: dict[FlowKey, None] = {}
        self._doubtful: dict[FlowKey, None] = {}  # not there, unless they are bound to another interface

    def check(self) -> None:
        """Check that the kernel answers at all. Raises `CommandError`."""
        try:
            look_up([(b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 1)])
        except OSError as error:
            raise CommandError(
                f"the kernel can't be asked for its connections ({error}): load the module tcp_diag"
            ) from None

    def ask(self, flows: list[FlowKey]) -> None:
        """Put these in the queue; one that still waits for its turn keeps its place."""
        self._asked.update(dict.fromkeys(flows))

    def step(self) -> tuple[list[FlowKey], list[FlowKey]]:
        """Look up the next few. Returns and raises what `look_up` does."""
        if not self._asked and not self._doubtful:
            return [], []
        first, *others = self._interfaces.indices()
        missing, ended = look_up(_taken(self._asked, _BATCH), first)
        if not others:
            return missing, ended
        self._doubtful.update(dict.fromkeys(missing))
        missing = _taken(self._doubtful, max(_AT_A_TIME // len(others), 1))
        for index in others:
            missing, its = look_up(missing, index)
            ended += its
        return missing, ended


def _taken(waiting: dict[FlowKey, None], most: int) -> list[FlowKey]:
    """Take the first ones out."""
    taken = list(islice(waiting, most))
    for flow in taken:
        del waiting[flow]
    return taken


class Interfaces:
    """The interfaces to which a connection's socket may be bound, by index: the one that clients come by, lo for
    replicas, those of the listening sockets, now or earlier, and, on a host with no more than some, all others."""

    def __init__(self, name: str, bound: Callable[[], Iterable[int]]) -> None:
        """`name`: the one that clients come by."""
        self._name = name
        self._bound = bound
        self._learnt: dict[int, None] = {}
        self._found: list[int] = []
        self._until = 0.0

    def indices(self) -> list[int]:
        """Returns them, the most likely one first; 0 for one that is not there now."""
        self._learnt.update(dict.fromkeys(self._bound()))
        if time.monotonic() >= self._until:
            self._until = time.monotonic() + _INDICES_S
            self._found = self._look()
        return list(dict.fromkeys([*self._found[:2], *self._learnt, *self._found[2:]]))

    def _look(self) -> list[int]:
        there = {name: index for index, name in socket.if_nameindex()}
        others = list(there.values()) if len(there) <= _FEW else []
        return [there.get(self._name, 0), _LO, *others]


class FlowList:
    """One walk at a time. `step` reads some, and returns the list at the end."""

    def __init__(self, service: bytes, serves: Callable[[int], bool]) -> None:
        self._service = service
        self._serves = serves
        self._socket: socket.socket | None = None
        self._families: list[int] = []
        self._found: list[FlowKey] = []

    def start(self) -> None:
        """Begin a walk; one that is under way begins anew. Raises OSError."""
        self.close()
        self._found, self._families = [], list(_FAMILIES)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._ask()

    def _ask(self) -> None:
        assert self._socket is not None
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        request = _DUMP.pack(
            *(_REQUEST.size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0),
            *(self._families.pop(0), socket.IPPROTO_TCP, 0, _OPEN_STATES, b""),
        )
        self._socket.send(request)

    def step(self) -> list[FlowKey] | None:
        """Read some more. Returns the list when it is complete. Raises OSError, which ends the walk."""
        if self._socket is None:
            return None
        try:
            data = self._socket.recv(_DUMP_BYTES, socket.MSG_DONTWAIT)
            if not self._take(data):
                return None
            if self._families:
                self._ask()
                return None
        except OSError:
            self.close()
            raise
        self.close()
        return self._found

    def _take(self, data: bytes) -> bool:
        """Returns True at the end of a family."""
        at = 0
        # Ends: a message takes at least its header.
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return True
            if length < _HEADER.size:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
            if kind == _NLMSG_ERROR:
                code = -int.from_bytes(data[at + 16 : at + 20], "little", signed=True)
                raise OSError(code, os.strerror(code))
            self._note(*_SOCKET.unpack_from(data, at + _HEADER.size))
            at += (length + 3) & ~3
        return False

    def _note(self, our_port: bytes, their_port: bytes, ours: bytes, theirs: bytes) -> None:
        if ours.startswith(_MAPPED) and theirs.startswith(_MAPPED):
            ours, theirs = ours[12:], theirs[12:]
        size = len(self._service)
        port = int.from_bytes(our_port, "big")
        if ours[:size] == self._service and self._serves(port):
            self._found.append((theirs[:size], int.from_bytes(their_port, "big"), self._service, port))

    def close(self) -> None:
        """Give up a walk. Can be repeated."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
