"""Whether this host lets the service's packets through, tried with packets that do nothing.

While a host shadows, much of what a takeover needs is not used: what the replica says ends in our queue, and never
meets the rules behind it. So a few segments are sent the same ways, and it is seen whether they get to the end. All of
them have a wrong TCP checksum: no TCP takes one, and none answers. None leaves this host.

* Outward: from a raw socket whose group our rules know. They let such a packet go on, without the mark that the silence
  guard asks for; so it meets all rules behind ours, and ends at the guard. When it comes to the interface, before the
  guard, the kernel says so (SO_TIMESTAMPING); a rule that drops it on the way is mostly told at once (EPERM).
* Inward: a frame with a mark that nothing else has is turned round at the interface's egress (a filter of traffic
  control beside the silence guard). It comes in as if from the network, into our queue, which it passes unchanged.
* Injected: over lo, as all that the daemon gives to the local TCP.

What comes in has arrived when a raw socket has it: the kernel gives it a copy behind all rules (table filter, chain
INPUT), and before TCP looks.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Final

from nfq_failover.constants import ACK, IPPROTO_TCP, SYN
from nfq_failover.core.events import PacketQueued, QueueOverrun
from nfq_failover.shell.host import rtnetlink
from nfq_failover.shell.packets import bpf
from nfq_failover.shell.packets.bpf import Instruction, Op
from nfq_failover.shell.packets.inject import owned_socket, raw_socket
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.checksum import ipv4_header_checksum

PROBE: Final = 0x4E465150
"""The group of the outward socket and the mark of the frames, "NFQP": the rules script has the same number
(iptables/lib/options.sh)."""
_ETHERNET_IPV4: Final = b"\x08\x00"
_SHORTEST: Final = 40
_LONGEST: Final = 80  # with options, and a rule may add one
_FIELDS = Struct("!4xH28xHxxH")  # IP's ID: the number of the probe, from 1. TCP's window and urgent pointer: the token
_ID_AT, _WINDOW_AT, _URGENT_AT = 4, 34, 38
_LINK_HEADERS: Final = (14, 18, 0)  # Ethernet's, with a VLAN tag, and none
_SYN_OPTIONS: Final = bytes.fromhex("020405b4 0402 080a 00000001 00000000 01 030307")
"""As a Linux host's: MSS, SACK permitted, timestamps, window scale. There are rules that drop a SYN without them."""
_U16 = Struct("!H")
_SOCK_FILTER = Struct("=HBBI")
_MAX_PACKET: Final = 128
_SO_TIMESTAMPING: Final = 37  # asm-generic/socket.h
_SCHEDULED: Final = 1 << 8 | 1 << 4  # SOF_TIMESTAMPING_TX_SCHED, _SOFTWARE: linux/net_tstamp.h
_READS: Final = 256


class Way(Enum):
    """Which way a probe goes."""

    OUTWARD = "out"
    INWARD = "in"
    INJECTED = "lo"


class Outcome(Enum):
    """What has become of a probe."""

    UNDER_WAY = "under way"
    PASSED = "passed"
    DROPPED = "dropped"
    UNKNOWN = "unknown"  # it could not be tried


@dataclass(frozen=True, slots=True)
class Target:
    """A client as a probe shows it, and the service's port. `flow`: it has this connection; otherwise it is made up."""

    client: bytes
    client_port: int
    port: int
    flow: bool


@dataclass(slots=True)
class Sent:
    """A probe that was sent. `queued`: it came to our queue."""

    way: Way
    target: Target
    outcome: Outcome = Outcome.UNDER_WAY
    queued: bool = False

    def came(self) -> None:
        """It is in our queue."""
        self.queued = True


