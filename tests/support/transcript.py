"""Transcripts of the sans-IO core: `t >> input` feeds, `t << effect` takes the next effect and compares it.

Every effect has to be taken before the next input, and at the end: nothing else may come out. Segments are written as
tcpdump would, in stream offsets (0 is the first byte after the SYN, the SYN itself is -1), so the same text describes
the same bytes in the primary's, the client's and the replica's numbers; the payload and the checksum are verified on
the way. The numbers behind the offsets wrap within the first kilobyte.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from nfq_failover.constants import ACK, FIN, PSH, RST, SYN, URG
from nfq_failover.core.events import FlowsGone, FrameCopied, Inject, Log, PacketQueued, QueryFlows, Queue, Verdict
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.checksum import ones_sum
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.records import (
    Confirm,
    End,
    EndAsked,
    EndKind,
    Open,
    PaceAsked,
    Record,
    Served,
    Towards,
)
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import add, diff
from tests.support import configured

CLIENT = (bytes((10, 77, 0, 1)), 40000)
SERVER = (bytes((10, 77, 0, 100)), 80)
FLOW = (*CLIENT, *SERVER)
IRS = 2**32 - 500
ISS = 2**32 - 700  # the primary's, as the client sees it
ISS_OWN = 1_000_000  # the replica's
CLIENT_TS = 1_000
SEEN_TS = 2_000_000  # the primary's clock
OWN_TS = 7_000_000  # the replica's clock
SYN_WND = 64240

OFFER = bytes((2, 4, 5, 180, 4, 2, 8, 10)) + CLIENT_TS.to_bytes(4, "big") + bytes((0, 0, 0, 0, 1, 3, 3, 7))
"""A Linux client's SYN: MSS 1460, SACK permitted, timestamps, window scale 7."""

_FLAGS = ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."))


def stream(offset: int, count: int, salt: int) -> bytes:
    """`count` bytes at `offset` of an endless stream; `salt` says which one."""
    return bytes((i * 7 + (i >> 8) * 31 + salt) & 0xFF for i in range(offset, offset + count))


CLIENT_SALT, SERVER_SALT = 1, 101


def client_bytes(offset: int, count: int) -> bytes:
    """A piece of the client's stream."""
    return stream(offset, count, CLIENT_SALT)


def server_bytes(offset: int, count: int) -> bytes:
    """A piece of the server's stream."""
    return stream(offset, count, SERVER_SALT)


def settings(**changes: object) -> Settings:
    """A host `a` with peer `b` that does not compare outputs, and leaves clients' timers alone."""
    return configured.settings(**{"service": SERVER[0], "divergence": "off", "revert_backoff": False, **changes})


def client_seq(offset: int) -> int:
    """The client's sequence number at an offset of its stream."""
    return add(IRS + 1, offset)


@dataclass(frozen=True)
class Sent:
    """A segment on its way into the core, in offsets. `ts`: (TSval, TSecr), None for none."""

    by: str
    start: int = 0
    length: int = 0
    ack: int | None = 0
    wnd: int = 1000
    flags: str = "."
    ts: tuple[int, int] | None = None
    sack: tuple[tuple[int, int], ...] = ()
    options: bytes = b""
    payload: bytes | None = None
    port: int | None = None
    gso: bool = False
    pending: bool = False
    corrupt: bool = False
    irs: int = IRS
    iss: int | None = None

    def packet(self, iss: int) -> bytearray:
        """The packet; `iss` is the initial sequence number of the server that it talks of."""
        iss = iss if self.iss is None else self.iss
        by_client = self.by == "client"
        mine, theirs = (self.irs, iss) if by_client else (iss, self.irs)
        flags = sum(bit for bit, letter in _FLAGS if letter in self.flags)
        payload = self.payload
        if payload is None:
            payload = (client_bytes if by_client else server_bytes)(self.start, self.length)
        sack = [(add(theirs + 1, left), add(theirs + 1, right)) for left, right in self.sack]
        source, destination = (CLIENT, SERVER) if by_client else (SERVER, CLIENT)
        if self.port is not None:
            source, destination = (source[0], self.port) if by_client else source, destination
            if not by_client:
                destination = (destination[0], self.port)
        ack = 0 if self.ack is None else add(theirs + 1, self.ack)
        options = self.options + ack_options(self.ts, sack)
        packet = build_segment(source, destination, add(mine + 1, self.start), ack, flags, self.wnd, options, payload)
        if self.corrupt:
            packet[-1] ^= 0xFF
        return packet


