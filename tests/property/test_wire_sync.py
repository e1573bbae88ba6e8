"""The sync codec: what is encoded is decoded, and nothing that arrives can raise anything but MalformedDatagram."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.core.pair.session import Session
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.datagram import HEADER, MAC_BYTES, MAX_BODY, Header, open_body, read_header, seal
from nfq_failover.wire.heartbeat import HeartbeatBody, HeartbeatTemplate
from nfq_failover.wire.records import MAX_TEXT, Record, Unprotected, decode_records, encode_record
from tests.support import configured
from tests.support.records import records
from tests.support.strategies import headers, heartbeats, u32, u64

keys = st.binary(min_size=1, max_size=32)


def make(name: str, peer: str) -> Session:
    made = configured.settings(name=name, peers=(configured.peer(peer),))
    return Session(made, made.peers[0], lambda n: name.encode() * n)


def agreed() -> tuple[Session, Session]:
    a, b = make("a", "b"), make("b", "a")
    a.on_timer(0.0)
    for source, target in ((a, b), (b, a), (a, b), (b, a)):
        while (data := source.poll_datagram()) is not None:
            target.receive(data, 0.0)
    assert a.established
    assert a.session_id == b.session_id
    return a, b


# ------------------------------------------------------------------------------------ round trips


@given(st.lists(records, max_size=8))
def test_records_come_back(wanted: list[Record]) -> None:
    assert decode_records(b"".join(map(encode_record, wanted))) == wanted


@given(records)
def test_any_record_fits_a_datagram(record: Record) -> None:
    assert len(encode_record(record)) <= MAX_BODY


@given(st.text(max_size=300))
def test_any_reason_can_be_told(reason: str) -> None:
    """Lone surrogates become question marks, and what is too long is cut off; all else is kept."""
    [record] = decode_records(encode_record(Unprotected(1, reason)))
    assert isinstance(record, Unprotected)
    readable = reason.encode(errors="replace").decode()
    assert readable.startswith(record.reason)
    assert record.reason == readable or len(record.reason.encode()) > MAX_TEXT - 4


@given(headers, st.binary(max_size=MAX_BODY), keys)
def test_datagrams_come_back(header: Header, body: bytes, key: bytes) -> None:
    data = seal(header, body, key)
    assert len(data) == HEADER.size + len(body) + MAC_BYTES <= MAX_DATAGRAM
    assert read_header(data) == header
    assert open_body(data, key) == body


@given(headers, heartbeats)
def test_heartbeats_and_templates_come_back(header: Header, body: HeartbeatBody) -> None:
    assert HeartbeatBody.decode(body.encode()) == body
    template = HeartbeatTemplate(header.session, bytes(range(32)), header.direction, header.epoch, body)
    assert HeartbeatTemplate.decode(template.encode()) == template


@given(st.lists(records, max_size=30), u32)
def test_sealed_records_arrive_whole_and_in_order(wanted: list[Record], epoch: int) -> None:
    a, b = agreed()
    datagrams = a.seal(wanted, epoch)
    got: list[Record] = []
    for data in datagrams:
        assert len(data) <= MAX_DATAGRAM
        received = b.receive(data, 0.0)
        assert received.epoch == epoch
        got += received.records
    assert got == wanted
    bodies = [len(data) - HEADER.size - MAC_BYTES for data in datagrams]
    assert all(left + right > MAX_BODY for left, right in pairwise(bodies))  # none was needless


# ------------------------------------------------------------------------------------ whatever arrives


@given(st.binary(max_size=MAX_BODY))
def test_any_body_is_records_or_malformed(body: bytes) -> None:
    try:
        decoded = decode_records(body)
    except MalformedDatagram:
        return
    assert decode_records(b"".join(map(encode_record, decoded))) == decoded


@given(st.lists(records, min_size=1, max_size=4), st.data())
def test_damaged_records_are_records_or_malformed(wanted: list[Record], data: st.DataObject) -> None:
    body = bytearray(b"".join(map(encode_record, wanted)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        decoded = decode_records(bytes(body))
    except MalformedDatagram as malformed:
        assert malformed.reason.startswith("bad-")
        return
    assert decode_records(b"".join(map(encode_record, decoded))) == decoded


@given(records, st.data())
def test_half_a_record_is_malformed(record: Record, data: st.DataObject) -> None:
    encoded = encode_record(record)
    with pytest.raises(MalformedDatagram):
        decode_records(encoded[: data.draw(st.integers(1, len(encoded) - 1))])


@given(st.binary(max_size=MAX_DATAGRAM + 10))
def test_any_bytes_are_refused_by_a_session(data: bytes) -> None:
    for session in (make("a", "b"), agreed()[0]):
        with pytest.raises(MalformedDatagram):
            session.receive(data, 0.0)


@given(headers, st.binary(max_size=200), st.data())
def test_any_header_without_the_key_is_refused(header: Header, body: bytes, data: st.DataObject) -> None:
    a, b = agreed()
    session = b.session_id
    assert session is not None
    header.session = data.draw(st.sampled_from((session, 0, header.session)))
    with pytest.raises(MalformedDatagram):
        b.receive(seal(header, body, b"another key"), 0.0)
    assert b.session_id == session == a.session_id
    assert b.poll_datagram() is None


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_a_changed_datagram_is_refused_and_the_true_one_still_counts(wanted: list[Record], data: st.DataObject) -> None:
    a, b = agreed()
    [*_, true] = a.seal(wanted, 1)
    forged = bytearray(true)
    at = data.draw(st.integers(0, len(true) - 1))
    forged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MalformedDatagram):
        b.receive(bytes(forged), 0.0)
    with pytest.raises(MalformedDatagram):
        b.receive(true[:at], 0.0)
    assert b.receive(true, 0.0).records
    with pytest.raises(MalformedDatagram, match="replayed"):
        b.receive(true, 0.0)


@given(heartbeats, st.lists(u64, unique=True, min_size=1, max_size=20))
def test_heartbeats_count_only_upwards(body: HeartbeatBody, counters: list[int]) -> None:
    a, b = agreed()
    known = a.heartbeat_template(
        epoch=1,
        role=body.role,
        state=body.state,
        flags=body.flags,
        stored_epoch=body.stored_epoch,
        generation=body.generation,
        echo_ms=body.echo_ms,
        release_after_ms=body.release_after_ms,
    )
    top = -1
    for counter in counters:
        data = known.datagram(counter, body.sent_ms, body.loop_age_ms)
        if counter > top:
            assert b.receive(data, 0.0).heartbeat == body
            top = counter
        else:
            with pytest.raises(MalformedDatagram, match="too-old"):
                b.receive(data, 0.0)