class ProbeSender:
    """The sockets that send, made while there are still all rights. `owned`: the rules know what goes out, as far as
    is known."""

    def __init__(self, source: str, interface: str) -> None:
        """`source`: the service address. Raises OSError without CAP_NET_RAW and CAP_NET_ADMIN."""
        self.interface = interface
        self._out, self.owned = owned_socket(PROBE, source)
        self._over_lo = self._frames = None
        try:
            self._out.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _SCHEDULED)
            self._over_lo = raw_socket()
            self._frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # receives nothing
            self._frames.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROBE)
            self._frames.setblocking(False)
        except OSError:
            self.close()
            raise

    def outward(self, packet: bytes, client: bytes) -> Outcome:
        """Send what the service would say to a client."""
        return self._send(self._out, packet, client)

    def left(self) -> list[bytes]:
        """What has come to the interface, with a link's header before it."""
        found = []
        for _ in range(_READS):
            try:
                found.append(self._out.recvmsg(_MAX_PACKET, 0, socket.MSG_ERRQUEUE)[0])
            except OSError:
                break
        return found

    def injected(self, packet: bytes, service: bytes) -> Outcome:
        """Send as the daemon injects."""
        assert self._over_lo is not None
        return self._send(self._over_lo, packet, service)

    @staticmethod
    def _send(over: socket.socket, packet: bytes, to: bytes) -> Outcome:
        try:
            over.sendto(packet, (socket.inet_ntoa(to), 0))
        except OSError as problem:  # others are no matter of rules: no route, no room
            return Outcome.DROPPED if problem.errno == errno.EPERM else Outcome.UNKNOWN
        return Outcome.UNDER_WAY

    def inward(self, packet: bytes, service: bytes) -> Outcome:
        """Send a frame that comes back in, if it is sure to be turned round."""
        assert self._frames is not None
        try:
            index = socket.if_nametoindex(self.interface)
            if not turned_round(index, service):
                return Outcome.UNKNOWN
            self._frames.bind((self.interface, 0))
            mac = self._frames.getsockname()[4]
            self._frames.send(mac + mac + _ETHERNET_IPV4 + packet)
        except OSError:
            return Outcome.UNKNOWN
        return Outcome.UNDER_WAY

    def close(self) -> None:
        """Send no more. Can be repeated."""
        for each in (self._out, self._over_lo, self._frames):
            if each is not None:
                each.close()


def turned_round(index: int, service: bytes) -> bool:
    """Whether the interface has our filter at its egress. Raises OSError."""
    ours = _SOCK_FILTER.pack(0, 0, 0, PROBE), _SOCK_FILTER.pack(Op.IF_EQUAL, 0, 1, int.from_bytes(service, "big"))
    return any(all(part in shown for part in ours) for shown in rtnetlink.egress_filters(index))


