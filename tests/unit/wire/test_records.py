"""The records' bytes: pinned, so that a change of format is a decision (and a new version number)."""

from __future__ import annotations

from struct import pack

import pytest

from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records import (
    DECLARED,
    DIGEST_BLOCK,
    MAX_DATA,
    MAX_HASHES,
    MAX_TEXT,
    BytesSent,
    Close,
    Closed,
    Confirm,
    Data,
    Digest,
    Mark,
    Open,
    Record,
    Towards,
    Unprotected,
    decode_records,
    encode_record,
)
from nfq_failover.wire.records.base import declare
from tests.support.records import CLIENT, FLOW, OPEN, PINNED, STRATEGIES


def reason_of(body: bytes) -> str:
    with pytest.raises(MalformedDatagram) as malformed:
        decode_records(body)
    return malformed.value.reason


@pytest.mark.parametrize(("record", "pinned"), PINNED, ids=[type(record).__name__ for record, _ in PINNED])
def test_records_byte_by_byte(record: Record, pinned: str) -> None:
    assert encode_record(record).hex() == pinned.replace(" ", "")
    assert decode_records(encode_record(record)) == [record]


def test_every_record_is_pinned_and_drawn() -> None:
    assert {type(record) for record, _ in PINNED} == set(DECLARED.values()) == set(STRATEGIES)


def test_a_number_is_declared_once() -> None:
    with pytest.raises(InternalError, match="record number 1 is Open's"):
        declare(1, Towards.GATE)(Closed)
    assert DECLARED[1] is Open


def test_a_record_without_a_codec_is_our_bug() -> None:
    with pytest.raises(InternalError, match="Record has no encoding"):
        Record().encode()
    with pytest.raises(InternalError, match="Record has no decoding"):
        Record.decode(b"")


@pytest.mark.parametrize("value", ["", "00" * 20, "00" * 16 + "04" + "00" * 11, "00" * 16 + "05" + "00" * 14])
def test_hand_overs_without_a_whole_flow_are_refused(value: str) -> None:
    body = bytes.fromhex(value)
    assert reason_of(b"\x32" + len(body).to_bytes(2, "big") + body) in ("bad-record", "bad-hand-over")


def test_unknown_outcome_of_a_hand_over_is_refused() -> None:
    assert reason_of(b"\x33\0\5" + bytes(4) + b"\3") == "bad-handed-over"


@pytest.mark.parametrize(
    "value",
    ["", "00" * 11, "00" * 16, "00" * 12 + "00" * 8, "00" * 8 + "00000501" + "00" * 8]
    + ["00" * 8 + "00000005" + "00" * 8 + f"{length:08x}" + "00" * 12 for length in (4, 6)],
)
def test_digests_whose_hashes_do_not_fit_their_length_are_refused(value: str) -> None:
    body = bytes.fromhex(value)
    assert reason_of(b"\x1e" + pack("!H", len(body)) + body) in ("bad-digest", "bad-record")


def test_digests_and_bytes_that_no_peer_would_accept_are_not_sent() -> None:
    too_many = MAX_HASHES + 1
    for record in (
        Digest(1, 2, 5, (1, 2)),
        Digest(1, 2, 0, (1,)),
        Digest(1, 2, too_many * DIGEST_BLOCK, (0,) * too_many),
        Digest(1, 2, 5, (1,), (Mark(4, 0, 0, 0),)),
        Digest(1, 2, 17, (1,), (Mark(1, 0, 0, 0),) * 17),
        BytesSent(1, 2, bytes(MAX_DATA + 1)),
    ):
        with pytest.raises(InternalError):
            encode_record(record)


def test_addresses_of_either_family() -> None:
    record = Open(1, (bytes(range(16)), 1, bytes(range(16, 32)), 2), 2, 3, 4, 7, 1440, True, 64240, b"")
    assert decode_records(encode_record(record)) == [record]


@pytest.mark.parametrize(
    "flow", [(CLIENT, 1, bytes(16), 2), (bytes(5), 1, bytes(5), 2), (b"", 1, b"", 2)], ids=["mixed", "five", "none"]
)
def test_addresses_without_a_family_are_our_bug(flow: tuple[bytes, int, bytes, int]) -> None:
    with pytest.raises(InternalError):
        encode_record(Open(1, flow, 2, 3, 4, 7, 1460, True, 64240, b""))


