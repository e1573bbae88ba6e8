"""The sync channel's sockets: one port, and heartbeats in a queue of their own.

A peer that sends more than we can read at once must not look dead because its heartbeats wait behind its records. So
two sockets share the port (SO_REUSEPORT), and a program in the kernel picks one of them by the kind of datagram.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Final

from nfq_failover.constants import DEFAULT_SYNC_BUFFER
from nfq_failover.errors import CommandError
from nfq_failover.shell.packets.bpf import SO_ATTACH_REUSEPORT_CBPF, Instruction, Line, Op, assemble, attach
from nfq_failover.wire.datagram import Kind

HEARTBEAT_BUFFER: Final = 1 << 18
_SO_RCVBUFFORCE: Final = 33
_CS6: Final = 48 << 2  # network control, RFC 4594 section 3.2
_INTERACTIVE: Final = 6  # TC_PRIO_INTERACTIVE, linux/pkt_sched.h: the highest that takes no capability
_KIND_AT: Final = 1  # in the header, see wire/datagram.py
_KIND_BITS: Final = 0x7F
_RECORDS_SOCKET, _HEARTBEAT_SOCKET = 0, 1  # in the order of their bind()


@dataclass(frozen=True, slots=True)
class SyncSockets:
    """`records` receives all but heartbeats, and sends them; `heartbeats` is None where the kernel can't separate them
    (before Linux 4.5): they then wait among the records, in both directions."""

    records: socket.socket
    heartbeats: socket.socket | None

    @property
    def both(self) -> tuple[socket.socket, ...]:
        """The sockets, in the order in which they are to be read."""
        return (self.records,) if self.heartbeats is None else (self.heartbeats, self.records)

    @property
    def for_heartbeats(self) -> socket.socket:
        """The socket that heartbeats are sent from."""
        return self.records if self.heartbeats is None else self.heartbeats

    def close(self) -> None:
        """Close both."""
        for each in self.both:
            each.close()


def open_sync(listen: tuple[str, int], buffer_bytes: int = DEFAULT_SYNC_BUFFER) -> SyncSockets:
    """Open the sockets of the sync channel. Raises `CommandError`, also if another process has the port."""
    records = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        records.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        records.setblocking(False)
        records.bind(listen)  # alone: SO_REUSEPORT comes later
    except OSError as error:
        records.close()
        host, port = listen
        raise CommandError(f"can't listen on {host}:{port} ({error.strerror}): check 'listen'") from None
    return SyncSockets(records, _heartbeat_socket(records))


def _heartbeat_socket(records: socket.socket) -> socket.socket | None:
    with contextlib.ExitStack() as undo, contextlib.suppress(OSError):
        records.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        heartbeats = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        heartbeats.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, HEARTBEAT_BUFFER)
        heartbeats.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        heartbeats.setblocking(False)
        # Before the bulk in a queue that has bands (pfifo_fast, prio, fq), here or at a switch that looks at the class.
        heartbeats.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CS6)
        heartbeats.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _INTERACTIVE)  # after it: IP_TOS sets one, too
        program: list[Line] = [
            Instruction(Op.LOAD_BYTE, _KIND_AT),  # beyond the end of a datagram: the program ends, as with 0
            Instruction(Op.AND, _KIND_BITS),
            Instruction(Op.IF_EQUAL, Kind.HEARTBEAT, yes="heartbeat"),
            Instruction(Op.RETURN, _RECORDS_SOCKET),
            "heartbeat",
            Instruction(Op.RETURN, _HEARTBEAT_SOCKET),
        ]
        heartbeats.bind(records.getsockname())  # makes the group: `records` is the first in it
        attach(records, assemble(program), SO_ATTACH_REUSEPORT_CBPF)
        undo.pop_all()
        return heartbeats
    return None
