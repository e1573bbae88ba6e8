"""A netfilter queue: packets in, verdicts out, neither ever blocking.

`binding` makes the queue and gives us its socket, on which we speak nfnetlink ourselves: whole packets, super-segments
uncut (NFQA_CFG_F_GSO), several verdicts per system call.

An attribute's length has 16 bits, so of a packet of 64 KiB and more (IPv4 BIG TCP; a loopback MTU of 65536) the kernel
can't give us the end. To everybody behind this module such a packet is one that is shorter: the rest is lost, as it
might have been on the wire, and TCP repairs that. From then on the kernel cuts super-segments before it queues them,
for a while: slower, but whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nfq_failover.constants import DEFAULT_QUEUE_BUFFER, DEFAULT_QUEUE_PACKETS
from nfq_failover.core.events import PacketQueued, PacketsWait, Queue, QueueOverrun
from nfq_failover.errors import CommandError, MalformedSegment
from nfq_failover.shell.packets import binding
from nfq_failover.shell.packets import netlink as nl
from nfq_failover.shell.packets.progress import ReadProgress
from nfq_failover.wire.segment import cut_short

log = structlog.get_logger()

_COUNTERS: Final = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
_NETLINK_SOCKETS: Final = Path("/proc/thread-self/net/netlink")
_SOL_SOCKET_SNDBUFFORCE: Final = 32  # SO_SNDBUFFORCE and SO_RCVBUFFORCE, asm-generic/socket.h; not in Python's socket
_SOL_SOCKET_RCVBUFFORCE: Final = 33
_SNDBUF: Final = 2 << 20
# One send: far below the send buffer (EMSGSIZE), below IOV_MAX (1024) parts, and small enough to allocate easily.
_BATCH_BYTES: Final = 256 << 10
_BATCH_PARTS: Final = 512
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EINTR)
_RECEIVE_BYTES: Final = 128 << 10  # one message: 65531 bytes of packet and some 200 bytes of attributes
_KERNEL_COPY_RANGE: Final = 0xFFFF - 4  # NFQNL_MAX_COPY_RANGE
_WHOLE_AGAIN_S: Final = 60.0  # how long the kernel cuts super-segments for us, after one that was too long


class QueueUnavailable(CommandError):
    """The queue can't be bound; the message says who holds it or what is missing, and what to do."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One line of /proc/net/netfilter/nfnetlink_queue."""

    number: int
    port_id: int
    waiting: int
    copy_mode: int
    copy_range: int
    dropped_full: int  # more than max_len packets waited
    dropped_unread: int  # our receive buffer was full
    last_id: int  # the number of the latest packet


def open_counters() -> int:
    """A descriptor of the kernel's table of queues, which only root can open. Raises OSError."""
    try:
        return os.open(_COUNTERS, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the module is not loaded yet: any request makes the kernel do it
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nl.NETLINK_NETFILTER) as s:
            s.send(nl.config_flags(0, 0, sequence=1))
    return os.open(_COUNTERS, os.O_RDONLY | os.O_CLOEXEC)


def queue_row(number: int, counters: int | None = None) -> QueueRow | None:
    """Returns the kernel's row for a queue of this network namespace; None if nobody is bound to it."""
    try:
        lines = (_COUNTERS.read_text() if counters is None else _whole(counters)).splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 8 and words[0] == str(number):
            return QueueRow(*(int(word) for word in words[:8]))
    return None


def _whole(fd: int) -> str:
    parts = []
    at = 0
    # Ends: the file has an end.
    while part := os.pread(fd, 1 << 16, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts).decode()


