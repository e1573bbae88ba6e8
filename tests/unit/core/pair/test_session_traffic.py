"""What flows in an agreed session: records and heartbeats, each in its lane, each once."""

from __future__ import annotations

from dataclasses import replace
from struct import pack

import pytest

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.core.pair.session import WINDOW, Received, ReplayWindow
from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.datagram import MAX_BODY, Header, Kind, read_header, seal
from nfq_failover.wire.records import MAX_DATA, Closed, Confirm, Data, Open, Record, encode_record
from tests.support.session_pair import SessionPair, agreed_pair, refusal, template


def sealed(pair: SessionPair, count: int) -> list[bytes]:
    """`count` datagrams of `a` with one record each."""
    return [pair.ends["a"].seal([Closed(number)], 1)[0] for number in range(count)]


def forged(pair: SessionPair, counter: int, body: bytes, kind: Kind = Kind.RECORDS) -> bytes:
    """A datagram that `a` could have sent, MAC and all."""
    known = template(pair.ends["a"])
    return seal(Header(kind, known.direction, known.session, 1, counter), body, known.key)


# ------------------------------------------------------------------------------------ packing


def test_records_arrive_in_order_with_their_epoch() -> None:
    pair = agreed_pair()
    records: list[Record] = [Confirm(1, 2, 3), Closed(4), Confirm(5, 6, 7, ((8, 9),), True)]
    [data] = pair.ends["a"].seal(records, 42)
    assert pair.ends["b"].receive(data, 0.0) == Received(epoch=42, records=records)


def test_nothing_to_say_is_no_datagram() -> None:
    assert agreed_pair().ends["a"].seal([], 1) == []


def test_records_share_datagrams_as_far_as_they_fit() -> None:
    pair = agreed_pair()
    records: list[Record] = [Confirm(number, number, number, ((1, 2),) * (number % 5)) for number in range(500)]
    total = sum(len(encode_record(record)) for record in records)
    datagrams = pair.ends["a"].seal(records, 1)
    assert max(map(len, datagrams)) <= MAX_DATAGRAM
    largest = max(len(encode_record(record)) for record in records)
    assert all(len(data) > MAX_DATAGRAM - largest for data in datagrams[:-1])  # full but for what did not fit
    assert len(datagrams) <= total // (MAX_BODY - largest) + 1
    got = [record for data in datagrams for record in pair.ends["b"].receive(data, 0.0).records]
    assert got == records


def test_largest_records_fit_one_datagram_each() -> None:
    pair = agreed_pair()
    address = bytes(16)
    records: list[Record] = [
        Data(1, 2, bytes(MAX_DATA), True),
        Open(1, (address, 1, address, 2), 1, 2, 3, 14, 65535, True, 65535, bytes(40)),
        Data(1, 2, bytes(MAX_DATA)),
    ]
    datagrams = pair.ends["a"].seal(records, 1)
    assert len(datagrams) == 3
    assert max(map(len, datagrams)) <= MAX_DATAGRAM
    assert [record for data in datagrams for record in pair.ends["b"].receive(data, 0.0).records] == records


def test_a_datagram_that_would_be_fragmented_is_our_bug() -> None:
    pair = agreed_pair()
    assert len(forged(pair, 1, bytes(MAX_BODY))) == MAX_DATAGRAM
    with pytest.raises(InternalError):
        forged(pair, 1, bytes(MAX_BODY + 1))


# ------------------------------------------------------------------------------------ lanes


def test_each_record_datagram_counts_once() -> None:
    pair = agreed_pair()
    [data] = sealed(pair, 1)
    assert refusal(pair.ends["b"], data) is None
    assert refusal(pair.ends["b"], data) == "replayed"


def test_reordering_within_the_window_is_accepted_once_and_beyond_it_refused() -> None:
    pair = agreed_pair()
    datagrams = sealed(pair, WINDOW + 1)
    late, rest, last = datagrams[:2], datagrams[2:-1], datagrams[-1]
    assert refusal(pair.ends["b"], last) is None
    assert refusal(pair.ends["b"], late[0]) == "too-old"
    assert refusal(pair.ends["b"], late[1]) is None
    assert [refusal(pair.ends["b"], data) for data in reversed(rest)] == [None] * len(rest)
    assert {refusal(pair.ends["b"], data) for data in datagrams} == {"replayed", "too-old"}


def test_heartbeats_and_records_have_counters_of_their_own() -> None:
    pair = agreed_pair()
    known = template(pair.ends["a"])
    assert pair.ends["b"].receive(known.datagram(10**15, 5, 0), 0.0).heartbeat is not None
    assert [refusal(pair.ends["b"], data) for data in sealed(pair, 3)] == [None] * 3
    assert refusal(pair.ends["b"], known.datagram(10**15 + 1, 6, 0)) is None


def test_replayed_and_overtaken_heartbeats_are_refused() -> None:
    pair = agreed_pair()
    known = template(pair.ends["a"])
    assert refusal(pair.ends["b"], known.datagram(1000, 5, 0)) is None
    assert refusal(pair.ends["b"], known.datagram(1000, 5, 0)) == "replayed"
    assert refusal(pair.ends["b"], known.datagram(999, 4, 0)) == "too-old"
    assert refusal(pair.ends["b"], known.datagram(1001, 6, 0)) is None


