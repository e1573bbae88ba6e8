"""The links to the peers: of each the session, its heartbeats and ours, and the records that wait for the way to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nfq_failover.core.events import PublishHeartbeat, SendDatagram, StrangerHeard, Undelivered
from nfq_failover.core.outbox import Lane, Outbox
from nfq_failover.core.pair.diagnosis import Diagnosis
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.pair.session import Received, Session
from nfq_failover.core.pair.told import Told
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import MalformedDatagram, WrongName
from nfq_failover.wire.heartbeat import HeartbeatBody
from nfq_failover.wire.records import Record

_ROLES, _STATES = frozenset(Role), frozenset(State)


class Link:
    """Everything of this host that belongs to one peer.

    `session` authenticates its datagrams and ours; `view` is the peer as its heartbeats show it; `told` is what it has
    told of itself; `diagnosis` finds out why it is not heard; `lane` holds the records for the next datagram. `rng(n)`
    returns n random bytes. What is to be sent goes into `out`.
    """

    def __init__(self, settings: Settings, peer: Peer, rng: Callable[[int], bytes], out: Outbox, now: float) -> None:
        self.settings = settings
        self.peer = peer
        self.source = (peer.address, peer.port)
        self.session = Session(settings, peer, rng)
        self.view = PeerView(settings, peer.name, now)
        self.told = Told(peer.name, out.concerns)
        self.diagnosis = Diagnosis(settings, peer, out, now)
        self.lane: Lane = []
        self._out = out
        self._published = b""
        self._peer_sent_ms = 0  # of the latest heartbeat that has come
        self._echo_ms = 0  # of the latest one whose sender's loop was making progress

    # ------------------------------------------------------------------------------------ receiving

    def receive(self, data: bytes, now: float) -> Received:
        """Take a datagram of the peer. What is returned has no heartbeat if it says nothing that is still true.

        Raises `MalformedDatagram` if it is not the peer's, or nothing that this session may receive. The answers of a
        handshake wait for `send_handshake`.
        """
        received = self.session.receive(data, now)
        if received.session_started:
            self._out.log("info", "session established", peer=self.peer.name)
            self.view.monitor.reset(now)
            self.told.session_started()
            self._peer_sent_ms = self._echo_ms = 0
        elif received.records or received.unknown:
            self.view.monitor.spoke(now)
        if received.greeting:
            self.diagnosis.greeted(now)
        if received.unknown:
            self._out.counters["record-unknown"] += len(received.unknown)
        if received.heartbeat is not None and not self._take(received.heartbeat, received.epoch, now):
            return replace(received, heartbeat=None)
        return received

    def stranger(self, event: StrangerHeard, now: float) -> None:
        """Judge a datagram from where the peer is not expected: it may be the peer's all the same."""
        names = self.session.introduces(event.data)
        if names == (self.peer.name, self.settings.name):
            self.diagnosis.elsewhere(event.source, now)
        elif event.source[0] == self.peer.address or (names is not None and self.peer.name not in names):
            why = MalformedDatagram("bad-mac") if names is None else WrongName(*names)
            self.diagnosis.refused(why, event.source, event.data, now)

    def _take(self, body: HeartbeatBody, epoch: int, now: float) -> bool:
        counters = self._out.counters
        if body.role not in _ROLES or body.state not in _STATES:
            counters["heartbeat-unknown-state"] += 1  # of a later version: silence is safer than a guess
            return False
        if body.sent_ms < self._peer_sent_ms:
            counters["heartbeat-overtaken"] += 1
            return False
        self._peer_sent_ms = body.sent_ms
        self.view.heard(body, epoch, now)
        if body.loop_age_ms < self.settings.loop_stall_ms:
            self._echo_ms = body.sent_ms
        else:
            counters["heartbeat-of-stalled-peer"] += 1
        return True

    # ------------------------------------------------------------------------------------ sending

    def on_timer(self, now: float) -> None:
        """Let time pass in the session, and send what its handshake has to say."""
        self.session.on_timer(now)
        self.told.on_timer(now)
        self.send_handshake()
        self.diagnosis.on_timer(self.session.heard_at, now)

    def send_handshake(self) -> None:
        """Send what the session's handshake has to say."""
        # Ends: each turn takes a datagram out, and none is added.
        while (data := self.session.poll_datagram()) is not None:
            self.diagnosis.sent()
            self._out.effects.append(SendDatagram(self.source, data))

    def seal(self, epoch: int) -> None:
        """Send the records of the lane; without a session they are dropped, and counted."""
        records = self.lane.copy()
        self.lane.clear()
        if not self.session.established:
            self._out.counters["record-without-session"] += len(records)
            return
        if self.told.lacks:
            records = [said for record in records if (said := self._said(record)) is not None]
        for data in self.session.seal(records, epoch):
            self._out.effects.append(SendDatagram(self.source, data))

    def _said(self, record: Record | None) -> Record | None:
        """What a peer of another version is told instead of a record, if it does not know it; None for nothing."""
        # Ends: what is said instead is of an earlier version, each time.
        while record is not None and record.number in self.told.lacks:
            record = record.instead()
            if record is None:
                self._out.counters["record-not-known-there"] += 1
        return record

    def publish(self, members: Membership) -> None:
        """Say this host's state, and the peer's latest clock, in every heartbeat from now on."""
        if not self.session.established:
            return
        template = self.session.heartbeat_template(
            epoch=members.epoch,
            role=int(members.role),
            state=int(members.state),
            flags=members.flags,
            stored_epoch=members.stored_epoch,
            generation=members.generation,
            echo_ms=self._echo_ms,
            release_after_ms=self.settings.release_after_ms,
            pact=members.pact.high,
            lease_ms=self.settings.lease_ms,
        ).encode()
        if template != self._published:
            self._published = template
            self._out.effects.append(PublishHeartbeat(self.peer.name, self.source, template))

    def republish(self, members: Membership) -> None:
        """Say it once more: the heartbeat sender has forgotten what to say."""
        self._published = b""
        self.publish(members)