class Urgent(Sent):
    """A segment with the URG flag."""

    def packet(self, iss: int) -> bytearray:
        packet = super().packet(iss)
        packet[33] |= URG
        packet[36:38] = b"\0\0"
        Segment(packet).seal()
        return packet


def client(start: int = 0, length: int = 0, ack: int | None = 0, wnd: int = 1000, **more: Any) -> Sent:
    """A client's segment."""
    return Sent("client", start, length, ack, wnd, **more)


def server(start: int = 0, length: int = 0, ack: int | None = 0, wnd: int = 1000, **more: Any) -> Sent:
    """A segment of the local TCP."""
    return Sent("server", start, length, ack, wnd, **more)


@dataclass(frozen=True)
class Copy:
    """A copied inbound segment."""

    sent: Sent


@dataclass(frozen=True)
class After:
    """Time passes; then timers fire."""

    seconds: float


class RecordingOutbox(Outbox):
    """Remembers why a packet was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.why: dict[tuple[Queue, int], str] = {}

    def drop(self, queue: Queue, packet_id: int, why: str) -> None:
        self.why[queue, packet_id] = why
        super().drop(queue, packet_id, why)


def describe(packet: bytes | bytearray, iss: int) -> str:
    """A packet as text, in offsets; what is wrong with it is shouted."""
    seg = Segment(bytearray(packet))
    by_client = seg.src == CLIENT[0]
    mine, theirs = (IRS, iss) if by_client else (iss, IRS)
    start = diff(seg.seq, add(mine, 1))
    letters = "".join(letter for bit, letter in _FLAGS if seg.flags & bit)
    text = f"[{letters}] {start}"
    if seg.payload_len:
        text += f":{start + seg.payload_len}"
        if seg.payload() != (client_bytes if by_client else server_bytes)(start, seg.payload_len):
            text += " WRONG BYTES"
    if seg.flags & ACK:
        text += f" ack {diff(seg.ack, add(theirs, 1))}"
    text += f" wnd {seg.wnd}"
    if seg.sack:
        text += " sack" + ",".join(f" {diff(a, add(theirs, 1))}-{diff(b, add(theirs, 1))}" for a, b in seg.sack)
    if seg.ts_off and not seg.flags & SYN:
        text += f" ts {seg.tsval}/{seg.tsecr}"
    if not seg.checksum_ok():
        text += " UNSEALED"
    return text


class Transcript:
    """Common part: clock, packet ids, effects as text."""

    inward_iss = ISS
    outward_iss = ISS

    def __init__(self) -> None:
        self.now = 100.0
        self.out = RecordingOutbox()
        self.effects: deque[str | Record] = deque()
        self.served: list[Served] = []  # told in turns, and no other test's business
        self._id = 0
        self._open_ids: set[tuple[Queue, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._nothing_left()

    def _nothing_left(self) -> None:
        assert not self.effects, f"nobody expected: {list(self.effects)}"
        assert not self._open_ids, "a packet has had no verdict"

    def event(self, sent: Sent) -> PacketQueued:
        """The segment as a queued packet."""
        self._id += 1
        queue = Queue.IN if sent.by == "client" else Queue.OUT
        self._open_ids.add((queue, self._id))
        iss = self.outward_iss if sent.by == "client" else self.inward_iss
        return PacketQueued(queue, self._id, sent.packet(iss), sent.pending, sent.gso)

    def drain(self) -> None:
        """Collect what came out."""
        out = self.out
        for effect in out.effects:
            if isinstance(effect, Verdict):
                self._open_ids.remove((effect.queue, effect.packet_id))
                self.effects.append(self._verdict(effect))
            elif isinstance(effect, Inject) and is_icmp(bytearray(effect.packet)):
                self.effects.append(self._icmp(effect))
            elif isinstance(effect, Inject):
                seg = Segment(bytearray(effect.packet))
                assert effect.inward == (seg.dst == SERVER[0])
                iss = self.inward_iss if effect.inward else self.outward_iss
                self.effects.append(("kernel " if effect.inward else "client ") + describe(effect.packet, iss))
            elif isinstance(effect, QueryFlows):
                self.effects.append("query")
            elif isinstance(effect, Log):
                self.effects.append(f"log {effect.level}: {effect.event}")
            else:
                raise AssertionError(f"a side of a connection must not ask for {effect}")
        out.effects.clear()
        self.served += [record for record in out.records if isinstance(record, Served)]
        self.effects.extend(record for record in out.records if not isinstance(record, Served))
        out.records.clear()

    def _icmp(self, effect: Inject) -> str:
        error = IcmpError(bytearray(effect.packet))
        assert not effect.inward and (error.src, error.sport, error.dst, error.dport) == FLOW
        assert (bytes(error.buf[12:16]), bytes(error.buf[16:20])) == (SERVER[0], CLIENT[0])
        assert error.checksum_ok() and ones_sum(error.buf[:20]) == 0xFFFF
        return f"client icmp {error.code} about {diff(error.seq, add(IRS, 1))}"

    def _verdict(self, verdict: Verdict) -> str:
        if not verdict.accept:
            return f"drop {self.out.why[verdict.queue, verdict.packet_id]}"
        if verdict.packet is None:
            return "pass"
        iss = self.inward_iss if verdict.queue is Queue.IN else self.outward_iss
        return "pass " + describe(verdict.packet, iss)

    def __rshift__(self, given: object) -> Self:
        self._nothing_left()
        self.feed(given)
        self.drain()
        return self

    def __lshift__(self, expected: str | Record) -> Self:
        assert self.effects, f"nothing came out, expected {expected}"
        got = self.effects.popleft()
        assert got == expected, f"\n  expected {expected}\n  got      {got}"
        return self

    def feed(self, given: object) -> None:
        """Hand an input to the part under test."""
        raise NotImplementedError


class GateTranscript(Transcript):
    """A `GateTable` with a backup (unless `protecting` is False). Takes all records that are for a gate.

    Questions about the pace of the replica come by the clock: only tests of the pace (`paced`) get them."""

    paced = False

    def drain(self) -> None:
        super().drain()
        if not self.paced:
            self.effects = deque(effect for effect in self.effects if not isinstance(effect, PaceAsked))

    def __init__(self, protecting: bool = True, **changes: object) -> None:
        super().__init__()
        self.side = GateTable(settings(**changes), self.out)
        if protecting:
            self.side.start_protecting(0.0)

    def feed(self, given: object) -> None:
        side, now = self.side, self.now
        if isinstance(given, Sent):
            event = self.event(given)
            seg = Segment(event.packet)
            if given.by == "client":
                assert seg.flags & SYN, "only SYNs are queued on a gate's input"
                side.segments.inbound_syn(event, seg)
            else:
                side.segments.outbound(event, seg, now)
        elif isinstance(given, Copy):
            packet = given.sent.packet(ISS)
            side.copied(FrameCopied(packet, given.sent.pending), now)
        elif isinstance(given, After):
            self.now += given.seconds
            side.on_timer(self.now)
        elif isinstance(given, FlowsGone):
            side.flows_gone(given.flows, now)
        elif isinstance(given, Record):
            assert given.towards is not Towards.SHADOW, f"the gate takes no {given}"
            side.take(given, now)
        else:
            raise AssertionError(f"the gate takes no {given}")
        while side.findings:
            self.judge(side.findings.popleft())

    def judge(self, found: ApplicationFailed) -> None:
        """What the node does with a finding is not the gate's business."""
        self.effects.append(f"found: {found.reason}")


