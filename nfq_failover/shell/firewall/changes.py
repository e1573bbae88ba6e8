"""The kernel says when somebody has changed the firewall's rules, so that ours need not be looked at all the time.

nftables tells of each change, also of those by iptables-nft (linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES). The legacy
tables tell nothing: there the periodic check has to do.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Final

import structlog

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_READ_BYTES: Final = 1 << 16
_READS: Final = 64  # at one look; what is left then says the same

log = structlog.get_logger()


class RuleChanges:
    """Listens in the network namespace in which it was made."""

    def __init__(self) -> None:
        """A kernel that can't say anything is no error: then nothing ever comes."""
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self.close()
            log.info("the kernel does not say when firewall rules change", why=str(error))

    def fileno(self) -> int | None:
        """What is readable when something has changed; None if nothing will ever be said."""
        return None if self._socket is None else self._socket.fileno()

    def came(self) -> bool:
        """Whether anything has changed since the last call."""
        if self._socket is None:
            return False
        found = False
        for _ in range(_READS):
            try:
                self._socket.recv(_READ_BYTES)
            except OSError as error:
                # ENOBUFS: there was more than the socket could keep.
                return found or error.errno == errno.ENOBUFS
            found = True
        return found

    def close(self) -> None:
        """Listen no more. Can be repeated."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None
