"""The daemon's handle on the heartbeat sender process."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from nfq_failover.shell.peer.heartbeat_sender import MAX_DESTINATIONS, MEMORY_BYTES, PROGRESS, Account, encode_order

MIN_LIFE_S = 1.0  # a sender that dies younger is not replaced at once, so that a broken one is not started in a loop


class HeartbeatProcess:
    """Starts the sender, tells it what to say, and shows it that the loop makes progress."""

    def __init__(
        self, interval_ms: int, udp: socket.socket, launch: Callable[[Sequence[int]], None] | None = None
    ) -> None:
        """`launch` starts a sender on UDP socket, orders and progress; by default as a child of this process."""
        self._interval_ms = interval_ms
        self._udp = udp
        self._launch = launch or self._launch_child
        self._process: subprocess.Popen[bytes] | None = None
        self._memory = os.memfd_create("nfqf-progress")
        os.ftruncate(self._memory, MEMORY_BYTES)
        self._progress = mmap.mmap(self._memory, mmap.PAGESIZE)
        self._account = Account(self._memory, write=False)
        self._slots: dict[tuple[str, int], int] = {}
        self._seen: dict[tuple[str, int], int] = {}  # when the latest failure was that has been told
        self.progress()
        self._start()

    def _start(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setblocking(False)
        fds = (self._udp.fileno(), theirs.fileno(), self._memory)
        with theirs:
            self._launch(fds)
        self._started = time.monotonic()

    def _launch_child(self, fds: Sequence[int]) -> None:
        command = [sys.executable, "-m", "nfq_failover.shell.peer.heartbeat_sender", str(self._interval_ms)]
        self._process = subprocess.Popen([*command, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL)

    def progress(self) -> None:
        """Note that the packet loop makes progress."""
        PROGRESS.pack_into(self._progress, 0, time.monotonic_ns())

    def publish(self, destination: tuple[str, int], template: bytes) -> None:
        """Change what the heartbeats say."""
        slot = self._slots.setdefault(destination, len(self._slots) % MAX_DESTINATIONS)
        with contextlib.suppress(OSError):  # a full pipe means a stuck sender: the peer will notice
            self._orders.send(encode_order(slot, destination, template))

    def failing(self, destination: tuple[str, int]) -> int:
        """Returns the number of the error with which heartbeats to a peer fail now, or have failed since the last call;
        0 if all of them leave."""
        if destination not in self._slots:
            return 0
        sent, failed, number = self._account.of(self._slots[destination])
        news = failed > self._seen.get(destination, 0)
        self._seen[destination] = failed
        return number if failed > sent or news else 0

    def silent_s(self) -> float:
        """How long the sender's loop has not run."""
        return max(time.monotonic() - max(self._account.beat_at / 1e9, self._started), 0.0)

    def drain(self) -> None:
        """Give the sender a moment to send the last news."""
        time.sleep(min(self._interval_ms, 50) / 1000)

    def died(self) -> bool:
        """Returns whether the sender has ended by itself, and it is time for a new one."""
        if time.monotonic() - self._started < MIN_LIFE_S:
            return False
        try:  # it says nothing, so what there is to read is its end
            return not self._orders.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def restart(self) -> None:
        """Start a new sender; it must be told everything again."""
        self._orders.close()
        if self._process is not None:
            self._process.wait()
        self._start()

    def close(self) -> None:
        """End the sender."""
        self._orders.close()
        if self._process is not None:
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._progress.close()
        self._account.close()
        os.close(self._memory)
