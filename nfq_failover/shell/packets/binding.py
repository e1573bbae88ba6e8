"""Who makes a netfilter queue: the NetfilterQueue library where it is installed, otherwise a message of our own.

Only the queue's socket is wanted of either. The library's receive path hands over at most 4016 bytes and knows no queue
flags, so `nfqueue` speaks nfnetlink on the socket that the library has bound (same netlink port, which is what the
kernel checks). A host whose distribution has no package of the library needs no compiler: it loses nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nfq_failover.errors import InternalError
from nfq_failover.shell.packets import netlink as nl

try:
    import netfilterqueue as library
except ImportError:
    library = None  # type: ignore[assignment]

_ANSWER_BYTES: Final = 4096  # an NLMSG_ERROR repeats the request, and that is short


@dataclass(frozen=True, slots=True)
class BoundQueue:
    """A queue that gives no packets yet (NFQNL_COPY_NONE), and the netlink socket that it is bound to."""

    socket: socket.socket
    _close: Callable[[], None]

    def close(self) -> None:
        """Close the socket; a queue that is still there goes with it. What is unread must have been read before."""
        self.socket.close()
        self._close()


def bind(number: int, max_len: int, rcvbuf: int) -> BoundQueue:
    """Make the queue: room for `max_len` packets, and `rcvbuf` bytes of them in the socket. Raises OSError: another one
    has it, we may not, or the kernel has no such thing."""
    return _by_message(number) if library is None else _by_library(number, max_len, rcvbuf)


def _by_library(number: int, max_len: int, rcvbuf: int) -> BoundQueue:
    queue = library.NetfilterQueue()
    queue.bind(number, _no_callback, max_len=max_len, mode=0, sock_len=rcvbuf)
    return BoundQueue(socket.socket(fileno=os.dup(queue.get_fd())), queue.unbind)


def _by_message(number: int) -> BoundQueue:
    """The kernel's defaults for the rest: `nfqueue` sets it anyway."""
    bound = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nl.NETLINK_NETFILTER)
    try:
        bound.bind((0, 0))
        ask(bound, nl.config_bind(number, sequence=1), 1)
    except OSError:
        bound.close()
        raise
    return BoundQueue(bound, _nothing_more)


def ask(bound: socket.socket, request: bytes, sequence: int) -> None:
    """Send a request on a queue's socket that gives no packets yet, and read the answer, which is there when send
    returns. Raises OSError: the kernel's refusal."""
    bound.send(request)
    # Ends: nothing is queued yet: what is not there raises.
    while True:
        answer = bound.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
        if nl.message_header(answer, 0)[1] != nl.NLMSG_ERROR:
            continue
        code, answered = nl.error_answer(answer, 0)
        if answered == sequence:
            if code:
                raise OSError(code, os.strerror(code))
            return


def _nothing_more() -> None:
    """The socket was all."""


def _no_callback(packet: object) -> None:
    raise InternalError("the library's own receive path is not used")
