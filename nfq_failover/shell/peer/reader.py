"""Reads the sync socket, in turns that a flood can't lengthen, and counts what the kernel dropped there."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from struct import Struct
from typing import Final

from nfq_failover.core.events import DatagramReceived, DatagramsLost, StrangerHeard
from nfq_failover.core.node import Node
from nfq_failover.shell.peer.socket import SyncSockets
from nfq_failover.wire.datagram import is_question

BATCH: Final = 64
BUDGET_S: Final = 0.02  # for the sync sockets in one turn of the loop: records must not keep packets waiting
MAX_REFUSED: Final = 64  # this many refused datagrams end a turn at once: nobody gains time on the loop by garbage
PATIENCE_S: Final = 0.2  # how long timers wait for a sync socket that never becomes empty
RECEIVE_BYTES: Final = 2048  # longer than any valid datagram, so that one too long is seen as such
STRANGER_EVERY_S: Final = 0.05  # so often the node hears what has come from nowhere that it knows
_SO_MEMINFO: Final = 55  # asm-generic/socket.h; not in Python's socket
_MEMINFO = Struct("=9I")
_QUEUED, _LIMIT, _DROPS = 0, 1, 8  # SK_MEMINFO_RMEM_ALLOC, _RCVBUF and _DROPS, linux/sock_diag.h


class SyncReader:
    """The receiving half of the sync channel.

    A datagram from anywhere but a peer's address and port is refused before anything else is looked at; the node
    sees a few of them, since they may tell why a peer is not heard, and some of the questions, which come from any
    port. What the kernel dropped, since the socket's buffer was full, is asked of the socket (the number that
    SO_RXQ_OVFL attaches to datagrams, without waiting for another datagram to bring it).
    """

    def __init__(
        self, sockets: SyncSockets, node: Node, feed: Callable[[DatagramReceived | StrangerHeard, float], None]
    ) -> None:
        self._sockets = sockets
        self._node = node
        self._feed = feed
        self._sessions = {link.source: link.session for link in node.links.all}
        self._reported = 0
        self._next_stranger = self._next_question = 0.0
        self._last_empty = time.monotonic()
        self.patience_s = min(PATIENCE_S, node.settings.detection_ms / 2000)

    def read(self, carry_out: Callable[[], None]) -> bool:
        """Read what is there, heartbeats first. Returns False if the turn was over before everything was read."""
        sessions, clock = self._sessions, time.monotonic
        now = clock()
        limit = now + BUDGET_S
        count = refused = 0
        for each in self._sockets.both:
            receive = each.recvfrom
            # Ends: the time of a turn is limited.
            while now < limit and refused < MAX_REFUSED:
                try:
                    data, source = receive(RECEIVE_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # an ICMP error of an earlier datagram
                    now = clock()
                    continue
                now = clock()
                session = sessions.get(source)
                if session is None or is_question(data):
                    refused += 1
                    self._stranger(source, data, now)
                    continue
                before = session.refused
                self._feed(DatagramReceived(source, data), now)
                refused += session.refused - before
                count += 1
                if count % BATCH == 0:
                    carry_out()
            else:  # the turn is over
                carry_out()
                return False
        if count:
            carry_out()
        self._last_empty = now
        return True

    def _stranger(self, source: tuple[str, int], data: bytes, now: float) -> None:
        """What belongs to no session: the node sees some of it. Garbage does not keep questions from it."""
        if is_question(data):
            if now >= self._next_question:
                self._next_question = now + STRANGER_EVERY_S
                self._feed(StrangerHeard(source, data), now)
            return
        self._node.count("datagram-wrong-source")
        if now >= self._next_stranger:
            self._next_stranger = now + STRANGER_EVERY_S
            self._feed(StrangerHeard(source, data), now)

    def overdue(self, now: float) -> bool:
        """Returns whether timers have waited long enough for the socket to become empty.

        They must not wait for so long that the node takes it for a pause of its host.
        """
        return now - self._last_empty > self.patience_s

    def _memory(self) -> list[tuple[int, ...]]:
        raw = (each.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size) for each in self._sockets.both)
        return [_MEMINFO.unpack(each) for each in raw]

    def lost(self) -> DatagramsLost | None:
        """Returns what the kernel has dropped since the last report, None if nothing."""
        dropped = sum(memory[_DROPS] for memory in self._memory())
        if dropped == self._reported:
            return None
        count, self._reported = (dropped - self._reported) & 0xFFFFFFFF, dropped
        return DatagramsLost(count)

    def gauge(self) -> dict[str, int]:
        """Returns how full the buffers are, how much the one for records can hold, and what was dropped."""
        memory = self._memory()
        queued, dropped = sum(each[_QUEUED] for each in memory), sum(each[_DROPS] for each in memory)
        return {"now": queued, "limit": memory[-1][_LIMIT], "full": dropped}