@pytest.mark.parametrize("options", [bytes(3), bytes(44)])
def test_options_that_no_header_can_hold_are_our_bug(options: bytes) -> None:
    with pytest.raises(InternalError):
        encode_record(Open(1, FLOW, 2, 3, 4, 7, 1460, True, 64240, options))


def test_data_is_never_cut_silently() -> None:
    whole = Data(1, 2, bytes(MAX_DATA), True)
    assert decode_records(encode_record(whole)) == [whole]
    with pytest.raises(InternalError):
        encode_record(Data(1, 2, bytes(MAX_DATA + 1), True))
    assert reason_of(pack("!BHIIB", 6, 9 + MAX_DATA + 1, 1, 2, 0) + bytes(MAX_DATA + 1)) == "bad-data"


def test_at_most_four_ranges_are_sent() -> None:
    ranges = tuple((i, i + 1) for i in range(0, 12, 2))
    assert decode_records(encode_record(Confirm(1, 2, 3, ranges))) == [Confirm(1, 2, 3, ranges[:4])]


@pytest.mark.parametrize("text", ["x" * 300, "\u00e9" * 150, "\u20ac" * 100, "x" + "\U0001f4a5" * 60])
def test_long_reasons_are_cut_between_characters(text: str) -> None:
    [record] = decode_records(encode_record(Unprotected(1, text)))
    assert isinstance(record, Unprotected)
    assert text.startswith(record.reason)
    assert MAX_TEXT - 3 <= len(record.reason.encode()) <= MAX_TEXT


def test_a_reason_that_has_no_encoding_is_still_told() -> None:
    assert decode_records(encode_record(Close(1, "a\udcffb"))) == [Close(1, "a?b")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\1", "bad-record-length"),
        (b"\1\0", "bad-record-length"),
        (b"\x08\0\4\0\0\0", "bad-record-length"),
        (b"\xc8\0\4\0\0\0", "bad-record-length"),  # an unknown type must have its whole length, too
        (b"\x08\0\3\0\0\1", "bad-record"),
        (b"\x08\0\5\0\0\0\0\1", "bad-record"),
        (b"\x03\0\x08" + bytes(8), "bad-record"),
        (b"\x03\0\x0a" + bytes(10), "bad-record"),
        (b"\x07\0\5\0\0\0\1\xff", "bad-text"),
        (b"\x02\0\x0a\0\0\0\1\0\0\0\0\0\xc3", "bad-text"),
        (pack("!BHIIIBB", 4, 14, 1, 2, 3, 0, 1), "bad-confirm"),
        (pack("!BHIIIBB", 4, 14 + 40, 1, 2, 3, 0, 5) + bytes(40), "bad-confirm"),
        (pack("!BHIIIBB", 4, 15, 1, 2, 3, 0, 0) + b"\0", "bad-confirm"),
    ],
)
def test_malformed_records(body: bytes, reason: str) -> None:
    assert reason_of(body) == reason
    assert reason_of(encode_record(Closed(1)) + body) == reason  # all or nothing


@pytest.mark.parametrize(
    ("at", "value"),
    [(20, 15), (20, 254), (26, 5), (26, 0)],
    ids=["shift of 15", "shift of 254", "address of 5 bytes", "address of 0 bytes"],
)
def test_malformed_openings(at: int, value: int) -> None:
    encoded = bytearray(encode_record(OPEN))
    assert decode_records(bytes(encoded)) == [OPEN]
    encoded[at] = value
    assert reason_of(bytes(encoded)) == "bad-open"


@pytest.mark.parametrize("extra", [1, 2, 3, 40])
def test_openings_with_impossible_options(extra: int) -> None:
    value = encode_record(OPEN)[3:] + bytes(extra)
    assert reason_of(pack("!BH", 1, len(value)) + value) == "bad-open"


def test_unknown_types_are_skipped() -> None:
    unknown = [pack("!BH", number, size) + bytes(size) for number in (0, 11, 255) for size in (0, 1, 100)]
    body = b"".join(encode_record(Closed(i)) + data for i, data in enumerate(unknown))
    assert decode_records(body) == [Closed(i) for i in range(len(unknown))]
    assert decode_records(b"") == []
