"""What the hosts tell each other of themselves, once a second: how they are set up, and what is wrong with them."""

from __future__ import annotations

from dataclasses import replace

from nfq_failover.core.concerns import MAX_CLIENTS, MAX_OF_A_PEER, Concern, Concerns, Weight
from nfq_failover.core.ports import Ports
from nfq_failover.wire.records import (
    DECLARED,
    MAX_NEIGHBOURS,
    Concerned,
    Facts,
    Hindered,
    Listens,
    OnLink,
    Record,
    WallClock,
    read_numbers,
)

TELL_EVERY_S = 1.0
MAX_KNOWN = 1024  # neighbours that a peer has told
STALE_S = 5.0  # a peer that has told nothing for as long says nothing any more

Pairs = tuple[tuple[str, str], ...]
Neighbours = tuple[tuple[bytes, bytes], ...]


class Told:
    """What one peer has told of itself in the present session.

    `facts` are its settings and its kernel's by name, None before it has told them: an older version never does.
    `hardware` is its interface's hardware address, empty before it has told it; `neighbours` are the hardware addresses
    of its clients' neighbours, by their own. `lacks` are the numbers of the records that we know, and it does not.
    `clock` is its time of day in milliseconds since 1970, and when it came.
    `listens`: where its application listens, None if it does not say so (any more).
    """

    def __init__(self, peer: str, concerns: Concerns) -> None:
        """`concerns`: where the peer's are noted, too."""
        self.facts: dict[str, str] | None = None
        self.lacks: frozenset[int] = frozenset()
        self.peer = peer
        self._concerns = concerns
        self.hardware = b""
        self.clock: tuple[int, float] | None = None
        self.neighbours: dict[bytes, bytes] = {}
        self._hindered: dict[str, tuple[bytes, ...]] = {}  # by code: of the concerns that are told next
        self.listens: Listens | None = None
        self._heard_at: float | None = None
        self._listens_at = 0.0

    def session_started(self) -> None:
        """Forget how it was set up: its daemon has restarted, perhaps with other settings."""
        self.facts = None
        self.lacks = frozenset()
        self.listens = None
        self.hardware = b""
        self.clock = None
        self.neighbours.clear()
        self._hindered.clear()

    def take(self, record: Record, now: float) -> None:
        """Take a record that is for a host as a whole."""
        if isinstance(record, Facts):
            self.facts = dict(record.facts)
            known = read_numbers(self.facts.get("records", ""))
            self.lacks = frozenset(DECLARED) - known if known else frozenset()
        elif isinstance(record, OnLink):
            self.hardware = record.hardware
            for address, hardware in record.neighbours:
                self.neighbours.pop(address, None)
                self.neighbours[address] = hardware  # the last to be forgotten
            for address in list(self.neighbours)[:-MAX_KNOWN]:
                del self.neighbours[address]
        elif isinstance(record, WallClock):
            self.clock = record.ms, now
        elif isinstance(record, Hindered):
            if len(self._hindered) < MAX_OF_A_PEER:
                self._hindered[record.code] = record.clients[:MAX_CLIENTS]
        elif isinstance(record, Listens):
            self.listens, self._listens_at = record, now
        elif isinstance(record, Concerned):
            self._heard_at = now
            hindered, self._hindered = self._hindered, {}
            told = (replace(_concern(*each), clients=hindered.get(each[1], ())) for each in record.concerns)
            self._concerns.told(self.peer, told, now)

    def on_timer(self, now: float) -> None:
        """Forget what is wrong with a peer that does not say so any more."""
        if self._heard_at is not None and now - self._heard_at > STALE_S:
            self._heard_at = None
            self._concerns.told(self.peer, (), now)
        if self.listens is not None and now - self._listens_at > STALE_S:
            self.listens = None


def _concern(weight: int, code: str, what: str, cure: str) -> Concern:
    """What a peer says; of a later version's weights we know only that they are heavy."""
    known = weight in frozenset(Weight)
    return Concern(code, Weight(weight) if known else Weight.UNPROTECTED, what, cure)


class Telling:
    """Says when the peers are to be told again, and what: `facts` and what is wrong with this host."""

    def __init__(self, concerns: Concerns, facts: Pairs) -> None:
        self.facts = facts
        self._concerns = concerns
        self._hardware = b""
        self._neighbours: Neighbours = ()
        self._ahead_s: float | None = None
        self._listens: Listens | None = None
        self._version = -1
        self._next = 0.0

    def set_facts(self, facts: Pairs) -> None:
        """This host is set up in another way than before."""
        if facts != self.facts:
            self.facts = facts
            self.soon()

    def on_link(self, hardware: bytes, neighbours: Neighbours) -> None:
        """This is what the service's segment is like."""
        if hardware != self._hardware:
            self.soon()  # before the peer takes this host for a stranger
        self._hardware, self._neighbours = hardware, neighbours

    def listening(self, where: Ports | None) -> None:
        """The application listens at these ports now; None: nobody knows."""
        listens = None if where is None else Listens(where)
        if listens != self._listens:
            self._listens = listens
            self.soon()

    def soon(self) -> None:
        """Tell them at the next opportunity."""
        self._next = 0.0

    def clock_is(self, ahead_s: float) -> None:
        """The time of day, in seconds since 1970, is so far ahead of our monotonic clock."""
        self._ahead_s = ahead_s

    def wall_clock(self, now: float) -> WallClock | None:
        """Our time of day; None while it is not known."""
        return None if self._ahead_s is None else WallClock(max(0, round((now + self._ahead_s) * 1000)))

    @property
    def concerns(self) -> tuple[tuple[int, str, str, str], ...]:
        """What is wrong with this host, as it is told."""
        return tuple((int(each.weight), each.code, each.what, each.cure) for each in self._concerns.own)

    def due(self, now: float) -> list[Record]:
        """The records that every peer is to be sent now."""
        if now < self._next and self._version == self._concerns.version:
            return []
        self._next, self._version = now + TELL_EVERY_S, self._concerns.version
        own = self._concerns.own
        told: list[Record] = [Facts(self.facts), *(Hindered(each.code, each.clients) for each in own if each.clients)]
        told.append(Concerned(self.concerns))  # after what belongs to it
        if (clock := self.wall_clock(now)) is not None:
            told.append(clock)
        if self._hardware:
            some, rest = self._neighbours[:MAX_NEIGHBOURS], self._neighbours[MAX_NEIGHBOURS:]
            self._neighbours = rest + some  # each in its turn
            told.append(OnLink(self._hardware, some))
        if self._listens is not None:
            told.append(self._listens)
        return told