class ShadowTranscript(Transcript):
    """A `ShadowTable`; packets of unknown connections are the node's affair."""

    inward_iss = ISS_OWN

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.side = ShadowTable(settings(**changes), self.out)

    def drain(self) -> None:
        super().drain()
        for connection in self.side.flows.values():
            inward = connection.inward
            held = max(inward.inbound.end, inward.rcv_nxt)
            assert inward.held == held + (held == inward.fin_in), "what is held is not what the log and our TCP have"

    def feed(self, given: object) -> None:
        side, now = self.side, self.now
        if isinstance(given, Sent):
            event = self.event(given)
            seg = Segment(event.packet)
            connection = side.flows[FLOW]
            if given.by == "client":
                side.segments.inbound(event, seg, connection, now)
            else:
                side.segments.outbound(event, seg, connection, now)
        elif isinstance(given, After):
            self.now += given.seconds
            side.on_timer(self.now)
        elif isinstance(given, FlowsGone):
            side.flows_gone(given.flows, now)
        elif isinstance(given, Record):
            assert type(given) in side.records.takes, f"the shadow takes no {given}"
            side.take(given, now)
        elif given == "takeover":
            side.take_over(now)
        else:
            raise AssertionError(f"the shadow takes no {given}")
        side.flush()


def granted(
    wscale: int | None = 2, ts: int | None = SEEN_TS, sack: bool = True, mss: int = 1460, tsecr: int = CLIENT_TS
) -> bytes:
    """The options of a SYN-ACK."""
    out = bytes((2, 4)) + mss.to_bytes(2, "big")
    if sack:
        out += bytes((4, 2, 1, 1))
    if ts is not None:
        out += bytes((8, 10)) + ts.to_bytes(4, "big") + tsecr.to_bytes(4, "big") + bytes((1, 1))
    if wscale is not None:
        out += bytes((3, 3, wscale, 1))
    return out


