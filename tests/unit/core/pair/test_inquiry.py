"""A daemon is asked how its host is set up: who gets an answer, how often, and what is in it."""

from __future__ import annotations

from random import Random

import pytest

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import ClockRead, SendDatagram, StrangerHeard
from nfq_failover.core.node import Node
from nfq_failover.core.pair.agreement import LARGEST_RECORD, UDP_HEADERS
from nfq_failover.core.pair.inquiry import ANSWER_EVERY_S, Inquiry
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.datagram import HEADER, is_question
from nfq_failover.wire.inquiry import MAX_PARTS, Answer, Question, answers
from nfq_failover.wire.records import Facts
from tests.support import configured
from tests.support.session_pair import make, refusal

KEY = b"k" * 32
A, B = ("10.77.0.2", 7766), ("10.77.0.3", 7766)
DOCTOR = (A[0], 40000)  # on the host of `a`, beside its daemon or without


class Daemon:
    """The node of `b`, which nobody has ever heard, and what it sends."""

    def __init__(self, key: bytes = KEY) -> None:
        settings = configured.settings(name="b", peers=(configured.peer("a", *A),), key=key)
        self.node = Node(settings, Random(1).randbytes, 0, False, 100.0)
        self.node.handle(ClockRead(1000.0), 100.0)
        self.drain()

    def drain(self) -> list[SendDatagram]:
        sent = []
        while (effect := self.node.poll_effect()) is not None:
            if isinstance(effect, SendDatagram):
                sent.append(effect)
        return sent

    def hear(self, data: bytes, source: tuple[str, int] = DOCTOR, now: float = 101.0) -> list[SendDatagram]:
        self.node.handle(StrangerHeard(source, data), now)
        return self.drain()

    def refused(self, reason: str) -> int:
        return self.node.out.counters[f"question-{reason}"]


def inquiry(name: str = "a", peer: str = "b", key: bytes = KEY, life: int = 1) -> Inquiry:
    settings = configured.settings(name=name, peers=(configured.peer(peer, *B),), key=key)
    return Inquiry(settings, settings.peers[0], Random(life).randbytes)


def test_the_answer_has_facts_concerns_and_the_clock() -> None:
    daemon, asked = Daemon(), inquiry()
    daemon.node.out.concerns.raised("x", Concern("disk", Weight.DEGRADED, "the disk is full", "mend it"), 100.5)
    daemon.node.out.concerns.told("a", [Concern("of-the-peer", Weight.DEGRADED, "not ours")], 100.5)
    sent = daemon.hear(asked.question())
    assert {each.destination for each in sent} == {DOCTOR}
    assert all(asked.take(each.data) for each in sent)
    assert asked.complete
    assert asked.facts == daemon.node.agreement.own
    assert asked.facts["service"] == "10.77.0.100"
    assert [(weight, code) for weight, code, *_ in asked.concerns][:1] == [(Weight.DEGRADED, "disk")]
    assert "of-the-peer" not in {code for _, code, *_ in asked.concerns}
    assert asked.clock_ms == (101 + 1000) * 1000


def test_a_question_changes_nothing() -> None:
    daemon = Daemon()
    link = daemon.node.protector
    before = (link.session.established, link.session.heard_at, daemon.node.members.state, link.told.facts)
    daemon.hear(inquiry().question())
    daemon.hear(inquiry().question(), A, 102.0)
    assert (link.session.established, link.session.heard_at, daemon.node.members.state, link.told.facts) == before


@pytest.mark.parametrize(
    ("data", "source", "reason"),
    [
        (inquiry(key=b"x" * 32).question(), DOCTOR, "bad-mac"),
        (inquiry(peer="c").question(), DOCTOR, "wrong-name"),
        (inquiry(name="c").question(), DOCTOR, "wrong-name"),
        (inquiry().question(), ("10.77.0.9", 40000), "wrong-source"),
        (inquiry(name="b", peer="a").question(), DOCTOR, "wrong-name"),
        (inquiry().question()[:-1], DOCTOR, "bad-mac"),
    ],
)
def test_who_may_not_ask_gets_nothing(data: bytes, source: tuple[str, int], reason: str) -> None:
    daemon = Daemon()
    assert daemon.hear(data, source) == []
    assert daemon.refused(reason) == 1