def test_a_heartbeat_is_no_records_datagram_nor_the_other_way_round() -> None:
    pair = agreed_pair()
    heartbeat = bytearray(template(pair.ends["a"]).datagram(1, 5, 0))
    heartbeat[1] ^= Kind.HEARTBEAT ^ Kind.RECORDS
    assert refusal(pair.ends["b"], bytes(heartbeat)) == "bad-mac"


def test_a_refused_body_uses_up_no_counter() -> None:
    pair = agreed_pair()
    b = pair.ends["b"]
    assert refusal(b, forged(pair, 500, b"\1")) == "bad-record-length"
    assert refusal(b, forged(pair, 500, encode_record(Closed(1)))) is None
    assert refusal(b, forged(pair, 500, b"short", Kind.HEARTBEAT)) == "bad-heartbeat"
    assert refusal(b, template(pair.ends["a"]).datagram(500, 1, 0)) is None


def test_one_bad_record_refuses_all_of_the_datagram() -> None:
    pair = agreed_pair()
    body = encode_record(Closed(1)) + pack("!BH", 8, 3) + b"abc"
    assert refusal(pair.ends["b"], forged(pair, 500, body)) == "bad-record"


def test_records_of_a_later_version_are_skipped() -> None:
    pair = agreed_pair()
    body = encode_record(Closed(1)) + pack("!BH", 200, 3) + b"abc" + encode_record(Closed(2))
    assert pair.ends["b"].receive(forged(pair, 500, body), 0.0).records == [Closed(1), Closed(2)]


@pytest.mark.parametrize("kind", [Kind.RECORDS, Kind.HEARTBEAT])
def test_keys_differ_by_direction_and_session(kind: Kind) -> None:
    pair = agreed_pair()
    ours, theirs = template(pair.ends["a"]), template(pair.ends["b"])
    assert ours.session == theirs.session
    assert ours.key != theirs.key
    assert ours.direction is not theirs.direction
    header = Header(kind, ours.direction, ours.session, 1, 1)
    assert refusal(pair.ends["b"], seal(header, b"", theirs.key)) == "bad-mac"
    assert refusal(pair.ends["b"], seal(replace(header, session=ours.session ^ 1), b"", ours.key)) == "wrong-session"


def test_cheap_refusals_come_first() -> None:
    """Each of these is refused without a MAC having been computed: the MAC is wrong in all of them."""
    pair = agreed_pair()
    [data] = sealed(pair, 1)
    broken = data[:-1] + bytes((data[-1] ^ 1,))
    b = pair.ends["b"]
    assert refusal(b, broken) == "bad-mac"
    assert refusal(b, b"") == "truncated"
    assert refusal(b, broken[:37]) == "truncated"
    assert refusal(b, broken + bytes(MAX_DATAGRAM)) == "oversized"
    assert refusal(b, b"\1" + broken[1:]) == "bad-version"
    assert refusal(b, broken[:1] + b"\x07" + broken[2:]) == "unknown-kind"
    assert refusal(b, broken[:1] + b"\x05" + broken[2:]) == "of-no-session"
    assert refusal(b, broken[:1] + bytes((broken[1] ^ 0x80,)) + broken[2:]) == "reflected"
    assert refusal(b, broken[:2] + bytes(8) + broken[10:]) == "wrong-session"
    assert read_header(data).session == b.session_id


# ------------------------------------------------------------------------------------ the window alone


def test_window_against_a_set() -> None:
    """Every counter of a shuffled walk, compared with a plain set and the highest counter."""
    window, seen, top = ReplayWindow(), set[int](), -1
    state = 1
    for _ in range(20000):
        state = (state * 1103515245 + 12345) % 2**31
        counter = max(top - WINDOW - 20, 0) + state % (WINDOW + 60) + (5000 if state % 997 == 0 else 0)
        expected = "too-old" if counter <= top - WINDOW else "replayed" if counter in seen else None
        try:
            window.check(counter)
            got = None
        except MalformedDatagram as malformed:
            got = malformed.reason
        assert got == expected
        if got is None:
            seen.add(counter)
            top = max(top, counter)
    assert window._bits.bit_length() <= WINDOW  # bounded, however long it runs


@pytest.mark.parametrize(("jump", "reason"), [(WINDOW - 1, "replayed"), (WINDOW, "too-old"), (10**15, "too-old")])
def test_window_at_its_far_edge(jump: int, reason: str) -> None:
    window = ReplayWindow()
    window.check(0)
    window.check(jump)
    with pytest.raises(MalformedDatagram, match=reason):
        window.check(0)


def test_datagrams_are_no_longer_than_both_hosts_take() -> None:
    pair = agreed_pair()
    session = pair.ends["a"]
    records: list[Record] = [Confirm(conn, 1, 2) for conn in range(500)]
    whole = Data(1, 2, bytes(MAX_DATA), False)
    session.fit(1000)
    datagrams = session.seal([*records, whole, *records], 1)
    assert [len(data) for data in datagrams if len(data) > 1000] == [38 + 3 + 9 + MAX_DATA]
    found = [record for data in datagrams for record in pair.ends["b"].receive(data, 1.0).records]
    assert found == [*records, whole, *records]
