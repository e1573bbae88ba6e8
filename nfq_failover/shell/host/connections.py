"""Which connections the kernel has.

Each is looked up by itself (linux/inet_diag.h, a request that is no dump): that is exact, while a walk through all
sockets may miss one that moves meanwhile, and its cost does not grow with the host's other sockets. IPv4 connections of
an application that listens on `::` are found too.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import Enum
from itertools import islice
from struct import Struct
from typing import Final

from nfq_failover.errors import CommandError
from nfq_failover.wire.segment import FlowKey

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_TCP_ESTABLISHED: Final = 1  # include/net/tcp_states.h
_TCP_SYN_RECV: Final = 3
_TCP_CLOSE_WAIT: Final = 8
_TCP_LISTEN: Final = 10
_TCP_NEW_SYN_RECV: Final = 12
_ALL_STATES: Final = 0xFFFFFFFF
_NO_COOKIE: Final = 0xFFFFFFFF
# nlmsghdr; inet_diag_req_v2: family, protocol, extensions, padding, states; inet_diag_sockid: our port, their port,
# our address, their address (16 bytes each), interface, cookie.
_REQUEST = Struct("=IHHII BBBxI 2s2s16s16sIII")
_HEADER = Struct("=IHHII")
_ERROR = Struct("=i")
_INODE = Struct("=I")
_INODE_AT: Final = 68  # inet_diag_msg: four bytes, inet_diag_sockid (48), expires, rqueue, wqueue, uid; inode
_BATCH: Final = 64  # about a millisecond
_ANSWER_BYTES: Final = 4096


def gone(flows: list[FlowKey]) -> list[FlowKey]:
    """Those of `flows` that the kernel has no socket for (TIME_WAIT and half-open ones count as sockets).

    Raises OSError if the kernel can't be asked (no module tcp_diag).
    """
    missing: list[FlowKey] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        for start in range(0, len(flows), _BATCH):
            batch = flows[start : start + _BATCH]
            diag.send(b"".join(_request(flow, number) for number, flow in enumerate(batch)))
            # Every request has had its answer when send returns; the answers come in their order.
            missing += [flow for number, flow in enumerate(batch) if not _exists(diag, number)]
    return missing


class Peered(Enum):
    """What the kernel has of one end of a connection."""

    NONE = "no socket"
    OPENING = "half open, or waiting for data before it is shown to the application"
    QUEUED = "waits to be accepted"
    ACCEPTED = "the application has it, or has closed it already"


def peered(flow: FlowKey) -> Peered:
    """The server's end of a connection of this host. Raises OSError as `gone` does."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.send(_request(flow, 0))
        answer = diag.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
    if not _is_there(answer, 0):
        return Peered.NONE
    state = answer[_HEADER.size + 1]
    if state in (_TCP_SYN_RECV, _TCP_NEW_SYN_RECV):
        return Peered.OPENING
    (inode,) = _INODE.unpack_from(answer, _HEADER.size + _INODE_AT)
    # An inode belongs to what the application has accepted; in the other states the connection is about to end.
    return Peered.QUEUED if state in (_TCP_ESTABLISHED, _TCP_CLOSE_WAIT) and not inode else Peered.ACCEPTED


def _request(flow: FlowKey, number: int) -> bytes:
    client, client_port, server, server_port = flow
    return _REQUEST.pack(
        *(_REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, number, 0),
        *(socket.AF_INET if len(server) == 4 else socket.AF_INET6, socket.IPPROTO_TCP, 0, _ALL_STATES),
        *(server_port.to_bytes(2, "big"), client_port.to_bytes(2, "big"), server, client),
        *(0, _NO_COOKIE, _NO_COOKIE),
    )


def _exists(diag: socket.socket, number: int) -> bool:
    return _is_there(diag.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT), number)


def _is_there(answer: bytes, number: int) -> bool:
    _, kind, _, sequence, _ = _HEADER.unpack_from(answer)
    if sequence != number:
        raise OSError(errno.EPROTO, "an answer to another question")
    if kind == _NLMSG_ERROR:
        (code,) = _ERROR.unpack_from(answer, _HEADER.size)
        if code != -errno.ENOENT:
            raise OSError(-code, os.strerror(-code))
        return False
    # Without a connection the kernel shows the listener.
    state: int = answer[_HEADER.size + 1]
    return state != _TCP_LISTEN


class FlowQueries:
    """Questions answered a little at a time, so that thousands of connections do not keep packets waiting."""

    def __init__(self) -> None:
        self._asked: dict[FlowKey, None] = {}

    def check(self) -> None:
        """See whether the kernel answers at all. Raises `CommandError`."""
        try:
            gone([(b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 1)])
        except OSError as error:
            raise CommandError(
                f"the kernel can't be asked for its connections ({error}): load the module tcp_diag"
            ) from None

    def ask(self, flows: list[FlowKey]) -> None:
        """Remember these; one that still waits for its turn keeps its place."""
        self._asked.update(dict.fromkeys(flows))

    def step(self) -> list[FlowKey]:
        """Look up the next few; returns those that are gone. Raises OSError as `gone` does."""
        if not self._asked:
            return []
        batch = list(islice(self._asked, _BATCH))
        for flow in batch:
            del self._asked[flow]
        return gone(batch)
