"""Hosts of two releases understand each other: the bytes of everything that is said stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.core.pair.session import handshake_key
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire import witness
from nfq_failover.wire.datagram import NONCE_BYTES, open_body
from nfq_failover.wire.records import DECLARED, decode_records, encode_record, known_numbers, read_numbers
from tests.support import previous
from tests.support.session_pair import make
from tests.unit.wire.golden import ANSWERED, ASKED, PATH, WITNESS_KEY, asking, everything, written

ROOT = Path(__file__).parents[3]
CORPUS = written(PATH.read_text())


@pytest.mark.parametrize("name", CORPUS)
def test_what_is_said_looks_as_it_did(name: str) -> None:
    """A record that looks different is a new one: docs/design/wire.md."""
    now = everything()
    assert name in now, f"{name} is said no more: a host of the release before may still say it"
    assert now[name] == CORPUS[name]


def test_everything_is_in_the_corpus() -> None:
    missing = [name for name in everything() if name not in CORPUS]
    assert not missing, "run: python -m tests.unit.wire.golden --write"


def test_what_an_earlier_host_has_said_is_understood() -> None:
    for name, data in CORPUS.items():
        if name.startswith("record "):
            unknown: list[int] = []
            [record] = decode_records(data, unknown)
            assert encode_record(record) == data and not unknown
    b = make("b", "a")
    for name, data in CORPUS.items():
        if name.startswith("datagram ") and name.endswith("to-b"):
            b.receive(data, 0.0)
            while b.poll_datagram() is not None:
                pass
    assert b.established
    asked = asking()
    assert asked.take(CORPUS["inquiry answer"]) and asked.complete
    assert (asked.clock_ms, asked.facts, asked.concerns) == (1, {"tap": "clone"}, [(1, "code", "what", "cure")])
    assert open_body(CORPUS["inquiry question"], handshake_key(b"k" * 32)) == bytes(range(NONCE_BYTES)) + b"a\0b"
    assert witness.unseal(CORPUS["witness question"], WITNESS_KEY) == ASKED
    assert witness.unseal(CORPUS["witness answer"], WITNESS_KEY) == ANSWERED


def test_no_line_of_the_previous_release_has_changed() -> None:
    """The corpus itself can't be written anew: that of the previous release is in the history."""
    there = previous.file_text(PATH.relative_to(ROOT))
    assert there and PATH.read_text().startswith(there)


def test_a_number_is_told_and_read() -> None:
    assert read_numbers(known_numbers()) == frozenset(DECLARED)
    assert read_numbers("1-3 5 250-999") == frozenset({1, 2, 3, 5, *range(250, 256)})
    assert read_numbers("") == frozenset()
    for text in ("x", "1-", "-3", "1-x", "1-2-3", "\u0663", "1" * 4):
        assert read_numbers(text) is None, text


def test_unknown_numbers_are_counted_and_a_bad_length_among_them_is_not_forgiven() -> None:
    unknown: list[int] = []
    assert decode_records(b"\xfa\0\2ab\xfb\0\0", unknown) == []
    assert unknown == [0xFA, 0xFB]
    with pytest.raises(MalformedDatagram, match="bad-record-length"):
        decode_records(b"\xfa\0\3ab", unknown)
