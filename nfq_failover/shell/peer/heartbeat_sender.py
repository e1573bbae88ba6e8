"""The heartbeat sender: a process of its own, so that a busy packet loop does not delay a heartbeat.

It says what the daemon last told it to say (a template over a socketpair), and how long ago the packet loop made
progress (a shared counter), so a hung loop is not a punctual liar. It tells the daemon by the same memory whether its
heartbeats leave this host (`Account`). It ends when the daemon's end of the socketpair is
closed, and not before: signals to the whole group (Ctrl-C, a service manager) must not cut off the daemon's last word.

    python -m nfq_failover.shell.peer.heartbeat_sender INTERVAL_MS UDP_FD TEMPLATE_FD MEMORY_FD [UID GID]

With UID and GID it becomes that user, without any capability, as soon as its scheduling is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

from nfq_failover.errors import MalformedDatagram
from nfq_failover.shell import signals
from nfq_failover.shell.privileged import rights
from nfq_failover.wire.heartbeat import HeartbeatTemplate

PROGRESS = struct.Struct("=Q")
MEMORY_BYTES = 2 * mmap.PAGESIZE  # the daemon's progress, and the sender's account
DESTINATION = struct.Struct("!BB")  # slot in the account, length of the address
MAX_DESTINATIONS = 64
MIN_SPACING_S = 0.002  # between heartbeats sent because the template has changed
REALTIME_PRIORITY = 2  # above ordinary processes, below the kernel's own threads
NICE = -10
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # asm-generic/mman.h


def encode_order(slot: int, destination: tuple[str, int], template: bytes) -> bytes:
    """Returns an order as one message for the sender. `slot`: the destination's own, below `MAX_DESTINATIONS`."""
    address = f"{destination[0]} {destination[1]}".encode()
    return DESTINATION.pack(slot, len(address)) + address + template


def decode_order(order: bytes) -> tuple[int, tuple[str, int], HeartbeatTemplate]:
    """Returns the order in a message of `encode_order`."""
    slot, length = DESTINATION.unpack_from(order)
    stop = DESTINATION.size + length
    host, port = order[DESTINATION.size : stop].decode().split()
    return slot, (host, int(port)), HeartbeatTemplate.decode(order[stop:])


class Account:
    """What the sender says of itself, in shared memory: 8-byte words, each written and read in one go.

    Of each slot: when a heartbeat last left, when one last could not be sent (monotonic nanoseconds), and the number of
    that error.
    """

    def __init__(self, memory: int, write: bool) -> None:
        """`memory`: the descriptor. Raises OSError."""
        prot = mmap.PROT_READ | mmap.PROT_WRITE if write else mmap.PROT_READ
        self._map = mmap.mmap(memory, mmap.PAGESIZE, prot=prot, offset=mmap.PAGESIZE)
        self._words = memoryview(self._map).cast("Q")

    def beats(self, now_ns: int) -> None:
        """The sender's loop runs."""
        self._words[0] = now_ns

    def sent(self, slot: int, now_ns: int) -> None:
        """A heartbeat has left."""
        self._words[1 + 3 * slot] = now_ns

    def failed(self, slot: int, now_ns: int, number: int) -> None:
        """A heartbeat could not be sent."""
        self._words[3 + 3 * slot] = number
        self._words[2 + 3 * slot] = now_ns

    @property
    def beat_at(self) -> int:
        """When the sender's loop last ran."""
        return self._words[0]

    def of(self, slot: int) -> tuple[int, int, int]:
        """Returns (sent, failed, the error's number)."""
        at = 1 + 3 * slot
        return self._words[at], self._words[at + 1], self._words[at + 2]

    def close(self) -> None:
        """Let the memory go."""
        self._words.release()
        self._map.close()


