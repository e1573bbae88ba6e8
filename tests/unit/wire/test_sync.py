"""The sync channel's bytes: pinned, so that a change of format is a decision (and a new version number)."""

from __future__ import annotations

from hashlib import blake2s
from struct import pack

import pytest

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    MAX_HASHES,
    AckAsked,
    BytesAsked,
    BytesSent,
    Close,
    Closed,
    Confirm,
    Data,
    Digest,
    DigestSeen,
    End,
    EndAsked,
    EndKind,
    Handed,
    HandedOver,
    HandOver,
    Missing,
    Open,
    Opened,
    Progress,
    Record,
    SentAsked,
    SentUpTo,
    Unprotected,
    UnprotectedSeen,
)
from nfq_failover.wire.sync import (
    HEADER,
    MAC_BYTES,
    MAX_BODY,
    MAX_DATA,
    MAX_TEXT,
    Header,
    HeartbeatBody,
    Kind,
    decode_records,
    encode_record,
    open_body,
    read_header,
    seal,
)

KEY = b"k" * 32
CLIENT, SERVER = bytes((10, 77, 0, 1)), bytes((10, 77, 0, 100))
FLOW = (CLIENT, 40000, SERVER, 80)
OPEN = Open(1, FLOW, 2, 3, 4, 7, 1460, True, 64240, b"\2\4\5\xb4")

PINNED: list[tuple[Record, str]] = [
    (OPEN, "01 0028 00000001 00000002 00000003 01 00000004 07 05b4 01 faf0 04 0a4d0001 0a4d0064 9c40 0050 020405b4"),
    (
        Open(1, FLOW, 2, 3, None, None, 536, False, 1, b""),
        "01 0024 00000001 00000002 00000003 00 00000000 ff 0218 00 0001 04 0a4d0001 0a4d0064 9c40 0050",
    ),
    (Opened(1, True, 9), "02 0009 00000001 01 00000009"),
    (Opened(1, False, 0, "no"), "02 000b 00000001 00 00000000 6e6f"),
    (Progress(1, 2**32 - 1, True), "03 0009 00000001 ffffffff 01"),
    (Confirm(1, 2, 3), "04 000e 00000001 00000002 00000003 00 00"),
    (Confirm(1, 2, 3, ((4, 5),), True), "04 0016 00000001 00000002 00000003 01 01 00000004 00000005"),
    (Missing(1, 2, 3), "05 000c 00000001 00000002 00000003"),
    (Data(1, 2, b"ab", True), "06 000b 00000001 00000002 01 6162"),
    (Close(1, "done"), "07 0008 00000001 646f6e65"),
    (Closed(1), "08 0004 00000001"),
    (Unprotected(1, "\u00e9"), "09 0006 00000001 c3a9"),
    (UnprotectedSeen(1), "0a 0004 00000001"),
    (EndAsked(1, 2, EndKind.FIN), "14 0009 00000001 00000002 01"),
    (End(1, 2, 3, EndKind.RST), "15 000e 00000001 00000002 00000003 02 01"),
    (End(1, 2, 3, EndKind.OPEN, False), "15 000e 00000001 00000002 00000003 00 00"),
    (Digest(1, 2, 0), "1e 000c 00000001 00000002 00000000"),
    (Digest(1, 2, 9000), "1e 000c 00000001 00000002 00002328"),
    (Digest(1, 2, 1281, (3, 4)), "1e 001c 00000001 00000002 00000501 0000000000000003 0000000000000004"),
    (DigestSeen(1, 2, 3), "1f 000c 00000001 00000002 00000003"),
    (BytesAsked(1, 2, 3), "20 000c 00000001 00000002 00000003"),
    (BytesSent(1, 2, b"ab"), "21 000a 00000001 00000002 6162"),
    (SentAsked(1), "28 0004 00000001"),
    (AckAsked(1, 0x01020304), "2a 0008 00000001 01020304"),
    (SentUpTo(1, 2), "29 0008 00000001 00000002"),
    (
        HandOver(1, (b"\x0a\0\0\1", 40000, b"\x0a\0\0\2", 80), 2, 3, 4),
        "32 001d 00000001 00000002 00000003 00000004 04 0a000001 0a000002 9c40 0050",
    ),
    (HandedOver(1, Handed.REFUSED, "no"), "33 0007 00000001 01 6e6f"),
]


def reason_of(body: bytes) -> str:
    with pytest.raises(MalformedDatagram) as malformed:
        decode_records(body)
    return malformed.value.reason


# ------------------------------------------------------------------------------------ datagrams


def test_a_datagram_byte_by_byte() -> None:
    data = seal(Header(Kind.RECORDS, True, 0x1122334455667788, 9, 10), b"body", KEY)
    signed = bytes.fromhex("01 83 1122334455667788 00000009 000000000000000a") + b"body"
    assert data == signed + blake2s(signed, key=KEY, digest_size=16).digest()
    assert read_header(data) == Header(Kind.RECORDS, True, 0x1122334455667788, 9, 10)
    assert open_body(data, KEY) == b"body"


