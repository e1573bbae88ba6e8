"""A host is asked how it is set up, outside of any session: by the doctor, while only one of the two daemons runs.

Question and answer are sealed with the key of the handshake. The daemon that answers keeps nothing of the question, and
answers at a bounded rate; who does not have the key gets no answer. The answer has the facts that are compared
(core/pair/agreement.py), what is wrong with the host, and its clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nfq_failover.core.events import SendDatagram, StrangerHeard
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.agreement import datagram_bytes
from nfq_failover.core.pair.session import handshake_key
from nfq_failover.core.pair.told import Telling
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.datagram import NONCE_BYTES, Header, Kind, open_body, read_header, seal
from nfq_failover.wire.inquiry import Answer, Question, answers
from nfq_failover.wire.records import Concerned, Facts, Record, WallClock

ANSWER_EVERY_S: Final = 0.1  # a question that comes sooner is not answered: who asks repeats it
_FACTS_AT_ONCE: Final = 8  # in one record, so that no record is too long for a part


class Answering:
    """Answers the questions of peers. Whoever has the key may say a recorded question again: it is answered, to the
    peer's address, and tells nothing to anybody else."""

    def __init__(self, settings: Settings, telling: Telling, out: Outbox) -> None:
        self._settings = settings
        self._telling = telling
        self._out = out
        self._key = handshake_key(settings.key)
        self._next = float("-inf")
        self._answered = 0

    def asked(self, event: StrangerHeard, now: float) -> None:
        """Answer a question, if it is a peer's, from the peer's address."""
        try:
            question, peer = self._judge(event)
        except MalformedDatagram as error:
            self._out.counters[f"question-{error.reason}"] += 1
            return
        if now < self._next:
            self._out.counters["question-too-soon"] += 1
            return
        self._next = now + ANSWER_EVERY_S
        self._answered += 1
        self._out.counters["questions-answered"] += 1
        names = (self._settings.name, peer.name)
        direction = self._settings.name > peer.name
        for part in answers(question.nonce, names, self._records(now), datagram_bytes(None)):
            data = seal(Header(Kind.TOLD, direction, 0, 0, self._answered), part.encode(), self._key)
            self._out.effects.append(SendDatagram(event.source, data))

    def _judge(self, event: StrangerHeard) -> tuple[Question, Peer]:
        """The question, and who asks. Raises `MalformedDatagram`."""
        header = read_header(event.data)
        question = Question.decode(open_body(event.data, self._key))
        asking, asked = question.names
        for peer in self._settings.peers:
            if (peer.name, self._settings.name) != (asking, asked):
                continue
            if header.kind is not Kind.ASK or header.direction is not (peer.name > self._settings.name):
                raise MalformedDatagram("reflected")
            if event.source[0] != peer.address:
                raise MalformedDatagram("wrong-source")
            return question, peer
        raise MalformedDatagram("wrong-name")

    def _records(self, now: float) -> list[Record]:
        facts, concerns = self._telling.facts, self._telling.concerns
        records: list[Record] = [] if (clock := self._telling.wall_clock(now)) is None else [clock]
        records += [Facts(facts[at : at + _FACTS_AT_ONCE]) for at in range(0, len(facts), _FACTS_AT_ONCE)]
        return records + [Concerned((each,)) for each in concerns]


class Inquiry:
    """One question to a peer, and what has come of its answer.

    `facts`, `concerns` as (weight, code, what, cure), and `clock_ms`, the peer's time of day in milliseconds since 1970
    (None if it has not told it), are whole when `complete` is true.
    """

    def __init__(self, settings: Settings, peer: Peer, rng: Callable[[int], bytes]) -> None:
        self._names = (settings.name, peer.name)
        self._direction = settings.name > peer.name
        self._key = handshake_key(settings.key)
        self._nonce = rng(NONCE_BYTES)
        self._parts: dict[int, dict[int, Answer]] = {}  # of each answer, by its number
        self.complete = False
        self.facts: dict[str, str] = {}
        self.concerns: list[tuple[int, str, str, str]] = []
        self.clock_ms: int | None = None

    def question(self) -> bytes:
        """The datagram that asks; it can be repeated."""
        body = Question(self._nonce, self._names).encode()
        return seal(Header(Kind.ASK, self._direction, 0, 0, 0), body, self._key)

    def take(self, data: bytes) -> bool:
        """Take a datagram. Returns whether it is a part of the peer's answer to this question."""
        try:
            header = read_header(data)
            if header.kind is not Kind.TOLD or header.direction is self._direction:
                return False
            part = Answer.decode(open_body(data, self._key))
        except MalformedDatagram:
            return False
        if part.nonce != self._nonce or part.names != self._names[::-1]:
            return False
        parts = self._parts.setdefault(header.counter, {})
        parts[part.part] = part
        if len(parts) == part.parts:
            self.complete = True
            self._read([parts[number] for number in sorted(parts)])
        return True

    def _read(self, parts: list[Answer]) -> None:
        self.facts.clear()
        self.concerns.clear()
        for part in parts:
            for record in part.records:
                if isinstance(record, Facts):
                    self.facts.update(record.facts)
                elif isinstance(record, Concerned):
                    self.concerns.extend(record.concerns)
                elif isinstance(record, WallClock):
                    self.clock_ms = record.ms