class Sender:
    """Sends punctual heartbeats to every destination that has a template."""

    def __init__(
        self, interval_s: float, udp: socket.socket, orders: socket.socket, progress: mmap.mmap, account: Account
    ) -> None:
        self.interval_s = interval_s
        self.udp = udp
        self.orders = orders
        self.progress = progress
        self.account = account
        self.slots: dict[tuple[str, int], int] = {}
        self.templates: dict[tuple[str, int], HeartbeatTemplate] = {}
        self._counter = 0

    def beat(self, destination: tuple[str, int]) -> None:
        """Send one heartbeat."""
        now = time.monotonic_ns()
        # Microseconds of the monotonic clock: grows over restarts of this process too.
        self._counter = max(self._counter + 1, now // 1000)
        (progress,) = PROGRESS.unpack_from(self.progress)
        age_ms = max(now - progress, 0) // 1_000_000
        datagram = self.templates[destination].datagram(self._counter, now // 1_000_000, age_ms)
        try:
            self.udp.sendto(datagram, socket.MSG_DONTWAIT, destination)
        except BlockingIOError:
            pass  # the kernel asks in vain where a dead peer is, and keeps what was sent: that is no error of ours
        except OSError as error:  # no route, no address, a rule: the next one may get through
            self.account.failed(self.slots[destination], now, error.errno or 0)
        else:
            self.account.sent(self.slots[destination], now)

    def take_orders(self) -> list[tuple[str, int]] | None:
        """Read new templates. Returns the destinations for which there is news, which goes out now; None at the end.

        An echoed clock alone is no news.
        """
        news: list[tuple[str, int]] = []
        # Ends: the daemon writes seldom, and nobody else can.
        while True:
            try:
                order = self.orders.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return news
            except OSError:
                return None
            if not order:
                return None
            try:
                slot, destination, template = decode_order(order)
            except (MalformedDatagram, ValueError, struct.error):
                continue
            self.slots[destination] = slot
            old = self.templates.get(destination)
            self.templates[destination] = template
            if old is None or _news(old) != _news(template):
                news.append(destination)

    def run(self) -> None:
        """Send heartbeats until the daemon is gone."""
        due = time.monotonic()
        last = 0.0
        news: dict[tuple[str, int], None] = {}
        poller = select.poll()
        poller.register(self.orders, select.POLLIN)
        # Ends: with the daemon.
        while True:
            wake = min(due, last + MIN_SPACING_S) if news else due
            if poller.poll(max(wake - time.monotonic(), 0.0) * 1000):
                changed = self.take_orders()
                if changed is None:
                    return
                news.update(dict.fromkeys(changed))
            now = time.monotonic()
            self.account.beats(time.monotonic_ns())
            if now >= due:
                for destination in self.templates:
                    self.beat(destination)
                due = max(due + self.interval_s, now)
            elif news and now >= last + MIN_SPACING_S:
                for destination in news:
                    self.beat(destination)
            else:
                continue
            last = now
            news.clear()


def _news(template: HeartbeatTemplate) -> tuple[object, ...]:
    body = template.body
    said = (body.role, body.state, body.flags, body.generation, body.stored_epoch, body.pact)
    return template.session, template.epoch, *said


def be_punctual() -> None:
    """Be scheduled in real time, or else with a better nice value, and never be paged out, as far as the host permits.

    Without CAP_IPC_LOCK, which is given up later, what is locked in memory must stay within the limit: so the limit is
    lifted first.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(NICE)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    for_good = resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mlockall(_MCL_CURRENT | (_MCL_FUTURE if for_good else 0))


def main(arguments: list[str]) -> None:
    """Entry point of the process."""
    interval_ms, udp, orders, memory, *user = (int(word) for word in arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signals.survive()
    be_punctual()
    if user:
        rights.become(user[0], user[1], rights.NOTHING)
    Sender(
        interval_ms / 1000,
        socket.socket(fileno=udp),
        socket.socket(fileno=orders),
        mmap.mmap(memory, mmap.PAGESIZE, prot=mmap.PROT_READ),
        Account(memory, write=True),
    ).run()


if __name__ == "__main__":
    main(sys.argv[1:])
