"""What the hosts tell each other of themselves: too much is cut, and nonsense is refused."""

from __future__ import annotations

import pytest

from nfq_failover.core.concerns import MAX_CLIENTS
from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records import MAX_DATA, MAX_FACT, MAX_NEIGHBOURS, Concerned, Facts, Hindered, OnLink


def test_long_texts_are_cut_before_half_a_character() -> None:
    ((name, value),) = Facts.decode(Facts((("n", "\u00e9" * 200),)).encode()).facts
    assert (name, value) == ("n", "\u00e9" * (MAX_FACT // 2))


def test_too_many_facts_are_our_bug() -> None:
    with pytest.raises(InternalError, match="facts of"):
        Facts(tuple((str(n), "v" * 200) for n in range(8))).encode()


def test_concerns_that_do_not_fit_are_left_out_the_last_ones_first() -> None:
    many = tuple((3, f"code-{n}", "w" * 200, "c" * 200) for n in range(8))
    value = Concerned(many).encode()
    assert len(value) <= MAX_DATA
    kept = Concerned.decode(value).concerns
    assert kept == many[: len(kept)]
    assert len(kept) == MAX_DATA // (len(value) // len(kept))


@pytest.mark.parametrize("value", [b"\x01", b"\x02a", b"\x01a", b"\x01\xff\x00", b"\x01a\x05b"])
def test_facts_that_are_cut_short_or_no_text_are_refused(value: bytes) -> None:
    with pytest.raises(MalformedDatagram):
        Facts.decode(value)


@pytest.mark.parametrize("value", [b"\x03", b"\x03\x01a", b"\x03\x01a\x01b", b"\x03\x01\xff\x00\x00"])
def test_concerns_that_are_cut_short_or_no_text_are_refused(value: bytes) -> None:
    with pytest.raises(MalformedDatagram):
        Concerned.decode(value)


def test_more_neighbours_than_fit_are_left_out() -> None:
    many = tuple((number.to_bytes(16), number.to_bytes(6)) for number in range(MAX_NEIGHBOURS + 1))
    value = OnLink(bytes(6), many).encode()
    assert len(value) <= MAX_DATA
    assert OnLink.decode(value).neighbours == many[:MAX_NEIGHBOURS]


@pytest.mark.parametrize(
    "value",
    [b"", b"\x01", b"\x00\x04", b"\x00\x04abcd", b"\x00\x04abcd\x00", b"\x00\x03abc\x01x", b"\x00\x04abcd\x02x"],
)
def test_neighbours_that_are_cut_short_or_have_no_address_are_refused(value: bytes) -> None:
    with pytest.raises(MalformedDatagram):
        OnLink.decode(value)


def test_the_clients_of_a_concern_fit_into_a_record() -> None:
    most = Hindered("c" * MAX_FACT, tuple(number.to_bytes(16) for number in range(MAX_CLIENTS)))
    assert Hindered.decode(most.encode()) == most
    with pytest.raises(InternalError, match="clients in a record"):
        Hindered("c", (bytes(16),) * 100).encode()


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01a\x03abc", b"\x01a\x04abc"])
def test_clients_that_are_cut_short_are_refused(value: bytes) -> None:
    with pytest.raises(MalformedDatagram):
        Hindered.decode(value)