class Links:
    """All links of a host, by the names of its peers.

    The peers of the settings are in the order in which they follow this host in a ring. The next one protects its
    connections (`protector`), and it shadows those of the one before it (`shadowed`); in a pair the only other host is
    both. Raises `ValueError` if there is no peer.
    """

    def __init__(self, settings: Settings, rng: Callable[[int], bytes], out: Outbox, now: float) -> None:
        self.by_name = {peer.name: Link(settings, peer, rng, out, now) for peer in settings.peers}
        self.all = tuple(self.by_name.values())
        self.protector, *others = self.all
        self.shadowed = others[-1] if others else self.protector
        self._out = out
        self._by_source = {link.source: (link,) for link in self.all}

    def receive(self, source: tuple[str, int], data: bytes, now: float) -> tuple[Link, Received] | None:
        """Give a datagram to the link to its source or, if it is from elsewhere, to the one that can authenticate it.

        Returns None if it is refused, which is counted.
        """
        refused = ""
        for link in self._by_source.get(source, self.all):
            try:
                return link, link.receive(data, now)
            except MalformedDatagram as error:
                link.diagnosis.refused(error, source, data, now)
                refused = error.reason
        self._out.counters[f"datagram-{refused}"] += 1
        return None

    @property
    def told(self) -> tuple[Told, ...]:
        """What each peer has told of itself."""
        return tuple(link.told for link in self.all)

    def clue(self, event: StrangerHeard | Undelivered, now: float) -> None:
        """Note what may tell why a peer is not heard."""
        for link in self.all:
            if isinstance(event, StrangerHeard):
                link.stranger(event, now)
            elif event.destination == link.source:
                link.diagnosis.undelivered(event, now)

    def tell(self, records: list[Record]) -> None:
        """Send every peer that there is a session with the same records."""
        for link in self.all:
            if link.session.established:
                link.lane.extend(records)

    def on_timer(self, now: float) -> None:
        """Let time pass in all sessions."""
        for link in self.all:
            link.on_timer(now)

    def poll_timeout(self) -> float:
        """When `on_timer` has something to do."""
        earliest = self.protector.session.poll_timeout()
        for link in self.all[1:]:
            earliest = min(earliest, link.session.poll_timeout())
        return earliest

    def publish(self, members: Membership) -> None:
        """Say this host's state in every heartbeat from now on."""
        for link in self.all:
            link.publish(members)

    def republish(self, members: Membership) -> None:
        """Say it once more, since the heartbeat sender has forgotten what to say."""
        for link in self.all:
            link.republish(members)
