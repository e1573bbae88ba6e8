"""An authenticated session with one peer.

Each daemon draws a nonce when it starts. The session's number and its two keys are derived from the long-term key, both
nonces and both names (ordered by name, so that crossing handshakes agree): a session belongs to exactly one life of
each daemon.

    HELLO   our nonce, our challenge                              stateless: it is answered, and changes nothing
    REPLY   our nonce, our challenge, your nonce, your challenge  moves the receiver into the session of the two nonces

A REPLY counts only if it returns our nonce and our present challenge, a random number that is replaced whenever we move
into another session. So it was made by the life of the peer that followed the one we were in, and nothing that was
recorded, held back or delayed can take us out of a living session and back into a dead one. The header's session number
says which session the sender is in; a host that learns from a REPLY that the sender is in another one answers with a
REPLY of its own. A restarted peer thus has its new session after HELLO, REPLY, REPLY, however alive the old one looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2s
from math import inf

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import InternalError, MalformedDatagram, WrongName
from nfq_failover.wire.datagram import (
    CHALLENGE_BYTES,
    NONCE_BYTES,
    OVERHEAD,
    Header,
    Kind,
    open_body,
    read_header,
    seal,
)
from nfq_failover.wire.heartbeat import HeartbeatBody, HeartbeatTemplate
from nfq_failover.wire.records import Record, decode_records, encode_record

WINDOW = 1024
HELLO_MIN_S = 0.02
HELLO_MAX_S = 1.0
MAX_RETIRED = 4096  # lives of the peer's daemon during one of ours
MAX_OUTGOING = 16


class ReplayWindow:
    """The record of which counters have been seen, over the last `WINDOW` of them (as in RFC 6479)."""

    __slots__ = ("_bits", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._bits = 0

    def check(self, counter: int) -> None:
        """Note a counter. Raises `MalformedDatagram` if it has been seen before, or is too old to tell."""
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
    """One session: its number, a key for each direction, and what has been received in it.

    Heartbeats need their highest counter only: one that was overtaken says nothing that is still true.
    """

    session: int
    ours: bytes
    theirs: bytes
    records: ReplayWindow = field(default_factory=ReplayWindow)
    heartbeat: int = -1


@dataclass(slots=True)
class Received:
    """What an accepted datagram has brought: its epoch and its contents, or, from a handshake, whether a session has
    begun. `greeting`: a handshake that proves no more than the key, and may be a recording."""

    epoch: int = 0
    session_started: bool = False
    greeting: bool = field(default=False, compare=False)
    heartbeat: HeartbeatBody | None = None
    records: list[Record] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)  # numbers of records that a later version has sent


def _master(key: bytes) -> bytes:
    return blake2s(key, person=b"nfqfmast").digest()


def handshake_key(key: bytes) -> bytes:
    """The key of all that belongs to no session, from the long-term one of the pair."""
    return blake2s(key=_master(key), person=b"nfqfhand").digest()


def _introduction(kind: Kind) -> int:
    """The bytes before the names in a handshake's body."""
    return (NONCE_BYTES + CHALLENGE_BYTES) * (1 if kind is Kind.HELLO else 2)


def _read_names(names: bytes) -> tuple[str, str]:
    sender, _, receiver = names.decode(errors="replace").partition("\0")
    return sender, receiver


