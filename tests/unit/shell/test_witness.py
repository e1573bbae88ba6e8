"""The witness and its clients: real datagrams, decisions on disk, and what is refused."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_failover.config.fence import WitnessPlan
from nfq_failover.core.events import AskWitness, WitnessAnswered
from nfq_failover.errors import CommandError, ConfigError, MalformedDatagram
from nfq_failover.shell.fencing.witness_client import WitnessClient
from nfq_failover.shell.witness_daemon import Witness
from nfq_failover.wire.witness import Answer, Question, seal, unseal, witness_key

KEY = b"a key that hosts and witness share"
PAIR = "192.0.2.100 a b"
NONCE = bytes(range(16))
Make = Callable[..., WitnessClient]


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness(("127.0.0.1", 0), KEY, tmp_path / "witness")
    yield made
    made.close()


@pytest.fixture
def client(witness: Witness) -> Iterator[Make]:
    made: list[WitnessClient] = []
    address = witness._socket.getsockname()

    def make(host: str, key: bytes = KEY, pair: str = PAIR) -> WitnessClient:
        made.append(WitnessClient(WitnessPlan(address, key, pair), host))
        return made[-1]

    yield make
    for one in made:
        one.close()


def asked(witness: Witness, client: WitnessClient, low: int, high: int) -> list[WitnessAnswered]:
    """One question, and what came of it."""
    client.ask(AskWitness(low, high))
    assert select.select([witness], [], [], 5)[0]
    witness.serve()
    select.select([client], [], [], 0.2)
    return client.answers()


def test_the_first_who_asks_is_granted_the_other_denied(witness: Witness, client: Make) -> None:
    a, b = client("a"), client("b")
    for _ in range(2):
        assert asked(witness, a, 10, 10) == [WitnessAnswered(10, True, "it is a's")]
        assert asked(witness, b, 10, 10) == [WitnessAnswered(10, False, "it is a's")]
    assert asked(witness, b, 10, 11) == [WitnessAnswered(11, False, "it is a's")]
    assert asked(witness, b, 11, 11) == [WitnessAnswered(11, True, "it is b's")]
    assert asked(witness, a, 10, 12) == [WitnessAnswered(12, False, "it is b's")]


def test_pairs_are_apart(witness: Witness, client: Make) -> None:
    assert asked(witness, client("a"), 10, 10)[0].granted
    assert asked(witness, client("b", pair="192.0.2.200 a b"), 10, 10)[0].granted


def test_decisions_outlive_the_daemon(tmp_path: Path) -> None:
    for number, host, granted in ((7, "a", True), (7, "b", False), (8, "b", True), (8, "a", False)):
        one = Witness(("127.0.0.1", 0), KEY, tmp_path)
        data = one.answer(seal(Question(NONCE, PAIR, host, number, number), witness_key(KEY)))
        assert data is not None
        answer = unseal(data, witness_key(KEY))
        assert isinstance(answer, Answer)
        assert answer.granted is granted
        one.close()
    assert json.loads((tmp_path / "decisions.json").read_text()) == {PAIR: [8, "b"]}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"x": ["7", "a"]}', '{"x": [-1, "a"]}', '{"x": [1, 2]}'])
def test_a_record_that_can_not_be_read_is_no_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(ConfigError, match="can't be read"):
        Witness(("127.0.0.1", 0), KEY, tmp_path)


def test_what_is_not_on_disk_is_not_said(witness: Witness, client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    a, b = client("a"), client("b")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert asked(witness, a, 10, 10) == []
    assert asked(witness, b, 10, 10)[0].granted, "nothing was decided"


def test_another_key_gets_no_answer(witness: Witness, client: Make) -> None:
    assert asked(witness, client("a", key=b"another key of at least 16 bytes"), 10, 10) == []
    assert witness.refused == {"bad-mac": 1}


def test_a_greeting_is_answered_and_decides_nothing(witness: Witness, client: Make) -> None:
    a = client("a")
    a.greet(100.0)
    a.greet(100.5)
    assert a.sent == 1 and a.unanswered_s(103.5) == 3.5
    assert select.select([witness], [], [], 5)[0]
    witness.serve()
    assert select.select([a], [], [], 5)[0]
    assert a.answers() == [] and a.unanswered_s(104.0) == 0
    assert not witness.decisions.path.exists()
    a.greet(105.0)
    assert a.sent == 1, "not so soon again"
    a.greet(112.0)
    a.greet(113.1)
    assert a.sent == 3 and a.unanswered_s(114.0) == 2.0


def test_garbage_gets_no_answer(witness: Witness) -> None:
    key = witness_key(KEY)
    whole = seal(Question(NONCE, PAIR, "a", 1, 1), key)
    for data in (b"", b"x" * 60, b"x" * 2000, whole[:-1], whole + b"x", seal(Answer(NONCE, PAIR, "a", 1, True), key)):
        assert witness.answer(data) is None
    for low, high in ((0, 1), (2, 1)):
        assert witness.answer(seal(Question(NONCE, PAIR, "a", low, high), key)) is None
    assert not witness.decisions.path.exists()


def test_an_answer_counts_once_and_only_for_its_question(witness: Witness, client: Make) -> None:
    a = client("a")
    a.ask(AskWitness(10, 10))
    assert select.select([witness], [], [], 5)[0]
    data, source = witness._socket.recvfrom(2048)
    question = unseal(data, witness_key(KEY))
    assert isinstance(question, Question)
    good = seal(Answer(question.nonce, PAIR, "a", 10, True), witness_key(KEY))
    for bad in (
        seal(Answer(NONCE, PAIR, "a", 10, True), witness_key(KEY)),
        seal(Answer(question.nonce, PAIR, "a", 11, True), witness_key(KEY)),
        good[:-1] + bytes([good[-1] ^ 1]),
        data,
    ):
        witness._socket.sendto(bad, source)
    witness._socket.sendto(good, source)
    witness._socket.sendto(good, source)
    answers: list[WitnessAnswered] = []
    while select.select([a], [], [], 0.3)[0]:
        answers += a.answers()
    assert answers == [WitnessAnswered(10, True, "it is a's")]
    assert sum(a.refused.values()) == 5


def test_nobody_listening_is_no_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    client = WitnessClient(WitnessPlan(address, KEY, PAIR), "a")
    for _ in range(3):
        client.ask(AskWitness(1, 1))
        select.select([client], [], [], 0.05)
        assert client.answers() == []
    client.close()


def test_an_address_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="can't listen"):
        Witness(("192.0.2.77", 0), KEY, tmp_path)


@pytest.mark.parametrize("size", [0, 20, 37, 38, 100])
def test_any_byte_changed_is_refused(size: int) -> None:
    key = witness_key(KEY)
    data = bytearray(seal(Question(NONCE, PAIR, "a", 3, 4), key))
    assert unseal(bytes(data), key) == Question(NONCE, PAIR, "a", 3, 4)
    data[size % len(data)] ^= 1
    with pytest.raises(MalformedDatagram):
        unseal(bytes(data), key)
