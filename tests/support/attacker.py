"""A host at the switch that hears all and says anything under anybody's address, unseen by the client's capture."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from nfq_failover.constants import ACK, PSH
from nfq_failover.lab import netns
from nfq_failover.lab.topology import SWITCH, TWO_HOSTS, namespace, port
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import add

_ETH_P_ALL = 0x0003
THERE = socket.inet_aton(TWO_HOSTS.service)


class Attacker:
    """Knows one connection by what it has overheard."""

    def __init__(self, lab_name: str, target: str) -> None:
        """`target`: the node that its frames go to."""
        with netns.entered(namespace(lab_name, SWITCH)):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._out.bind(("br0", 0))
        self._ear.bind((port(TWO_HOSTS.client), _ETH_P_ALL))
        self._ear.setblocking(False)
        hardware = (TWO_HOSTS.hardware(target), TWO_HOSTS.hardware(TWO_HOSTS.client))
        self._ethernet = b"".join(bytes.fromhex(each.replace(":", "")) for each in hardware) + b"\x08\0"
        self._source = (socket.inet_aton(TWO_HOSTS.address(TWO_HOSTS.client)), 0)
        self.next = self.ack = 0
        self.options = b""

    def close(self) -> None:
        self._out.close()
        self._ear.close()

    def learn(self, client_port: int) -> None:
        """The latest numbers of the client's connection from this port, as overheard since the last time."""
        self._source = (self._source[0], client_port)
        found = False
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._ear.recv(65536)
                if frame[12:14] != b"\x08\0" or frame[23] != socket.IPPROTO_TCP:
                    continue
                seg = Segment(bytearray(frame[14:]))
                if seg.sport == client_port and seg.dst == THERE:
                    self.next, self.ack, self.options, found = seg.seq_end, seg.ack, seg.options(), True
        assert found, "nothing of this connection was overheard"

    def frame(self, packet: bytes | bytearray) -> None:
        """Any IPv4 packet."""
        self._out.send(self._ethernet + packet)

    def say(
        self,
        ahead: int = 0,
        data: bytes = b"",
        flags: int = ACK | PSH,
        ack: int = 0,
        corrupt: bool = False,
        **more: Any,
    ) -> None:
        """A segment as of the client: `ahead` of its next byte, acknowledging `ack` more than it has."""
        seq, number = add(self.next, ahead), add(self.ack, ack) if flags & ACK else 0
        service = (THERE, more.pop("service_port"))
        source = more.pop("source", self._source)
        packet = build_segment(source, service, seq, number, flags, 500, more.pop("options", self.options), data)
        if corrupt:
            packet[-1] ^= 0xFF
        self.frame(packet)


@contextlib.contextmanager
def attacker(lab_name: str, target: str) -> Iterator[Attacker]:
    """An attacker, gone at the end."""
    made = Attacker(lab_name, target)
    try:
        yield made
    finally:
        made.close()