def test_the_rate_is_bounded_whoever_asks() -> None:
    daemon = Daemon()
    assert daemon.hear(inquiry().question(), now=101.0)
    for number in range(100):
        assert not daemon.hear(inquiry(life=number).question(), now=101.0 + ANSWER_EVERY_S * number / 101)
    assert daemon.refused("too-soon") == 100
    assert daemon.hear(inquiry().question(), now=101.0 + ANSWER_EVERY_S)


def test_what_has_no_key_does_not_use_the_rate_up() -> None:
    daemon = Daemon()
    assert not daemon.hear(inquiry(key=b"x" * 32).question())
    assert daemon.hear(inquiry().question())


def test_only_the_answer_to_this_question_counts() -> None:
    daemon, asked = Daemon(), inquiry()
    old = daemon.hear(inquiry(life=7).question())
    assert not any(asked.take(each.data) for each in old)
    other = Daemon(key=b"x" * 32).hear(inquiry(key=b"x" * 32).question())
    assert not any(asked.take(each.data) for each in other)
    assert not asked.take(asked.question())
    assert not asked.complete


def test_parts_of_two_answers_are_not_mixed() -> None:
    daemon, asked = Daemon(), inquiry()
    for code in "xyz":
        daemon.node.out.concerns.raised(code, Concern(code, Weight.WARNING, "w" * 255, "c" * 255), 100.5)
    first = [each.data for each in daemon.hear(asked.question())]
    second = [each.data for each in daemon.hear(asked.question(), now=102.0)]
    assert len(first) == len(second) > 1
    for data in (*first[:1], *second[1:]):
        assert asked.take(data)
    assert not asked.complete
    assert asked.take(second[0])
    assert asked.clock_ms == (102 + 1000) * 1000


def test_a_session_takes_neither_question_nor_answer() -> None:
    [told, *_] = Daemon().hear(inquiry().question())
    assert refusal(make("b", "a"), inquiry().question()) == "of-no-session"
    assert refusal(make("a", "b"), told.data) == "of-no-session"


# ------------------------------------------------------------------------------------ the bytes


def test_no_part_is_longer_than_the_least_path() -> None:
    daemon = Daemon()
    for number in range(60):
        concern = Concern(f"code-{number}", Weight.WARNING, "w" * 255, "c" * 255)
        daemon.node.out.concerns.raised(str(number), concern, 100.5)
    sent = daemon.hear(inquiry().question())
    assert len(sent) == MAX_PARTS
    assert max(len(each.data) for each in sent) <= LARGEST_RECORD - UDP_HEADERS


def test_what_fits_into_no_part_is_left_out() -> None:
    huge = Facts(tuple((f"{number}", "x" * 255) for number in range(5)))
    small = Facts((("a", "b"),))
    (part,) = answers(bytes(16), ("b", "a"), [huge, small], 600)
    assert part.records == (small,)


@pytest.mark.parametrize("body", [b"", bytes(16), bytes(18), bytes(16) + b"\2\2\0", bytes(16) + b"\0\1\7abc"])
def test_malformed_answers_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedDatagram):
        Answer.decode(body)


def test_malformed_questions_are_refused() -> None:
    with pytest.raises(MalformedDatagram):
        Question.decode(bytes(16))


def test_question_is_seen_by_its_kind() -> None:
    assert is_question(inquiry().question())
    assert is_question(inquiry(name="c").question())
    assert not is_question(b"") and not is_question(b"\2") and not is_question(bytes(HEADER.size))
