"""Two sessions, `a` and `b`, whose datagrams the test carries by hand."""

from __future__ import annotations

from random import Random

from nfq_failover.core.pair.session import Received, Session
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from tests.support import configured

KEY = b"k" * 32
HOPS = 20  # more datagrams than any handshake needs


def make(name: str, peer: str, life: int = 1, key: bytes = KEY, interval_ms: int = 50) -> Session:
    """A daemon's session just after its start; another `life` draws other random numbers."""
    settings = configured.settings(
        name=name, peers=(configured.peer(peer),), key=key, heartbeat_interval_ms=interval_ms
    )
    return Session(settings, settings.peers[0], Random(f"{name} {life}").randbytes)


def drain(session: Session) -> list[bytes]:
    """All handshake datagrams that wait."""
    datagrams: list[bytes] = []
    while (data := session.poll_datagram()) is not None:
        datagrams.append(data)
    return datagrams


def hello(session: Session, now: float) -> bytes:
    """The HELLO that a timer brings, and nothing else."""
    session.on_timer(now)
    [data] = drain(session)
    return data


def refusal(session: Session, data: bytes, now: float = 0.0) -> str | None:
    """Why the session refuses a datagram, None if it does not."""
    try:
        session.receive(data, now)
    except MalformedDatagram as malformed:
        return malformed.reason
    return None


class SessionPair:
    """Both ends; `started[name]` counts the moves into a new session."""

    def __init__(self, a: Session, b: Session) -> None:
        self.ends = {"a": a, "b": b}
        self.started = {"a": 0, "b": 0}
        self.sent: list[tuple[str, bytes]] = []  # (receiver, datagram), all of them

    @property
    def agreed(self) -> bool:
        """Both are in the same session."""
        a, b = self.ends["a"], self.ends["b"]
        return a.established and a.session_id == b.session_id

    def deliver(self, name: str, data: bytes, now: float) -> Received | None:
        """Hand a datagram to one end; None if it was refused."""
        try:
            received = self.ends[name].receive(data, now)
        except MalformedDatagram:
            return None
        self.started[name] += received.session_started
        return received

    def collect(self) -> list[tuple[str, bytes]]:
        """What both ends want to send now."""
        waiting = [("b", data) for data in drain(self.ends["a"])] + [("a", data) for data in drain(self.ends["b"])]
        self.sent += waiting
        return waiting

    def exchange(self, now: float) -> None:
        """Carry everything, in order, until nobody has anything more to say."""
        for _ in range(HOPS):
            waiting = self.collect()
            if not waiting:
                return
            for name, data in waiting:
                self.deliver(name, data, now)
        raise AssertionError("the handshake does not end")

    def agree(self, now: float = 0.0) -> SessionPair:
        """`a` says HELLO; both are in the same session afterwards."""
        self.ends["a"].on_timer(now)
        self.exchange(now)
        if not self.agreed:
            raise AssertionError("no session")
        return self


def agreed_pair() -> SessionPair:
    """A pair in its first session."""
    return SessionPair(make("a", "b"), make("b", "a")).agree()


def template(session: Session, epoch: int = 1) -> HeartbeatTemplate:
    """What this end's heartbeat sender says."""
    return session.heartbeat_template(
        epoch=epoch, role=2, state=3, flags=1, stored_epoch=5, generation=7, echo_ms=11, release_after_ms=2300
    )