def test_a_body_is_opened_only_with_its_key_and_only_unchanged() -> None:
    data = seal(Header(Kind.RECORDS, True, 1, 9, 10), b"body", KEY)
    forgeries = [(data, b"another key")]
    forgeries += [(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :], KEY) for at in range(len(data))]
    for forged, key in forgeries:
        with pytest.raises(MalformedDatagram, match="bad-mac"):
            open_body(forged, key)


def test_the_mac_is_keyed_blake2s_of_rfc_7693() -> None:
    """Keyed BLAKE2s from the BLAKE2 test vectors (empty input, key 00..1f), so the primitive is what we think."""
    expected = "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49"
    assert blake2s(b"", key=bytes(range(32))).hexdigest() == expected


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("direction", [False, True])
def test_every_kind_goes_both_ways(kind: Kind, direction: bool) -> None:
    header = Header(kind, direction, 2**64 - 1, 2**32 - 1, 2**64 - 1)
    assert read_header(seal(header, b"", KEY)) == header


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (bytes(HEADER.size + MAC_BYTES - 1), "truncated"),
        (bytes(HEADER.size + MAC_BYTES), "bad-version"),
        (b"\2\1" + bytes(40), "bad-version"),
        (b"\1\0" + bytes(40), "unknown-kind"),
        (b"\1\5" + bytes(40), "unknown-kind"),
        (b"\1\x84" + bytes(MAX_DATAGRAM), "oversized"),
    ],
)
def test_headers_that_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedDatagram) as malformed:
        read_header(data)
    assert malformed.value.reason == reason


def test_the_largest_datagram_fits_one_ethernet_frame_with_ipv6() -> None:
    assert len(seal(Header(Kind.RECORDS, False, 1, 1, 1), bytes(MAX_BODY), KEY)) == MAX_DATAGRAM <= 1500 - 40 - 8
    with pytest.raises(InternalError):
        seal(Header(Kind.RECORDS, False, 1, 1, 1), bytes(MAX_BODY + 1), KEY)


# ------------------------------------------------------------------------------------ records


@pytest.mark.parametrize(("record", "pinned"), PINNED, ids=[type(record).__name__ for record, _ in PINNED])
def test_records_byte_by_byte(record: Record, pinned: str) -> None:
    assert encode_record(record).hex() == pinned.replace(" ", "")
    assert decode_records(encode_record(record)) == [record]


def test_every_record_type_is_pinned() -> None:
    assert {type(record) for record, _ in PINNED} == set(Record.__args__)


@pytest.mark.parametrize("value", ["", "00" * 20, "00" * 16 + "04" + "00" * 11, "00" * 16 + "05" + "00" * 14])
def test_hand_overs_without_a_whole_flow_are_refused(value: str) -> None:
    body = bytes.fromhex(value)
    assert reason_of(b"\x32" + len(body).to_bytes(2, "big") + body) in ("bad-record", "bad-hand-over")


def test_unknown_outcome_of_a_hand_over_is_refused() -> None:
    assert reason_of(b"\x33\0\5" + bytes(4) + b"\3") == "bad-handed-over"


@pytest.mark.parametrize("value", ["", "00" * 11, "00" * 16, "00" * 12 + "00" * 8, "00" * 8 + "00000501" + "00" * 8])
def test_digests_whose_hashes_do_not_fit_their_length_are_refused(value: str) -> None:
    body = bytes.fromhex(value)
    assert reason_of(b"\x1e" + pack("!H", len(body)) + body) in ("bad-digest", "bad-record")


def test_digests_and_bytes_that_no_peer_would_accept_are_not_sent() -> None:
    too_many = MAX_HASHES + 1
    for record in (
        Digest(1, 2, 5, (1, 2)),
        Digest(1, 2, 0, (1,)),
        Digest(1, 2, too_many * DIGEST_BLOCK, (0,) * too_many),
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


# ------------------------------------------------------------------------------------ heartbeat body


def test_a_heartbeat_byte_by_byte() -> None:
    body = HeartbeatBody(1, 2, 3, 4, 5, 6, 7, 8, 9)
    pinned = "01 02 03 00000004 00000005 0006 0000000000000007 0000000000000008 00000009"
    assert body.encode().hex() == pinned.replace(" ", "")
    assert HeartbeatBody.decode(body.encode()) == body
    assert HeartbeatBody.decode(body.encode() + b"later") == body


def test_loop_age_saturates() -> None:
    assert HeartbeatBody.decode(HeartbeatBody(1, 2, 3, 4, 5, 10**9, 7, 8, 9).encode()).loop_age_ms == 0xFFFF


def test_a_short_heartbeat_is_refused() -> None:
    encoded = HeartbeatBody(1, 2, 3, 4, 5, 6, 7, 8, 9).encode()
    for size in range(len(encoded)):
        with pytest.raises(MalformedDatagram, match="bad-heartbeat"):
            HeartbeatBody.decode(encoded[:size])
