"""All TCP connections that the kernel has at the service's ports, read a little at a time (linux/inet_diag.h, dump)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final

from nfq_failover.wire.segment import FlowKey

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
# include/net/tcp_states.h: established, FIN-WAIT-1 and -2, CLOSE-WAIT, LAST-ACK, CLOSING
_STATES: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
_REQUEST: Final = Struct("=IHHII BBBxI 48s")
_HEADER: Final = Struct("=IHHII")
_SOCKET: Final = Struct("!4x2s2s16s16s")  # behind the header: ports and addresses, ours first
_MAPPED: Final = bytes(10) + b"\xff\xff"
_RECEIVE_BYTES: Final = 1 << 16
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)  # a listener on `::` has IPv4 connections of the second kind


class FlowList:
    """One walk at a time. `step` reads some, and gives the list at the end."""

    def __init__(self, service: bytes, serves: Callable[[int], bool]) -> None:
        self._service = service
        self._serves = serves
        self._socket: socket.socket | None = None
        self._families: list[int] = []
        self._found: list[FlowKey] = []

    def start(self) -> None:
        """Begin a walk; one under way begins anew. Raises OSError."""
        self.close()
        self._found, self._families = [], list(_FAMILIES)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._ask()

    def _ask(self) -> None:
        assert self._socket is not None
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        request = _REQUEST.pack(
            *(_REQUEST.size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0),
            *(self._families.pop(0), socket.IPPROTO_TCP, 0, _STATES, b""),
        )
        self._socket.send(request)

    def step(self) -> list[FlowKey] | None:
        """Some more; the list when it is complete. Raises OSError, and the walk is over then."""
        if self._socket is None:
            return None
        try:
            data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
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
        """True at the end of a family."""
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return True
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
        """Give up a walk. Repeatable."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
