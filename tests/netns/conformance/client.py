"""Many TCP ends by hand over one raw socket: the client's side of the conformance cases.

Numbers are relative: the client's count from the first byte after the request line, the server's from the first byte
of its answer, so that the same case gives the same transcript on every connection.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Final

from nfq_failover.constants import ACK, FIN, PSH, RST, SYN
from nfq_failover.errors import MalformedSegment
from nfq_failover.lab import netns
from nfq_failover.lab.topology import TWO_HOSTS
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff
from nfq_failover.wire.tcp_options import SynOptions

OWN_PORTS: Final = (20_000, 29_999)
_MARK: Final = 0x77
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_HERE: Final = socket.inet_aton(TWO_HOSTS.address(TWO_HOSTS.client))
_THERE: Final = socket.inet_aton(TWO_HOSTS.service)
_REPEAT_S: Final = 0.5
_DEADLINE_S: Final = 15.0
_SETTLE_S: Final = 0.08
MSS_1400: Final = pack("!BBH", 2, 4, 1400)
SACK_PERMITTED: Final = b"\x04\x02"
SCALE_7: Final = b"\x01\x03\x03\x07"


@dataclass(frozen=True, slots=True)
class Seen:
    """A segment from the server. `seq` and `ack` are relative, `edge` is the right window edge that it grants."""

    time: float
    flags: int
    seq: int
    ack: int
    length: int
    window: int
    sack: tuple[tuple[int, int], ...]
    tsval: int | None
    tsecr: int | None
    data: bytes
    raw: Segment

    @property
    def edge(self) -> int:
        """ACK + window."""
        return self.ack + self.window

    @property
    def end(self) -> int:
        """The sequence number after it."""
        return self.seq + self.length + bool(self.flags & FIN)


class Wire:
    """Sends and hands out what comes, in the client's namespace whose kernel keeps quiet about these ports."""

    def __init__(self, inside: str) -> None:
        self._inside = inside
        with netns.entered(inside):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._in = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        self._in.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self._in.settimeout(0.1)
        self._ends: dict[int, End] = {}
        low, high = OWN_PORTS
        rule = f"tcp sport {low}-{high} meta mark != {_MARK} drop"
        text = f"table ip conformance {{ chain out {{ type filter hook output priority 0 ; {rule} ; }} ; }}\n"
        netns.tool(["nft", "-f", "-"], text, inside)
        self._stop = False
        self._next_port = low
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give everything back."""
        self._stop = True
        self._thread.join()
        self._out.close()
        self._in.close()
        netns.tool(["nft", "delete", "table", "ip", "conformance"], None, self._inside, check=False)

    def end(self, port: int, source_port: int | None = None) -> End:
        """A client's end that has sent nothing yet."""
        with self._lock:
            self._next_port += 1
            made = End(self, source_port or self._next_port, port)
            self._ends[made.source_port] = made
        return made

    def send(self, packet: bytes | bytearray) -> None:
        """A whole IP packet."""
        self._out.sendto(packet, (TWO_HOSTS.service, 0))

    def _read(self) -> None:
        while not self._stop:
            try:
                raw = Segment(bytearray(self._in.recv(65536)))
            except (TimeoutError, MalformedSegment):
                continue
            end = self._ends.get(raw.dport)
            if end is not None and raw.src == _THERE and raw.sport == end.port:
                end.take(raw)