def syn(options: bytes = OFFER, **more: Any) -> Sent:
    """The client's SYN."""
    return client(-1, ack=None, flags="S", wnd=SYN_WND, options=options, **more)


def syn_ack(wnd: int = 8000, options: bytes | None = None, **more: Any) -> Sent:
    """The server's SYN-ACK."""
    return server(-1, ack=0, flags="S.", wnd=wnd, options=granted() if options is None else options, **more)


def opening(conn: int = 1, **changes: object) -> Open:
    """The primary's description of the connection that `syn` and `syn_ack` open."""
    values: dict[str, object] = {
        "conn": conn,
        "flow": FLOW,
        "irs": IRS,
        "iss": ISS,
        "tsval": SEEN_TS,
        "wscale": 2,
        "mss": 1460,
        "sack_permitted": True,
        "syn_wnd": SYN_WND,
        "syn_options": OFFER,
    }
    return Open(**{**values, **changes})  # type: ignore[arg-type]


def server_seq(offset: int) -> int:
    """The server's sequence number, as the client sees it, at an offset of its stream."""
    return add(ISS + 1, offset)


def asked(at: int, kind: EndKind = EndKind.FIN, conn: int = 1) -> EndAsked:
    """The primary's question about the end, in offsets."""
    return EndAsked(conn, server_seq(at), kind)


def replica_end(at: int, kind: EndKind = EndKind.FIN, taken: int = 0, conn: int = 1, well: bool = True) -> End:
    """Where the replica is, in offsets."""
    return End(conn, server_seq(at), client_seq(taken), kind, well)


def confirmed(cum: int, edge: int, *ranges: tuple[int, int], conn: int = 1, established: bool = True) -> Confirm:
    """The backup's confirmation, in offsets."""
    seqs = tuple((client_seq(left), client_seq(right)) for left, right in ranges)
    return Confirm(conn, client_seq(cum), client_seq(edge), seqs, established)
