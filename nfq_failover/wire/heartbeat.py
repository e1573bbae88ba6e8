"""The body of a heartbeat, and the template from which a separate process makes heartbeats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from struct import Struct

from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.datagram import HEADER, MAC_BYTES, Header, Kind, seal

LINK_HEADERS = 14 + 20 + 8  # Ethernet, IPv4, UDP
_HEARTBEAT = Struct("!BBBIIHQQI")
_PACT = Struct("!QI")
_TEMPLATE = Struct("!Q32sBI")


@dataclass(frozen=True, slots=True)
class HeartbeatBody:
    """What a heartbeat says.

    `role`, `state`, `flags`: see core/pair/roles.py; `generation`: see core/pair/membership.py. `loop_age_ms`: how long
    ago the packet loop made progress, 65535 for anything longer. `sent_ms`: the sender's monotonic clock; `echo_ms`:
    the latest `sent_ms` that it has received, 0 for none. `release_after_ms`: the sender's setting. `pact` and
    `lease_ms`: see core/pair/pact.py; 0 without a witness.
    """

    role: int
    state: int
    flags: int
    stored_epoch: int
    generation: int
    loop_age_ms: int
    sent_ms: int
    echo_ms: int
    release_after_ms: int
    pact: int = 0
    lease_ms: int = 0

    def encode(self) -> bytes:
        """The body of a heartbeat datagram."""
        said = _HEARTBEAT.pack(
            self.role,
            self.state,
            self.flags,
            self.stored_epoch,
            self.generation,
            min(self.loop_age_ms, 0xFFFF),
            self.sent_ms,
            self.echo_ms,
            self.release_after_ms,
        )
        return said + _PACT.pack(self.pact, self.lease_ms) if self.pact or self.lease_ms else said

    @classmethod
    def decode(cls, body: bytes) -> HeartbeatBody:
        """Raises `MalformedDatagram`. Bytes that a later version appends are ignored."""
        if len(body) < _HEARTBEAT.size:
            raise MalformedDatagram("bad-heartbeat")
        fields = _HEARTBEAT.unpack_from(body)
        if len(body) < _HEARTBEAT.size + _PACT.size:
            return cls(*fields)
        return cls(*fields, *_PACT.unpack_from(body, _HEARTBEAT.size))


@dataclass(frozen=True, slots=True)
class HeartbeatTemplate:
    """All of a heartbeat but its clock, loop age and counter: those are the sender process's."""

    session: int
    key: bytes
    direction: bool
    epoch: int
    body: HeartbeatBody

    def encode(self) -> bytes:
        """For the way to the sender process."""
        return _TEMPLATE.pack(self.session, self.key, self.direction, self.epoch) + self.body.encode()

    @classmethod
    def decode(cls, data: bytes) -> HeartbeatTemplate:
        """Raises `MalformedDatagram`."""
        if len(data) < _TEMPLATE.size:
            raise MalformedDatagram("bad-template")
        session, key, direction, epoch = _TEMPLATE.unpack_from(data)
        return cls(session, key, bool(direction), epoch, HeartbeatBody.decode(data[_TEMPLATE.size :]))

    def datagram(self, counter: int, sent_ms: int, loop_age_ms: int) -> bytes:
        """A whole heartbeat. `counter` must grow with every heartbeat of a session, over restarts of the sender too."""
        body = replace(self.body, sent_ms=sent_ms, loop_age_ms=min(loop_age_ms, 0xFFFF))
        header = Header(Kind.HEARTBEAT, self.direction, self.session, self.epoch, counter)
        return seal(header, body.encode(), self.key)


def datagram_bytes(lease_ms: int = 0) -> int:
    """Size of a heartbeat on the wire, with Ethernet, IPv4 and UDP headers. `lease_ms`: 0 without a witness."""
    body = HeartbeatBody(0, 0, 0, 0, 0, 0, 0, 0, 0, lease_ms=lease_ms)
    return LINK_HEADERS + HEADER.size + len(body.encode()) + MAC_BYTES
