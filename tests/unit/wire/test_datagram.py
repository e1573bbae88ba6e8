"""The sync channel's datagrams: pinned, so that a change of format is a decision (and a new version number)."""

from __future__ import annotations

from hashlib import blake2s

import pytest

from nfq_failover.constants import MAX_DATAGRAM
from nfq_failover.errors import InternalError, MalformedDatagram
from nfq_failover.wire.datagram import HEADER, MAC_BYTES, MAX_BODY, Header, Kind, open_body, read_header, seal

KEY = b"k" * 32


def test_a_datagram_byte_by_byte() -> None:
    data = seal(Header(Kind.RECORDS, True, 0x1122334455667788, 9, 10), b"body", KEY)
    signed = bytes.fromhex("02 83 1122334455667788 00000009 000000000000000a") + b"body"
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
        (b"\1\1" + bytes(40), "bad-version"),
        (b"\3\1" + bytes(40), "bad-version"),
        (b"\2\0" + bytes(40), "unknown-kind"),
        (b"\2\7" + bytes(40), "unknown-kind"),
        (b"\2\x84" + bytes(MAX_DATAGRAM), "oversized"),
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
