"""An authenticated session with one peer.

Each daemon draws a nonce at its start. HELLO(na) -> REPLY(na, nb) -> a datagram under the session key: the keys come
from the long-term key, both nonces and both names, so a session belongs to exactly one life of each daemon. A session
that was merely announced (by a HELLO or REPLY, which an attacker can replay) is a candidate; it replaces the current
one when a datagram under its own key arrives, and a session that was replaced never comes back. Crossing HELLOs lead to
the same session, since the nonces are ordered by the hosts' names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2s

from nfq_failover.core.heartbeat import HeartbeatTemplate
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.records import Record
from nfq_failover.wire.sync import (
    MAX_BODY,
    NONCE_BYTES,
    Header,
    HeartbeatBody,
    Kind,
    decode_records,
    encode_record,
    open_body,
    read_header,
    seal,
)

WINDOW = 1024
HELLO_MIN_S = 0.02
HELLO_MAX_S = 1.0
MAX_RETIRED = 4096


class ReplayWindow:
    """Which counters were seen, over the last `WINDOW` (as in RFC 6479)."""

    __slots__ = ("_bits", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._bits = 0

    def check(self, counter: int) -> None:
        """Note a counter. Raises `MalformedDatagram` if it was seen before, or is too old to tell."""
        ahead = counter - self._top
        if ahead > 0:
            self._bits = ((self._bits << ahead) if ahead < WINDOW else 0) & ((1 << WINDOW) - 1) | 1
            self._top = counter
            return
        if ahead <= -WINDOW:
            raise MalformedDatagram("too-old")
        bit = 1 << -ahead
        if self._bits & bit:
            raise MalformedDatagram("replayed")
        self._bits |= bit


@dataclass(slots=True)
class Keys:
    """One session: its number, a key for each direction, and what has been received in it."""

    session: int
    ours: bytes
    theirs: bytes
    peer_nonce: bytes
    records: ReplayWindow = field(default_factory=ReplayWindow)
    heartbeat: int = -1


@dataclass(slots=True)
class Received:
    """What an accepted datagram brought."""

    epoch: int = 0
    session_started: bool = False
    heartbeat: HeartbeatBody | None = None
    records: list[Record] = field(default_factory=list)


class Session:
    """The session with one peer; see the module's text. `established` from the first datagram under the key on."""

    def __init__(self, settings: Settings, peer: Peer, rng: Callable[[int], bytes]) -> None:
        self.settings = settings
        self.peer = peer
        self.direction = settings.name > peer.name
        self._nonce = rng(NONCE_BYTES)
        self._master = blake2s(settings.key, person=b"nfqfmast").digest()
        self._hello_key = blake2s(key=self._master, person=b"nfqfhand").digest()
        self._current: Keys | None = None
        self._candidate: Keys | None = None
        self._retired: dict[int, None] = {}
        self._counter = 0
        self._hello_counter = 0
        self._outgoing: list[bytes] = []
        self._heard_at: float | None = None
        self._next_hello = 0.0

    # ------------------------------------------------------------------------------------ views

    @property
    def established(self) -> bool:
        """Whether records and heartbeats can be sent."""
        return self._current is not None

    @property
    def session_id(self) -> int | None:
        """The number of the current session."""
        return self._current.session if self._current else None

    # ------------------------------------------------------------------------------------ sending

    def seal(self, records: list[Record], epoch: int) -> list[bytes]:
        """As few datagrams as possible with these records. Needs a session."""
        datagrams: list[bytes] = []
        body = b""
        for record in records:
            encoded = encode_record(record)
            if len(body) + len(encoded) > MAX_BODY:
                datagrams.append(self._seal(self._current, Kind.RECORDS, epoch, body))
                body = b""
            body += encoded
        if body:
            datagrams.append(self._seal(self._current, Kind.RECORDS, epoch, body))
        return datagrams

    def _seal(self, keys: Keys | None, kind: Kind, epoch: int, body: bytes) -> bytes:
        if keys is None:
            raise MalformedDatagram("no-session")
        self._counter += 1
        return seal(Header(kind, self.direction, keys.session, epoch, self._counter), body, keys.ours)

    def heartbeat_template(
        self,
        *,
        epoch: int,
        role: int,
        state: int,
        flags: int,
        stored_epoch: int,
        generation: int,
        echo_ms: int,
        release_after_ms: int,
    ) -> HeartbeatTemplate:
        """What the heartbeat sender shall say. Needs a session."""
        if self._current is None:
            raise MalformedDatagram("no-session")
        body = HeartbeatBody(role, state, flags, stored_epoch, generation, 0, 0, echo_ms, release_after_ms)
        return HeartbeatTemplate(self._current.session, self._current.ours, self.direction, epoch, body)

    def poll_datagram(self) -> bytes | None:
        """The next datagram of the handshake."""
        return self._outgoing.pop(0) if self._outgoing else None

    # ------------------------------------------------------------------------------------ time

    def poll_timeout(self) -> float:
        """When `on_timer` has something to do."""
        return self._next_hello

    def on_timer(self, now: float) -> None:
        """Say HELLO while there is no session, or nothing is heard in it."""
        if now < self._next_hello:
            return
        interval = min(max(self.settings.heartbeat_interval_ms / 1000, HELLO_MIN_S), HELLO_MAX_S)
        self._next_hello = now + interval
        silent = self._heard_at is None or now - self._heard_at > self.settings.detection_ms / 1000
        if self._current is None or silent:
            self._hello(Kind.HELLO, self._nonce)

    def _hello(self, kind: Kind, body: bytes) -> None:
        self._hello_counter += 1
        header = Header(kind, self.direction, 0, 0, self._hello_counter)
        self._outgoing.append(seal(header, body + self._names(), self._hello_key))

    def _names(self, ours: bool = True) -> bytes:
        pair = (self.settings.name, self.peer.name) if ours else (self.peer.name, self.settings.name)
        return "\0".join(pair).encode()

    # ------------------------------------------------------------------------------------ receiving

    def receive(self, data: bytes, now: float) -> Received:
        """Take a datagram. Raises `MalformedDatagram` with a countable reason; nothing has changed then."""
        header = read_header(data)
        if header.direction is self.direction:
            raise MalformedDatagram("reflected")
        if header.kind in (Kind.HELLO, Kind.REPLY):
            self._handshake(header.kind, open_body(data, self._hello_key))
            return Received()
        keys = self._current
        if keys is None or header.session != keys.session:
            keys = self._candidate
            if keys is None or header.session != keys.session:
                raise MalformedDatagram("wrong-session")
        body = open_body(data, keys.theirs)
        if header.kind is Kind.HEARTBEAT:
            heartbeat = HeartbeatBody.decode(body)
            if header.counter <= keys.heartbeat:
                raise MalformedDatagram("replayed")
            keys.heartbeat = header.counter
            received = Received(header.epoch, heartbeat=heartbeat)
        else:
            records = decode_records(body)
            keys.records.check(header.counter)
            received = Received(header.epoch, records=records)
        self._heard_at = now
        if keys is not self._current:
            self._promote(keys)
            received.session_started = True
        return received

    def _handshake(self, kind: Kind, body: bytes) -> None:
        size = NONCE_BYTES * (1 if kind is Kind.HELLO else 2)
        if body[size:] != self._names(ours=False):
            raise MalformedDatagram("wrong-name")
        if kind is Kind.REPLY and body[:NONCE_BYTES] != self._nonce:
            raise MalformedDatagram("stale-reply")
        peer_nonce = body[size - NONCE_BYTES : size]
        keys = self._derive(peer_nonce)
        if keys.session in self._retired:
            raise MalformedDatagram("retired-session")
        known = self._current is not None and self._current.session == keys.session
        if not known and (self._candidate is None or self._candidate.session != keys.session):
            self._candidate = keys
        if kind is Kind.HELLO:
            self._hello(Kind.REPLY, peer_nonce + self._nonce)
        elif not known:
            self._prove(self._candidate)

    def _prove(self, keys: Keys | None) -> None:
        """An empty datagram under the session's key shows that we are alive in it."""
        self._outgoing.append(self._seal(keys, Kind.RECORDS, 0, b""))

    def _promote(self, keys: Keys) -> None:
        if self._current is not None:
            self._retired[self._current.session] = None
            if len(self._retired) > MAX_RETIRED:
                del self._retired[next(iter(self._retired))]
        self._current, self._candidate = keys, None
        self._prove(keys)

    def _derive(self, peer_nonce: bytes) -> Keys:
        settings, peer = self.settings, self.peer
        sides = sorted(((settings.name, self._nonce), (peer.name, peer_nonce)))
        context = b"".join(len(part).to_bytes(2, "big") + part for n, nonce in sides for part in (n.encode(), nonce))

        def key(label: bytes) -> bytes:
            return blake2s(context, key=self._master, person=label).digest()

        session = int.from_bytes(key(b"nfqfsess")[:8], "big")
        keys = (key(b"nfqfkey0"), key(b"nfqfkey1"))
        return Keys(session, keys[self.direction], keys[not self.direction], peer_nonce)
