"""The fast checksum against RFC 1071 written down word by word, and against scapy's."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from nfq_failover.wire import checksum
from nfq_failover.wire.checksum import ipv4_header_checksum, ones_sum, tcp_sum


def reference(data: bytes) -> int:
    """RFC 1071 section 1: 16-bit words, end-around carry after each addition."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for i in range(0, len(data), 2):
        total += data[i] << 8 | data[i + 1]
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


small = st.binary(max_size=600)
# Around a chunk, around the border between the two ways of summing, and whole super-segments.
lengths = st.one_of(st.integers(500, 530), st.integers(1400, 1560), st.integers(65500, 65535))
patterns = st.sampled_from((b"\xff", b"\0", b"\xff\xff\0", b"\x80\0\0", b"\xff\xfe", b"\1"))


@given(small)
@example(b"")
@example(b"\0" * 7)
@example(b"\xff" * 511)
@example(b"\xff" * 512)
@example(b"\xff" * 513)
def test_small_inputs(data: bytes) -> None:
    assert ones_sum(data) == reference(data)


@given(patterns, lengths, st.binary(max_size=40), st.integers(0, 70000))
@example(b"\xff", 1404, b"\x64\0\0\0", 0)  # the first fold of the 32-bit words carries
def test_large_and_extreme_inputs(pattern: bytes, length: int, patch: bytes, at: int) -> None:
    data = bytearray((pattern * (length // len(pattern) + 1))[:length])
    at %= length
    data[at : at + len(patch)] = patch
    expected = reference(bytes(data))
    assert ones_sum(bytes(data)) == expected
    # With numpy and without, whichever of the two is used for this length here.
    assert importlib.util.find_spec("numpy"), "it belongs to what the tests install"
    for buffer in (bytes(data), memoryview(b"!" + data)[1:]):
        assert checksum._numpy_sum(buffer) == expected
        assert checksum._integer_sum(buffer) == expected


@given(small, st.integers(0, 40))
def test_any_kind_of_buffer_at_any_offset(data: bytes, offset: int) -> None:
    whole = b"\xa5" * offset + data
    for buffer in (data, bytearray(data), memoryview(whole)[offset:], memoryview(bytearray(whole))[offset:]):
        assert ones_sum(buffer) == reference(data)


@given(small, small)
def test_sums_add_up(left: bytes, right: bytes) -> None:
    """A sum over two parts is the sum of the parts' sums, if the first has whole words (RFC 1071 section 2)."""
    left = left[: len(left) & ~1]
    total = ones_sum(left) + ones_sum(right)
    assert ones_sum(left + right) == (total & 0xFFFF) + (total >> 16)


@given(small)
def test_same_as_scapy(data: bytes) -> None:
    assert ~ones_sum(data) & 0xFFFF == scapy_checksum(data)


@pytest.mark.parametrize("length", [1461, 1536, 65483])
def test_without_numpy_everything_is_summed_the_other_way(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (bytes(range(1, 252)) * (length // 251 + 1))[:length]
    monkeypatch.setattr("nfq_failover.wire.checksum.np", None)
    assert ones_sum(data) == reference(data)


@given(st.binary(min_size=20, max_size=60))
def test_a_header_with_its_checksum_sums_to_all_ones(header: bytes) -> None:
    cleared = header[:10] + b"\0\0" + header[12 : len(header) & ~1]
    if not any(cleared):
        return
    stored = ipv4_header_checksum(cleared).to_bytes(2, "big")
    assert ones_sum(cleared[:10] + stored + cleared[12:]) == 0xFFFF


@pytest.mark.parametrize("size", [4, 16])
@given(
    data=st.binary(max_size=700), offset=st.integers(0, 60), tail=st.integers(0, 9), addresses=st.binary(min_size=32)
)
def test_tcp_sum_is_pseudo_header_and_segment(size: int, data: bytes, offset: int, tail: int, addresses: bytes) -> None:
    """RFC 9293 section 3.1 and RFC 8200 section 8.1; what lies before and after the segment does not count."""
    addresses = addresses[: 2 * size]
    packet = bytearray(b"\x5a" * offset + data + b"\x77" * tail)
    if size == 4:
        pseudo = addresses + bytes((0, 6)) + len(data).to_bytes(2, "big")
    else:
        pseudo = addresses + len(data).to_bytes(4, "big") + bytes((0, 0, 0, 6))
    before = bytes(packet)
    assert tcp_sum(packet, addresses, offset, offset + len(data)) == reference(pseudo + data)
    assert packet == before
    packet += b"x"  # no view of it is left open