@dataclass(slots=True)
class PathProbe:
    """One try of several ways for several clients. `accept(packet_id)` lets a packet of the input queue go on,
    `refuse(packet_id)` drops one of the output queue."""

    service: bytes
    sender: ProbeSender
    accept: Callable[[int], None]
    refuse: Callable[[int], None]
    probes: list[Sent] = field(default_factory=list)
    _token: tuple[int, int] = (0, 0)
    _receiver: socket.socket | None = None

    def begin(self, wanted: Sequence[tuple[Way, Target]]) -> None:
        """Send a probe for each. Raises OSError if nothing can be received."""
        self.end()
        self._token = random.SystemRandom().randrange(1 << 16), random.SystemRandom().randrange(1, 0xFFFF)
        self.sender.left()
        self._receiver = _receiver(self._token)
        self.probes = [Sent(way, target) for way, target in wanted]
        for number, probe in enumerate(self.probes, start=1):
            packet = self._packet(number, probe)
            if probe.way is Way.OUTWARD:
                probe.outcome = self.sender.outward(packet, probe.target.client)
            elif probe.way is Way.INJECTED:
                probe.outcome = self.sender.injected(packet, self.service)
            else:
                probe.outcome = self.sender.inward(packet, self.service)

    def _packet(self, number: int, probe: Sent) -> bytes:
        """A client that has a connection goes on with it, and a made-up one begins: where rules count the connections
        that a client begins, no real client has one more."""
        target, outward = probe.target, probe.way is Way.OUTWARD
        client, service = (target.client, target.client_port), (self.service, target.port)
        flags = ACK if target.flow else SYN | ACK if outward else SYN
        ends = (service, client) if outward else (client, service)
        packet = build_segment(*ends, 0, 0, flags, self._token[0], b"" if target.flow else _SYN_OPTIONS)
        _U16.pack_into(packet, _URGENT_AT, self._token[1])  # neither 0 nor -0: the checksum is wrong, no TCP takes it
        _U16.pack_into(packet, _ID_AT, number)
        packet[10:12] = bytes(2)
        _U16.pack_into(packet, 10, ipv4_header_checksum(packet[:20]))
        return bytes(packet)

    @property
    def under_way(self) -> bool:
        """Whether something is still expected."""
        return any(probe.outcome is Outcome.UNDER_WAY for probe in self.probes)

    def sift(self, events: list[PacketQueued | QueueOverrun]) -> list[PacketQueued | QueueOverrun]:
        """Let probes among what the input queue has brought go on; returns the rest."""
        left = []
        for event in events:
            if isinstance(event, PacketQueued) and (sent := self._known(event.packet)) is not None:
                sent.came()
                self.accept(event.packet_id)
            else:
                left.append(event)
        return left

    def sift_output(self, events: list[PacketQueued | QueueOverrun]) -> list[PacketQueued | QueueOverrun]:
        """Drop probes among what the output queue has brought; returns the rest. They come there if the rules go by the
        mark, since the kernel has no owner match: then nothing can be tried outward."""
        left = []
        for event in events:
            if isinstance(event, PacketQueued) and (sent := self._known(event.packet)) is not None:
                sent.outcome = Outcome.UNKNOWN
                self.sender.owned = False
                self.refuse(event.packet_id)
            else:
                left.append(event)
        return left

    def _known(self, packet: bytes | bytearray) -> Sent | None:
        if self._receiver is None or not _SHORTEST <= len(packet) <= _LONGEST:
            return None
        number, *token = _FIELDS.unpack_from(packet)
        return self.probes[number - 1] if tuple(token) == self._token and 0 < number <= len(self.probes) else None

    def collect(self) -> None:
        """See what has arrived."""
        if self._receiver is None:
            return
        for packet in self.sender.left():
            for header in _LINK_HEADERS:
                if (probe := self._known(packet[header:])) is not None and probe.way is Way.OUTWARD:
                    probe.outcome = Outcome.PASSED
        for _ in range(_READS):
            try:
                packet = self._receiver.recv(_MAX_PACKET)
            except OSError:
                return
            if (probe := self._known(packet)) is not None:
                probe.outcome = Outcome.PASSED

    def end(self) -> None:
        """Expect nothing more: what has not arrived has been dropped. Can be repeated."""
        self.collect()
        for probe in self.probes:
            if probe.outcome is Outcome.UNDER_WAY:
                probe.outcome = Outcome.DROPPED
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def _receiver(token: tuple[int, int]) -> socket.socket:
    """Gets copies of the probes that the host's TCP is given, and of nothing else."""
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_TCP)
    try:
        made.setblocking(False)
        program: list[bpf.Line] = [
            Instruction(Op.LOAD_HALF, _WINDOW_AT),
            Instruction(Op.IF_EQUAL, token[0], no="refuse"),
            Instruction(Op.LOAD_HALF, _URGENT_AT),
            Instruction(Op.IF_EQUAL, token[1], no="refuse"),
            Instruction(Op.RETURN, bpf.WHOLE_PACKET),
            "refuse",
            Instruction(Op.RETURN, 0),
        ]
        bpf.attach(made, bpf.assemble(program))
        with contextlib.suppress(BlockingIOError):  # what came before the filter
            made.recv(_MAX_PACKET)
    except OSError:
        made.close()
        raise
    return made