def _holder(port_id: int) -> str:
    """Names the process behind a netfilter netlink port."""
    inodes = set()
    for line in _NETLINK_SOCKETS.read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == str(nl.NETLINK_NETFILTER) and words[2] == str(port_id):
            inodes.add(f"socket:[{words[-1]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue
    return f"a process that can't be seen from here (netlink port {port_id})"


class PacketQueue:
    """One bound netfilter queue of the current network namespace.

    `read` returns packets, `verdict` collects answers, `flush` sends them. Losses show in two ways: ENOBUFS on the
    socket makes `read` return a `QueueOverrun`, and `overrun` compares the kernel's counters (which also know of
    packets refused because `max_len` of them were waiting). Counters to report: `refused` verdicts (the packet was
    gone, for instance with its device), `unreadable` messages, `send_retries`, `shortened` packets (see the module).
    """

    def __init__(
        self,
        number: int,
        queue: Queue,
        *,
        max_len: int = DEFAULT_QUEUE_PACKETS,
        rcvbuf: int = DEFAULT_QUEUE_BUFFER,
        counters: int | None = None,
        mark: int = 0,
    ) -> None:
        """Bind. `counters`: the file of `open_counters`. `mark`: the one given with verdicts, so that nothing in the
        queue should have it; what has is counted in `marked`. Raises `QueueUnavailable`."""
        self._counters = counters
        self.number = number
        self.queue = queue
        self.max_len = max_len
        self.refused = 0
        self.unreadable = 0
        self.send_retries = 0
        self.marked = 0
        self._mark = mark
        self.shortened = 0
        self._whole_at = 0.0  # from then on super-segments come uncut again; 0: they do
        self._marks: dict[int, int] = {}  # of packets that have one
        self._short: dict[int, bytes] = {}  # packets whose end is lost: as such they go on
        self._pending: list[tuple[int, list[nl.Buffer]]] = []
        self._reported = 0
        self._progress = ReadProgress()
        self._said_until: float | None = None
        self._receive = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._receive)
        try:
            self._bound = binding.bind(number, max_len, rcvbuf)
        except OSError as problem:
            raise QueueUnavailable(self._explain(problem)) from problem
        self._socket = self._bound.socket
        try:
            self._configure(max_len, rcvbuf)
        except OSError as problem:
            self.close()
            raise QueueUnavailable(self._explain(problem)) from problem

    def _explain(self, problem: OSError) -> str:
        row = queue_row(self.number, self._counters)
        if row is not None:
            return (
                f"netfilter queue {self.number} is already bound by {_holder(row.port_id)}: "
                "stop that process or configure another queue number"
            )
        if os.geteuid():
            return f"netfilter queue {self.number} can't be bound ({problem}): run as root (CAP_NET_ADMIN)"
        return f"netfilter queue {self.number} can't be bound ({problem}): is the module nfnetlink_queue loaded?"

    def _configure(self, max_len: int, rcvbuf: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, _SOL_SOCKET_RCVBUFFORCE, rcvbuf)
        self._socket.setsockopt(socket.SOL_SOCKET, _SOL_SOCKET_SNDBUFFORCE, _SNDBUF)
        binding.ask(self._socket, nl.config_flags(self.number, nl.F_GSO, sequence=1), 1)
        binding.ask(self._socket, nl.config_max_len(self.number, max_len, sequence=2), 2)
        # Packets may come from here on, before an answer could be read: so none is asked for, and /proc is looked at.
        self._socket.send(nl.config_copy_packet(self.number))
        row = queue_row(self.number, self._counters)
        if row is None or row.copy_mode != nl.COPY_PACKET or row.copy_range < _KERNEL_COPY_RANGE:
            raise OSError(errno.EPROTO, f"the kernel did not take the configuration: {row}")

    def fileno(self) -> int:
        """The descriptor, readable when there are packets."""
        return self._socket.fileno()

    def read(self, limit: int) -> list[PacketQueued | QueueOverrun]:
        """Returns up to `limit` events, oldest first; fewer mean that there are no more at the moment."""
        events: list[PacketQueued | QueueOverrun] = []
        packet_id: int | None = None
        emptied, began = False, time.monotonic()
        receive, view, queue = self._socket.recv_into, self._view, self.queue
        if self._whole_at and began >= self._whole_at:
            self._take_whole(True)
        for _ in range(limit):
            try:
                size = receive(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                emptied = True
                break
            except OSError as problem:
                if problem.errno == errno.EINTR:
                    continue
                if problem.errno != errno.ENOBUFS:
                    raise
                events.append(self.overrun() or QueueOverrun(queue, 0))
                continue
            length, kind = nl.message_header(view, 0)
            if kind != nl.MSG_PACKET:
                if kind == nl.NLMSG_ERROR and nl.error_answer(view, 0)[0]:
                    self.refused += 1
                continue
            fields = nl.packet_fields(view, 0, min(length, size))
            if fields is None:
                self.unreadable += 1
                continue
            packet_id, mark, info, start, stop, whole = fields
            if mark:
                self._marks[packet_id] = mark
                if mark & self._mark:
                    self.marked += 1
            packet = bytearray(view[start:stop])
            gso = bool(info & nl.SKB_GSO)
            if stop - start != whole:
                self._shorten(packet_id, packet, gso)
            events.append(PacketQueued(queue, packet_id, packet, bool(info & nl.SKB_CSUM_NOT_READY), gso))
        if emptied:
            self._progress.emptied(began)
        elif packet_id is not None:
            self._progress.filled(packet_id, self.last_id)
        return events

    def look(self, empty_at: float | None = None) -> PacketsWait | None:
        """Returns up to when the queue has been read, if that has changed. `empty_at`: nothing was to be read in this
        turn, since that time at the latest."""
        if empty_at is not None:
            self._progress.emptied(empty_at)
        if self._progress.read_until == self._said_until:
            return None
        self._said_until = self._progress.read_until
        return PacketsWait(self.queue, self._said_until)

    def _shorten(self, packet_id: int, packet: bytearray, gso: bool) -> None:
        """The end of a packet is missing: go on as if it were one that is shorter."""
        self.shortened += 1
        with contextlib.suppress(MalformedSegment):  # the node refuses it
            cut_short(packet, gso)
        self._short[packet_id] = bytes(packet)
        if not self._whole_at:
            log.warning(
                "packets above 64 KiB: the kernel cuts them for us now, which costs throughput",
                queue=self.queue.name,
                cure="ip link set dev INTERFACE gso_ipv4_max_size 65536 gro_ipv4_max_size 65536",
            )
        self._take_whole(False)

    def _take_whole(self, whole: bool) -> None:
        """Say whether the kernel is to give us super-segments uncut."""
        try:
            self._socket.send(nl.config_flags(self.number, nl.F_GSO, whole), socket.MSG_DONTWAIT)
        except OSError as problem:
            if problem.errno not in _NO_ROOM:
                raise
            return  # the next packet that is too long, or the next look at the clock, tries again
        self._whole_at = 0.0 if whole else time.monotonic() + _WHOLE_AGAIN_S

    def mark_of(self, packet_id: int) -> int:
        """Returns the mark of a packet that still waits for its verdict."""
        return self._marks.get(packet_id, 0)

    def verdict(
        self, packet_id: int, accept: bool, packet: bytes | bytearray | None = None, mark: int | None = None
    ) -> None:
        """Decide on a packet; takes effect at the next `flush`.

        `mark`: bits to be added to the packet's own mark. `packet`: replaces the packet.
        """
        own = self._marks.pop(packet_id, 0)
        if self._short and (short := self._short.pop(packet_id, None)) is not None and packet is None:
            packet = short
        if not accept:
            parts = nl.verdict(self.number, packet_id, False, None, None)
        else:
            parts = nl.verdict(self.number, packet_id, True, None if mark is None else own | mark, packet)
        self._pending.append((sum(map(len, parts)) if packet is not None else len(parts[0]), parts))

    def withdraw(self) -> int:
        """Drop what was accepted since the last `flush`. Returns how many packets that are."""
        withdrawn = 0
        for place, (_, parts) in enumerate(self._pending):
            if (refusal := nl.refusal(parts)) is not None:
                self._pending[place] = len(refusal), [refusal]
                withdrawn += 1
        return withdrawn

    def flush(self) -> bool:
        """Send the verdicts given so far. Returns False if the kernel had no room: call it again."""
        pending = self._pending
        # Ends: each turn sends at least one, or returns.
        while pending:
            parts: list[nl.Buffer] = []
            size = taken = 0
            for length, message in pending:
                if taken and (size + length > _BATCH_BYTES or len(parts) > _BATCH_PARTS):
                    break
                parts += message
                size += length
                taken += 1
            try:
                self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT)
            except OSError as problem:
                if problem.errno not in _NO_ROOM:
                    raise
                self.send_retries += 1
                return False
            del pending[:taken]
        return True

    def dropped(self) -> int:
        """Returns how many packets the kernel has dropped in this queue, for want of space, since it was bound."""
        row = queue_row(self.number, self._counters)
        return 0 if row is None else row.dropped_full + row.dropped_unread

    def last_id(self) -> int | None:
        """The number of the latest packet that has come to the queue; None if the kernel can't be asked."""
        row = queue_row(self.number, self._counters)
        return None if row is None else row.last_id

    def gauge(self) -> dict[str, int]:
        """Returns how many packets wait, how many may, how late they are read, and how many were dropped, or came
        without their end."""
        row = queue_row(self.number, self._counters)
        waiting, dropped = (0, 0) if row is None else (row.waiting, row.dropped_full + row.dropped_unread)
        return {
            "now": waiting,
            "limit": self.max_len,
            "behind_ms": self._progress.behind_ms,
            "dropped": dropped,
            "verdicts_pending": len(self._pending),
            "shortened": self.shortened,
        }

    def stolen(self) -> str:
        """Returns why the kernel does not give us the queue's packets any more, '' if it does."""
        row = queue_row(self.number, self._counters)
        ours = self._socket.getsockname()[0]
        if row is None:
            return f"netfilter queue {self.number} is not bound any more"
        if row.port_id != ours:
            return f"netfilter queue {self.number} is another's: netlink port {row.port_id}, and not {ours}"
        return ""

    def overrun(self) -> QueueOverrun | None:
        """Returns what has been dropped since the last report, None if nothing."""
        dropped = self.dropped()
        if dropped == self._reported:
            return None
        count, self._reported = dropped - self._reported, dropped
        return QueueOverrun(self.queue, count)

    def close(self) -> None:
        """Send what is pending and unbind; the kernel drops packets without a verdict. Can be repeated."""
        if self._socket.fileno() < 0:
            return
        try:
            self.flush()
            self._socket.send(nl.config_unbind(self.number))
            # Nobody else is to read what is unread (see binding). Ends: nothing is added after the unbinding.
            while True:
                try:
                    self._socket.recv_into(self._view, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError as problem:
                    if problem.errno != errno.ENOBUFS:
                        raise
        finally:
            self._bound.close()
