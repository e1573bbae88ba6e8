"""Sends the sync channel's datagrams, and notices which of them do not get there.

Our kernel refuses some at once. Of others a host on the way, or the peer, says so by ICMP. A raw socket hears that: on
the datagrams' own socket (IP_RECVERR) every such message would make the next heartbeat fail, and anybody can forge one.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterable
from struct import Struct
from typing import Final

from nfq_failover.core.events import Undelivered

_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h
_UNREACHABLE: Final = 3  # RFC 792
_PORT_UNREACHABLE: Final = 3  # its code
# Codes of RFC 792 and RFC 1122 section 3.2.2.1.
_REASONS: Final = {
    **dict.fromkeys((0, 1, 5, 6, 7, 8, 11, 12), "no-host"),
    _PORT_UNREACHABLE: "nobody-listens",
    **dict.fromkeys((2, 9, 10, 13), "prohibited"),
}
_PORTS = Struct("!HH")
_MOST = 64  # messages that one look takes
_BUFFER = 1 << 14
_PASSING = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EINTR)


class Delivery:
    """Sends from `udp`, which listens at `listen`, to `peers` (address, port). Closes what it opens, not `udp`."""

    def __init__(self, udp: socket.socket, listen: tuple[str, int], peers: Iterable[tuple[str, int]]) -> None:
        self._udp = udp
        self._listen = listen
        self._peers = frozenset(peers)
        self._found: dict[tuple[str, int], Undelivered] = {}
        self._icmp = _icmp_socket()
        self._error = self._news = 0

    def send(self, data: bytes, destination: tuple[str, int]) -> None:
        """Send a datagram. One that can't be sent is lost, as on the way: what matters is repeated."""
        try:
            self._udp.sendto(data, destination)
        except BlockingIOError:
            pass  # the kernel asks in vain where a dead peer is, and keeps what was sent: that is no error of ours
        except OSError as error:
            self._error = self._news = error.errno or 0
            if error.errno not in _PASSING:
                self._found[destination] = Undelivered(destination, error.strerror or str(error), local=True)
        else:
            self._error = 0

    def failing(self) -> int:
        """Returns the number of the error that the latest datagram met, or any since the last call; 0 if all left."""
        number, self._news = self._error or self._news, 0
        return number

    def tick(self) -> list[Undelivered]:
        """Returns what did not get to the peers since the last look, one for each peer."""
        if self._icmp is not None:
            with contextlib.suppress(OSError):
                for _ in range(_MOST):
                    data, (source, _) = self._icmp.recvfrom(2048)
                    found = self._judge(data, source)
                    if found is not None:
                        self._found.setdefault(found.destination, found)
        found_now = list(self._found.values())
        self._found.clear()
        return found_now

    def _judge(self, data: bytes, source: str) -> Undelivered | None:
        """What an ICMP message says about our datagrams; None if it is about something else."""
        icmp = (data[0] & 15) << 2 if data else 0
        quoted = icmp + 8
        if len(data) < quoted + 20 or data[icmp] != _UNREACHABLE:
            return None
        udp = quoted + ((data[quoted] & 15) << 2)
        if data[quoted + 9] != socket.IPPROTO_UDP or len(data) < udp + _PORTS.size:
            return None
        sport, dport = _PORTS.unpack_from(data, udp)
        destination = (socket.inet_ntoa(data[quoted + 16 : quoted + 20]), dport)
        code = data[icmp + 1]
        if destination not in self._peers or sport != self._listen[1] or code not in _REASONS:
            return None
        if code == _PORT_UNREACHABLE and source != destination[0]:
            return None  # only the host itself can say that
        return Undelivered(destination, _REASONS[code])

    def close(self) -> None:
        """Hear no more of it."""
        if self._icmp is not None:
            self._icmp.close()


def _icmp_socket() -> socket.socket | None:
    """A socket that receives "destination unreachable" messages; None without the right to it (CAP_NET_RAW)."""
    with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
        icmp = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        icmp.setblocking(False)
        icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, (~(1 << _UNREACHABLE) & 0xFFFFFFFF).to_bytes(4, sys.byteorder))
        icmp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        undo.pop_all()
        return icmp
    return None