class Session:
    """The session with one peer; see the module's text. `rng(n)` returns n random bytes.

    Drain `poll_datagram` after every call of `receive` and `on_timer`.
    """

    def __init__(self, settings: Settings, peer: Peer, rng: Callable[[int], bytes]) -> None:
        self.settings = settings
        self.peer = peer
        self.direction = settings.name > peer.name
        self._rng = rng
        self._nonce = rng(NONCE_BYTES)
        self._challenge = rng(CHALLENGE_BYTES)
        self._master = _master(settings.key)
        self._hello_key = handshake_key(settings.key)
        self._current: Keys | None = None
        self._retired: dict[int, None] = {}
        self._counter = 0
        self._hello_counter = 0
        self.datagram_bytes = MAX_DATAGRAM  # that fit into both hosts' MTU
        self._outgoing: deque[bytes] = deque(maxlen=MAX_OUTGOING)
        self._heard_at: float | None = None
        self.heard_at = -inf  # the latest datagram of any session
        self.refused = 0  # datagrams that were not believed, and those of handshakes, which anybody may say again
        self._next_hello = 0.0

    # ------------------------------------------------------------------------------------ views

    @property
    def established(self) -> bool:
        """Whether records and heartbeats can be sent: the peer has proved that it is alive in the current session."""
        return self._current is not None

    @property
    def session_id(self) -> int | None:
        """The number of the current session."""
        return self._current.session if self._current else None

    def tables(self) -> dict[str, int]:
        """How many entries the session's stores have."""
        return {
            "session_window": WINDOW,
            "session_retired": len(self._retired),
            "session_outgoing": len(self._outgoing),
        }

    # ------------------------------------------------------------------------------------ sending

    def fit(self, datagram_bytes: int) -> None:
        """Make no datagram longer than that, but for one with a single record."""
        self.datagram_bytes = datagram_bytes

    def seal(self, records: list[Record], epoch: int) -> list[bytes]:
        """Put the records, in order, into as few datagrams as possible. Raises `InternalError` without a session."""
        keys = self._present()
        datagrams: list[bytes] = []
        body = b""
        room = self.datagram_bytes - OVERHEAD
        for record in records:
            encoded = encode_record(record)
            if body and len(body) + len(encoded) > room:
                datagrams.append(self._seal(keys, epoch, body))
                body = b""
            body += encoded
        if body:
            datagrams.append(self._seal(keys, epoch, body))
        return datagrams

    def _present(self) -> Keys:
        if self._current is None:
            raise InternalError("there is no session yet")
        return self._current

    def _seal(self, keys: Keys, epoch: int, body: bytes) -> bytes:
        self._counter += 1
        return seal(Header(Kind.RECORDS, self.direction, keys.session, epoch, self._counter), body, keys.ours)

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
        pact: int = 0,
        lease_ms: int = 0,
    ) -> HeartbeatTemplate:
        """Make what the heartbeat sender is to say. Raises `InternalError` without a session."""
        keys = self._present()
        body = HeartbeatBody(
            role, state, flags, stored_epoch, generation, 0, 0, echo_ms, release_after_ms, pact, lease_ms
        )
        return HeartbeatTemplate(keys.session, keys.ours, self.direction, epoch, body)

    def poll_datagram(self) -> bytes | None:
        """Take out the next datagram of the handshake, None if there is none."""
        return self._outgoing.popleft() if self._outgoing else None

    # ------------------------------------------------------------------------------------ time

    def poll_timeout(self) -> float:
        """When `on_timer` has something to do."""
        return self._next_hello

    def on_timer(self, now: float) -> None:
        """Say HELLO while there is no session, or while nothing is heard in it."""
        if now < self._next_hello:
            return
        interval = min(max(self.settings.heartbeat_interval_ms / 1000, HELLO_MIN_S), HELLO_MAX_S)
        self._next_hello = now + interval
        silent = self._heard_at is None or now - self._heard_at > self.settings.detection_ms / 1000
        if self._current is None or silent:
            self._say(Kind.HELLO)

    def _say(self, kind: Kind, returned: bytes = b"") -> None:
        """Queue a datagram of the handshake. `returned`: the peer's nonce and challenge, in a REPLY."""
        self._hello_counter += 1
        header = Header(kind, self.direction, self.session_id or 0, 0, self._hello_counter)
        self._outgoing.append(seal(header, self._nonce + self._challenge + returned + self._names(), self._hello_key))

    def _names(self, ours: bool = True) -> bytes:
        pair = (self.settings.name, self.peer.name) if ours else (self.peer.name, self.settings.name)
        return "\0".join(pair).encode()

    # ------------------------------------------------------------------------------------ receiving

    def receive(self, data: bytes, now: float) -> Received:
        """Take a datagram. Raises `MalformedDatagram` with a countable reason; only `refused` has changed then."""
        try:
            header = read_header(data)
            if header.kind in (Kind.HELLO, Kind.REPLY):
                self.refused += 1
                return self._handshake(header, open_body(data, self._hello_key))
            if header.kind in (Kind.ASK, Kind.TOLD):
                raise MalformedDatagram("of-no-session")
            if header.direction is self.direction:
                raise MalformedDatagram("reflected")
            keys = self._current
            if keys is None or header.session != keys.session:
                raise MalformedDatagram("wrong-session")
            body = open_body(data, keys.theirs)
            if header.kind is Kind.HEARTBEAT:
                if header.counter <= keys.heartbeat:
                    raise MalformedDatagram("replayed" if header.counter == keys.heartbeat else "too-old")
                received = Received(header.epoch, heartbeat=HeartbeatBody.decode(body))
                keys.heartbeat = header.counter
            else:
                received = Received(header.epoch)
                received.records = decode_records(body, received.unknown)
                keys.records.check(header.counter)
        except MalformedDatagram:
            self.refused += 1
            raise
        self._heard_at = self.heard_at = now
        return received

    def _handshake(self, header: Header, body: bytes) -> Received:
        size = _introduction(header.kind)
        if body[size:] != self._names(ours=False):
            if body[:NONCE_BYTES] == self._nonce:
                raise MalformedDatagram("reflected")
            raise WrongName(*_read_names(body[size:]))
        theirs = body[: NONCE_BYTES + CHALLENGE_BYTES]
        if header.kind is Kind.HELLO:
            self._say(Kind.REPLY, theirs)
            return Received(greeting=True)
        returned = body[NONCE_BYTES + CHALLENGE_BYTES : size]
        keys = self._derive(theirs[:NONCE_BYTES])
        started = keys.session != self.session_id
        if started:
            if returned != self._nonce + self._challenge:
                raise MalformedDatagram("stale-reply")
            if keys.session in self._retired:
                raise MalformedDatagram("retired-session")
            self._move(keys)
        if header.session != keys.session:
            self._say(Kind.REPLY, theirs)
        if started:
            # It carries no record, but the peer learns at once that we have arrived.
            self._outgoing.append(self._seal(keys, 0, b""))
        return Received(session_started=started, greeting=not started)

    def introduces(self, data: bytes) -> tuple[str, str] | None:
        """The sender's name and the receiver's in a datagram of a handshake, None if it is none with our key. It is not
        taken, wherever it comes from."""
        try:
            header = read_header(data)
            return _read_names(open_body(data, self._hello_key)[_introduction(header.kind) :])
        except MalformedDatagram:
            return None

    def answered_by(self, data: bytes) -> bool:
        """Whether a datagram is the peer's REPLY to a HELLO of ours: it hears us, and we hear it. It is not taken."""
        try:
            header = read_header(data)
            body = open_body(data, self._hello_key)
        except MalformedDatagram:
            return False
        ours = self._nonce + self._challenge
        return header.kind is Kind.REPLY and body[len(ours) :] == ours + self._names(ours=False)

    def _move(self, keys: Keys) -> None:
        if self._current is not None:
            self._retired[self._current.session] = None
            if len(self._retired) > MAX_RETIRED:
                del self._retired[next(iter(self._retired))]
        self._current = keys
        self._challenge = self._rng(CHALLENGE_BYTES)
        self._heard_at = None

    def _derive(self, peer_nonce: bytes) -> Keys:
        settings, peer = self.settings, self.peer
        sides = sorted(((settings.name, self._nonce), (peer.name, peer_nonce)))
        context = b"".join(len(part).to_bytes(2, "big") + part for n, nonce in sides for part in (n.encode(), nonce))

        def key(label: bytes) -> bytes:
            return blake2s(context, key=self._master, person=label).digest()

        session = int.from_bytes(key(b"nfqfsess")[:8], "big")
        keys = (key(b"nfqfkey0"), key(b"nfqfkey1"))
        return Keys(session, keys[self.direction], keys[not self.direction])
