"""SYN options and packets of our own making, as scapy sees them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.utils import checksum as scapy_checksum

from nfq_failover.constants import MAX_WSCALE, OPT_EOL, OPT_NOP
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import (
    DEFAULT_MSS,
    MIN_MSS,
    NEGOTIABLE,
    SIGNED,
    SynOptions,
    each_option,
    set_wscale,
    without,
)
from tests.support.scapy_packets import Option, dissect, first, option_lists, pairs, payloads, tcp_checksum
from tests.support.strategies import any_options, u8, u16, u32, well_formed_options

ends = st.tuples(st.binary(min_size=4, max_size=4), u16)
keeps = st.frozensets(st.integers(2, 255), max_size=6) | st.just(NEGOTIABLE)


def encoded(options: list[Option]) -> bytes:
    return bytes(TCP(options=options))[20:]


def last(options: list[Option], wanted: str) -> Any:
    return first(options[::-1], wanted)


# ------------------------------------------------------------------------------------ options


@given(option_lists())
def test_what_a_syn_offers(options: list[Option]) -> None:
    offered = SynOptions.parse(encoded(options))
    mss, wscale, timestamps = last(options, "MSS"), last(options, "WScale"), last(options, "Timestamp")
    assert offered.mss == (DEFAULT_MSS if mss is None else max(mss, MIN_MSS))
    assert offered.wscale == (None if wscale is None else min(wscale, MAX_WSCALE))
    assert offered.sack_permitted is (first(options, "SAckOK") is not None)
    assert offered.tsval == (None if timestamps is None else timestamps[0])
    assert not offered.signed


@given(well_formed_options, keeps)
def test_taking_options_out(options: bytes, keep: frozenset[int]) -> None:
    before = list(each_option(options))
    after = without(options, keep)
    assert len(after) == len(options)
    assert list(each_option(after)) == [option for option in before if option[0] in keep]
    for kind, start, length in before:
        piece = after[start : start + length]
        assert piece == (options[start : start + length] if kind in keep else bytes((OPT_NOP,)) * length)
    assert without(after, keep) == after
    if not keep & SIGNED:
        assert not SynOptions.parse(after).signed


@given(any_options)
def test_the_walker_covers_each_option_once_and_in_order(options: bytes) -> None:
    found = list(each_option(options))
    at = 0
    for kind, start, length in found:
        assert set(options[at:start]) <= {OPT_NOP}
        assert kind not in (OPT_NOP, OPT_EOL)
        assert (options[start], options[start + 1]) == (kind, length)
        assert 2 <= length <= len(options) - start
        at = start + length
    rest = options[at:].lstrip(bytes((OPT_NOP,)))
    lies = len(rest) == 1 or not 2 <= rest[1] <= len(rest) if rest else False
    assert not rest or rest[0] == OPT_EOL or lies
    sane = without(options, frozenset(range(256)))
    assert list(each_option(sane)) == found
    assert sane[:at] == options[:at]
    assert not lies or rest[0] == OPT_EOL or not any(sane[len(options) - len(rest) :])


@given(well_formed_options, st.data())
def test_half_an_option_ends_the_list(options: bytes, data: st.DataObject) -> None:
    found = list(each_option(options))
    if not found:
        return
    _, start, length = data.draw(st.sampled_from(found))
    half = options[: start + data.draw(st.integers(1, length - 1))]
    assert list(each_option(half)) == [option for option in found if option[1] < start]


@given(option_lists(), st.integers(0, MAX_WSCALE))
def test_changing_the_window_shift_changes_nothing_else(options: list[Option], shift: int) -> None:
    changed = bytearray(encoded(options))
    set_wscale(changed, shift)
    wanted = [("WScale", shift) if kind == "WScale" else (kind, value) for kind, value in options]
    assert bytes(changed) == encoded(wanted)


@given(well_formed_options, st.integers(0, MAX_WSCALE))
def test_signed_options_and_odd_lengths(options: bytes, shift: int) -> None:
    """An option of a length that it can't have says nothing, and is left alone (RFC 9293 section 3.2)."""
    found = list(each_option(options))
    offered = SynOptions.parse(options)
    assert offered.signed is any(kind in SIGNED for kind, _, _ in found)
    sizes = [int.from_bytes(options[i + 2 : i + 4], "big") for kind, i, length in found if (kind, length) == (2, 4)]
    assert offered.mss == [DEFAULT_MSS, *sizes][-1]
    assert offered.sack_permitted is any((kind, length) == (4, 2) for kind, _, length in found)
    assert (offered.wscale is None) is not any((kind, length) == (3, 3) for kind, _, length in found)
    assert (offered.tsval is None) is not any((kind, length) == (8, 10) for kind, _, length in found)
    expected = bytearray(options)
    for kind, start, length in found:
        if (kind, length) == (3, 3):
            expected[start + 2] = shift
    changed = bytearray(options)
    set_wscale(changed, shift)
    assert changed == expected


@given(any_options, u8)
def test_any_options_are_read(options: bytes, shift: int) -> None:
    changed = bytearray(options)
    set_wscale(changed, shift)
    assert len(changed) == len(without(options, NEGOTIABLE)) == len(options)
    assert SynOptions.parse(without(options, NEGOTIABLE)) == replace(SynOptions.parse(options), signed=False)


# ------------------------------------------------------------------------------------ packets


@given(st.none() | st.tuples(u32, u32), st.lists(st.tuples(u32, u32), max_size=6))
def test_options_of_our_own_acknowledgements(timestamps: tuple[int, int] | None, sack: list[tuple[int, int]]) -> None:
    options = ack_options(timestamps, sack)
    assert len(options) <= 40
    assert len(options) % 4 == 0
    read = dissect(build_segment((bytes(4), 1), (bytes(4), 2), 3, 4, 16, 5, options))[TCP].options
    assert first(read, "Timestamp") == timestamps
    assert pairs(first(read, "SAck")) == sack[: 3 if timestamps else 4]  # all that fits, RFC 2018 section 3


@given(ends, ends, u32, u32, u8, u16, any_options, payloads)
@example((bytes(4), 1), (bytes(4), 2), 3, 4, 16, 5, bytes.fromhex("1d030001"), b"")
def test_a_built_packet_as_scapy_reads_it(
    source: tuple[bytes, int],
    destination: tuple[bytes, int],
    seq: int,
    ack: int,
    flags: int,
    wnd: int,
    options: bytes,
    payload: bytes,
) -> None:
    """Its options are compared as bytes: scapy can't read a segment with a broken TCP-AO option (RFC 5925) at all."""
    packet = build_segment(source, destination, seq, ack, flags, wnd, options, payload)
    readable = bytearray(packet)
    readable[40 : 40 + len(options)] = bytes((OPT_NOP,)) * len(options)
    ip = dissect(readable)
    tcp = ip[TCP]
    assert (ip.version, ip.ihl, ip.len, ip.proto, ip.frag) == (4, 5, len(packet), 6, 0)
    assert ip.flags == "DF"
    assert (IPv4Address(ip.src).packed, IPv4Address(ip.dst).packed) == (source[0], destination[0])
    assert ip.chksum == scapy_checksum(bytes(packet[:10]) + b"\0\0" + bytes(packet[12:20]))
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window) == (source[1], destination[1], seq, ack, wnd)
    assert (int(tcp.flags), tcp.reserved, tcp.urgptr) == (flags, 0, 0)
    assert tcp.dataofs == 5 + len(options) // 4
    assert packet[40 : 40 + len(options)] == options
    assert packet[40 + len(options) :] == payload
    assert tcp.chksum == tcp_checksum(packet)
    assert Segment(packet).checksum_ok()
