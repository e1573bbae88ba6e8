"""A client's TCP by hand, over a raw socket: for what no kernel would send. Slow, polite, and good for a few bytes.

The client's own kernel knows nothing of the connection and would reset it, so its RSTs to the port are dropped.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nfq_failover.constants import ACK, FIN, PSH, SYN
from nfq_failover.lab import netns
from nfq_failover.lab.topology import TWO_HOSTS
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff

_HERE: Final = socket.inet_aton(TWO_HOSTS.address(TWO_HOSTS.client))
_THERE: Final = socket.inet_aton(TWO_HOSTS.service)
_REPEAT_S: Final = 0.3
_WINDOW: Final = 8000


class RawClient:
    """One connection: `open`, `send`, `receive`. Sends one segment at a time, again until it is acknowledged."""

    def __init__(self, inside: str, source_port: int, port: int) -> None:
        with netns.entered(inside):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._incoming = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._ports = (source_port, port)
        self._next = 0xFFFF_FF00  # ours wrap soon
        self._acked = self._next
        self._expected = 0
        self._received = b""
        self.syn_ack: Segment | None = None
        self.options = b""  # of all segments but the SYN

    @property
    def expected(self) -> int:
        """The SEQ of the next byte from the server."""
        return self._expected

    def close(self) -> None:
        """Give the sockets back; the connection is left as it is."""
        self._socket.close()
        self._incoming.close()

    def _emit(self, seq: int, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        here, there = (_HERE, self._ports[0]), (_THERE, self._ports[1])
        options = options if flags & SYN else self.options
        self._socket.sendto(
            build_segment(here, there, seq, self._expected if flags & ACK else 0, flags, _WINDOW, options, data),
            (TWO_HOSTS.service, 0),
        )

    def _listen(self, seconds: float) -> None:
        """Take what comes until something has come or the time is over."""
        self._incoming.settimeout(seconds)
        try:
            raw = Segment(bytearray(self._incoming.recv(65536)))
        except TimeoutError:
            return
        if (raw.src, raw.sport, raw.dport) != (_THERE, self._ports[1], self._ports[0]):
            return
        assert not raw.flags & 0x04, f"reset: {raw}"
        if raw.flags & SYN:
            self.syn_ack = raw
            self._expected = raw.seq_end
        elif raw.seq == self._expected:
            self._received += raw.payload()
            self._expected = raw.seq_end
        if raw.flags & ACK and diff(raw.ack, self._acked) > 0:
            self._acked = raw.ack
        if raw.seg_len:
            self._emit(self._next, ACK)

    def _until_acked(self, flags: int, data: bytes = b"", options: bytes = b"", deadline_s: float = 10.0) -> None:
        begin = self._next
        end = (begin + len(data) + bool(flags & (SYN | FIN))) & MASK
        give_up = time.monotonic() + deadline_s
        repeat_at = 0.0
        self._next = end
        while diff(self._acked, end) < 0:
            assert time.monotonic() < give_up, "not acknowledged in time"
            if time.monotonic() >= repeat_at:
                self._emit(begin, flags, data, options)
                repeat_at = time.monotonic() + _REPEAT_S
            self._listen(0.05)

    def open(self, options: bytes) -> Segment:
        """The handshake, with these options; returns the SYN-ACK."""
        self._until_acked(SYN, b"", options)
        assert self.syn_ack is not None
        return self.syn_ack

    def send(self, data: bytes) -> None:
        """Returns when all is acknowledged."""
        for at in range(0, len(data), 500):
            self._until_acked(ACK | PSH, data[at : at + 500])

    def blurt(self, ahead: int, data: bytes) -> None:
        """Send data so many bytes beyond what comes next, once, and wait for nothing."""
        self._emit((self._next + ahead) & MASK, ACK | PSH, data)

    def skip(self, size: int) -> None:
        """So many bytes were blurted out, and need not be sent any more. Returns when they are acknowledged."""
        self._next = (self._next + size) & MASK
        give_up = time.monotonic() + 10
        while diff(self._acked, self._next) < 0:
            assert time.monotonic() < give_up, "not acknowledged in time"
            self._listen(0.05)

    def send_in_fragments(self, data: bytes, size: int = 200) -> None:
        """One segment in IP fragments of `size` bytes (a multiple of 8), last one first, until it is acknowledged."""
        begin, self._next = self._next, (self._next + len(data)) & MASK
        here, there = (_HERE, self._ports[0]), (_THERE, self._ports[1])
        packet = build_segment(here, there, begin, self._expected, ACK | PSH, _WINDOW, b"", data)
        give_up = time.monotonic() + 10
        number = 1
        while diff(self._acked, self._next) < 0:
            assert time.monotonic() < give_up, "not acknowledged in time"
            body, number = packet[20:], number + 1
            for at in reversed(range(0, len(body), size)):
                more = 0x2000 if at + size < len(body) else 0
                header = packet[:2] + struct.pack("!HHH", 20 + len(body[at : at + size]), number, more | at >> 3)
                self._socket.sendto(header + packet[8:20] + body[at : at + size], (TWO_HOSTS.service, 0))
            self._listen(_REPEAT_S)

    def receive(self, size: int, deadline_s: float = 10.0) -> bytes:
        """Exactly so many bytes."""
        give_up = time.monotonic() + deadline_s
        while len(self._received) < size:
            assert time.monotonic() < give_up, f"only {len(self._received)} bytes of {size}"
            self._listen(0.1)
        data, self._received = self._received[:size], self._received[size:]
        return data


@contextmanager
def raw_client(inside: str, source_port: int, port: int) -> Iterator[RawClient]:
    """A raw client whose kernel keeps quiet."""
    table = f"ip raw_client_{source_port}"
    drop = "type filter hook output priority 0 ; "
    rule = f"tcp sport {source_port} tcp flags & rst == rst drop"
    netns.tool(["nft", "-f", "-"], f"table {table} {{ chain out {{ {drop}{rule} ; }} ; }}\n", inside)
    client = RawClient(inside, source_port, port)
    try:
        yield client
    finally:
        client.close()
        netns.tool(["nft", "delete", "table", *table.split()], None, inside)