class End:
    """One connection's client end. `next` is the relative number of the next new byte."""

    def __init__(self, wire: Wire, source_port: int, port: int) -> None:
        self._wire = wire
        self.source_port = source_port
        self.port = port
        self.base = 0xFFFF_FFB0 + source_port % 64  # our numbers wrap within the first bytes
        self.server_base = 0
        self.next = 0
        self.window = 8000
        self.scale = 0  # the server's
        self.timestamps = True
        self.automatic = True  # acknowledge what comes
        self.expected = 0  # the next byte of the server, relative
        self.recent: int | None = None  # the TSval to echo
        self.got: dict[int, bytes] = {}
        self._seen: list[Seen] = []
        self._mark = 0
        self._changed = threading.Condition()

    # --------------------------------------------------------------------------------------------------- sending

    def emit(
        self,
        seq: int,
        data: bytes = b"",
        flags: int = ACK | PSH,
        ack: int | None = None,
        *,
        window: int | None = None,
        options: bytes | None = None,
        older_s: float = 0.0,
        sack: Sequence[tuple[int, int]] = (),
        urgent: int | None = None,
        damaged: bool = False,
    ) -> int:
        """One segment; returns its TSval. `older_s` makes its timestamp older."""
        tsval = int((time.monotonic() - older_s) * 1000) & MASK
        if options is None:
            blocks = [((self.server_base + left) & MASK, (self.server_base + right) & MASK) for left, right in sack]
            # Without the ACK flag there is nothing to echo (RFC 7323 section 3.2).
            echo = (tsval, (self.recent or 0) if flags & ACK else 0) if self.timestamps else None
            options = ack_options(echo, blocks)
        number = (self.server_base + (self.expected if ack is None else ack)) & MASK if flags & ACK else 0
        packet = build_segment(
            (_HERE, self.source_port),
            (_THERE, self.port),
            (self.base + seq) & MASK,
            number,
            flags,
            self.window if window is None else window,
            options,
            data,
        )
        if urgent is not None:
            packet[38:40] = pack("!H", urgent)
            Segment(packet).seal()
        if damaged:
            packet[-1] ^= 0x5A
        self._wire.send(packet)
        return tsval

    def syn(self, options: bytes = b"", flags: int = SYN, data: bytes = b"", seq: int = 0) -> None:
        """A SYN, by default with timestamps beside these options."""
        if self.timestamps:
            options += b"\x01\x01" + pack("!BBII", 8, 10, int(time.monotonic() * 1000) & MASK, 0)
        options += b"\0" * (-len(options) % 4)
        self.emit(seq, data, flags, 0, options=options)

    def handshake(self, options: bytes = MSS_1400 + SACK_PERMITTED + b"\x01\x01" + SCALE_7) -> Seen:
        """SYN, again until its answer comes; the answer is not acknowledged. Numbers then count from after the SYN."""
        give_up = time.monotonic() + _DEADLINE_S
        found = None
        while found is None:
            assert time.monotonic() < give_up, "no SYN-ACK"
            self.syn(options)
            found = self.wait(lambda one: bool(one.flags & SYN), 1.5)
        self.accept(found)
        return found

    def accept(self, found: Seen) -> None:
        """Takes the numbers of a SYN-ACK."""
        offered = SynOptions.parse(found.raw.options())
        with self._changed:
            self.server_base = found.raw.seq_end
            self.base = found.raw.ack
            self.scale = offered.wscale or 0
            self.timestamps = self.timestamps and offered.tsval is not None
            self.recent = offered.tsval
            self.expected = 0
            self.next = 0

    def open(self, *steps: list[object], options: bytes | None = None) -> None:
        """A connection whose server has the steps. Numbers then count from behind the request."""
        self.handshake() if options is None else self.handshake(options)
        self.emit(0, b"", ACK)
        self.ask(*steps)

    def ask(self, *steps: list[object]) -> None:
        """Sends the steps; the first byte after them is taken before all else (`tick`)."""
        line = json.dumps({"id": f"c{self.source_port}", "steps": [["take", 1], *steps]}).encode() + b"\n"
        self._ahead(line)

    def tick(self) -> None:
        """The byte that the server waits for. Numbers then count from behind it."""
        self._ahead(b"t")
        self.settle()

    def settle(self) -> None:
        """Let what is on its way arrive, and mark: an acknowledgement may be said twice, or its rest 3 ms later."""
        count = -1
        while count != (count := len(self._seen)):
            time.sleep(_SETTLE_S)
        self.mark()

    def _ahead(self, data: bytes) -> None:
        """Send these before the byte that the numbers count from. What is seen is seen from here on."""
        with self._changed:
            self.base = (self.base + self.next + len(data)) & MASK
            self.next = 0
            self._seen.clear()
            self._mark = 0
        give_up = time.monotonic() + _DEADLINE_S
        while True:
            assert time.monotonic() < give_up, f"{data!r} is not acknowledged"
            self.emit(-len(data), data)
            if self.wait_for(lambda: any(one.ack >= 0 and one.flags & ACK for one in self._seen), _REPEAT_S):
                return

    def send(self, data: bytes, flags: int = ACK | PSH) -> None:
        """New bytes, again until they are acknowledged."""
        begin, self.next = self.next, self.next + len(data) + bool(flags & FIN)
        give_up = time.monotonic() + _DEADLINE_S
        while True:
            assert time.monotonic() < give_up, f"{len(data)} bytes at {begin} are not acknowledged"
            self.emit(begin, data, flags)
            if self.wait_for(lambda: any(one.ack >= self.next for one in self._seen), _REPEAT_S):
                return

    def send_many(self, data: bytes) -> None:
        """New bytes in many segments at once, again until they are acknowledged."""
        begin, self.next = self.next, self.next + len(data)
        give_up = time.monotonic() + _DEADLINE_S
        while (acked := max((one.ack for one in self._seen), default=begin)) < self.next:
            assert time.monotonic() < give_up, f"acknowledged up to {acked} of {self.next}"
            for at in range(max(acked, begin), self.next, 1000):
                self.emit(at, data[at - begin : at - begin + 1000])
            self.wait_for(lambda: any(one.ack >= self.next for one in self._seen), _REPEAT_S)

    def reset(self) -> None:
        """Ends the connection without a word back."""
        self.emit(self.next, b"", RST | ACK)

    # ------------------------------------------------------------------------------------------------- receiving

    def take(self, raw: Segment) -> None:
        """What the wire has for us."""
        with self._changed:
            relative_ack = diff(raw.ack, self.base & MASK) if raw.flags & ACK else 0
            sack = tuple((diff(left, self.base & MASK), diff(right, self.base & MASK)) for left, right in raw.sack)
            seq = diff(raw.seq, self.server_base & MASK)
            one = Seen(
                time.monotonic(),
                raw.flags,
                seq,
                relative_ack,
                raw.payload_len,
                raw.wnd << (0 if raw.flags & SYN else self.scale),
                sack,
                raw.tsval if raw.ts_off else None,
                raw.tsecr if raw.ts_off else None,
                raw.payload(),
                raw,
            )
            self._seen.append(one)
            if not raw.flags & (SYN | RST):
                if one.length:
                    self.got[seq] = max(self.got.get(seq, b""), one.data, key=len)
                if one.tsval is not None and seq <= self.expected:
                    self.recent = one.tsval
                if self.automatic:
                    self._advance(one)
            self._changed.notify_all()

    def _advance(self, one: Seen) -> None:
        if one.seq <= self.expected < one.end:
            self.expected = one.end
            while (piece := self.got.get(self.expected)) is not None:
                self.expected += len(piece)
        if one.length or one.flags & FIN:
            self.emit(self.next, b"", ACK)

    def mark(self) -> None:
        """From here on, `since` counts."""
        with self._changed:
            self._mark = len(self._seen)

    def since(self) -> list[Seen]:
        """What has come since the mark."""
        with self._changed:
            return self._seen[self._mark :]

    def wait_for(self, condition: Callable[[], bool], deadline_s: float = _DEADLINE_S) -> bool:
        """Whether the condition comes true in time; looked at after each segment."""
        with self._changed:
            return self._changed.wait_for(condition, deadline_s)

    def wait(self, wanted: Callable[[Seen], bool], deadline_s: float = _DEADLINE_S) -> Seen | None:
        """The first segment since the mark that is wanted; None if none comes in time."""
        with self._changed:
            self._changed.wait_for(lambda: any(wanted(one) for one in self._seen[self._mark :]), deadline_s)
            return next((one for one in self._seen[self._mark :] if wanted(one)), None)

    def received(self) -> bytes:
        """The server's stream so far, without a hole."""
        with self._changed:
            data, at = b"", 0
            while True:
                piece = next((s for s in self.got if s <= at < s + len(self.got[s])), None)
                if piece is None:
                    return data
                data += self.got[piece][at - piece :]
                at = len(data)

    def receive(self, size: int) -> bytes:
        """The server's stream once it is `size` bytes long."""
        assert self.wait_for(lambda: len(self.received()) >= size), f"{len(self.received())} of {size} bytes"
        return self.received()

    def sync(self) -> list[Seen]:
        """Everything said since the mark up to the answer to one more byte in order, without that answer."""
        self.send(b".")
        return [one for one in self.since() if one.ack < self.next or one.length or one.flags & (RST | FIN) or one.sack]


def content_digest(data: bytes) -> str:
    """What the server's `digest` step sends."""
    return hashlib.sha256(data).hexdigest()


def icmp_unreachable(code: int, packet: bytes, mtu: int = 0) -> bytes:
    """An ICMP destination unreachable (RFC 792) from the client about a packet that the server sent."""
    quoted = packet[:28]
    body = pack("!BBHHH", 3, code, 0, 0, mtu) + quoted
    total = sum(unpack_from(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    return pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0, _HERE, _THERE) + body
