"""A recorded conversation: what the client of a captured connection has sent, turn by turn, and what came back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nfq_failover import extras
from nfq_failover.core.tcp.journal import Journal
from nfq_failover.errors import CommandError

UNASKED_S: Final = 1.0
"""A server that speaks after so long a silence was not asked: it has a clock, or hears other clients."""
_MOST: Final = 64 << 20
_FULL: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class Recording:
    """A connection. `turns`: what the client sent each time; the first is empty if the server has begun. `answers`:
    what came after each of them. `end`: "closed" or "reset" by the server, or "open". `pause_s`: the longest pause
    within an answer, and before it. `unasked`: how often the server spoke after a long silence of both. `others`: how
    many more connections to the service begin in the capture.
    """

    turns: tuple[bytes, ...]
    answers: tuple[bytes, ...]
    end: str = "open"
    pause_s: float = 0.0
    unasked: int = 0
    others: int = 0

    @property
    def expected(self) -> tuple[int, ...]:
        """How many bytes each turn was answered with."""
        return tuple(len(answer) for answer in self.answers)

    @property
    def answered(self) -> bytes:
        """All that the server has said."""
        return b"".join(self.answers)


@dataclass(slots=True)
class _Reader:
    """Follows one connection through a capture, packet by packet."""

    client: tuple[str, int]
    irs: int
    asked: Journal = field(default_factory=lambda: Journal(_MOST))
    said: Journal = field(default_factory=lambda: Journal(_MOST))
    iss: int | None = None
    begins: list[tuple[int, int]] = field(default_factory=list)  # where each turn begins in the two streams
    answering: bool = True
    end: str = "open"
    client_ended: bool = False
    last: float = 0.0
    pause_s: float = 0.0
    unasked: int = 0

    def from_client(self, at: float, seq: int, payload: bytes) -> None:
        """A segment of the client's with bytes."""
        before = self.asked.end
        self.asked.insert((seq - self.irs - 1) % _FULL, payload)
        if self.answering and self.asked.end > before:
            self.begins.append((before, self.said.end))
            self.answering = False
        self.last = at

    def from_server(self, at: float, seq: int, payload: bytes, flags: Any) -> None:
        """A segment of the server's; `flags` as scapy has them."""
        if flags.S:
            self.iss = seq
        if flags.F and not self.client_ended:
            self.end = "closed"
        if flags.R:
            self.end = "reset"
        if not payload:
            return
        if self.iss is None:  # the capture has lost the SYN-ACK
            self.iss = (seq - 1) % _FULL
        before = self.said.end
        self.said.insert((seq - self.iss - 1) % _FULL, payload)
        if self.said.end == before:
            return
        if self.last:
            self.pause_s = max(self.pause_s, at - self.last)
            self.unasked += self.answering and at - self.last >= UNASKED_S
        self.answering = True
        self.last = at

    def recording(self, others: int) -> Recording:
        """What has been seen. Raises `CommandError` for a capture with holes."""
        if self.asked.islands or self.said.islands:
            raise CommandError("--recorded: the capture lacks packets of the connection: capture it again")
        if not self.begins:
            raise CommandError("--recorded: the client of the first connection sends nothing")
        begins = self.begins if self.begins[0][1] == 0 else [(0, 0), *self.begins]
        stops = [*begins[1:], (self.asked.end, self.said.end)]
        pairs = list(zip(begins, stops, strict=True))
        turns = tuple(self.asked.read(a, c - a) for (a, _), (c, _) in pairs)
        answers = tuple(self.said.read(b, d - b) for (_, b), (_, d) in pairs)
        return Recording(turns, answers, self.end, self.pause_s, self.unasked, others)


def read(path: Path, service: tuple[str, int]) -> Recording:
    """The first connection to the service that begins in a capture. Raises `CommandError`."""
    extras.need("probe --recorded", ["scapy"])
    from scapy.error import Scapy_Exception
    from scapy.layers.inet import IP, TCP
    from scapy.utils import PcapReader

    reader: _Reader | None = None
    begun: set[tuple[tuple[str, int], int]] = set()
    try:
        with PcapReader(str(path)) as packets:
            for packet in packets:
                if IP not in packet or TCP not in packet:
                    continue
                ip, tcp = packet[IP], packet[TCP]
                source, target = (ip.src, tcp.sport), (ip.dst, tcp.dport)
                size = ip.len - 4 * ip.ihl - 4 * tcp.dataofs if ip.len else len(tcp.payload)
                payload = bytes(tcp.payload)[:size]
                if target == service and tcp.flags.S and not tcp.flags.A:
                    begun.add((source, tcp.seq))
                    reader = reader or _Reader(source, tcp.seq)
                if reader is None or reader.client not in (source, target):
                    continue
                if len(payload) < size:
                    raise CommandError(
                        f"--recorded: {path} has the packets' beginnings only: capture with tcpdump -s 0"
                    )
                if (source, target) == (reader.client, service):
                    if payload:
                        reader.from_client(float(packet.time), tcp.seq, payload)
                    reader.client_ended |= bool(tcp.flags.F or tcp.flags.R)
                elif (source, target) == (service, reader.client):
                    reader.from_server(float(packet.time), tcp.seq, payload, tcp.flags)
    except (OSError, Scapy_Exception) as error:
        raise CommandError(
            f"--recorded: {path} can't be read ({error}): give a capture that tcpdump -w has made"
        ) from None
    if reader is None:
        raise CommandError(f"--recorded: no connection to {service[0]}:{service[1]} begins in {path}")
    return reader.recording(len(begun) - 1)
