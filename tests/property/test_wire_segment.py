"""Segments: what scapy builds we read, what we write scapy reads, and nothing else but MalformedSegment is raised."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from nfq_failover.constants import ACK, FIN, OPT_EOL, PSH, RST, SYN
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.checksum import ones_sum
from nfq_failover.wire.segment import MAX_LENGTH, Segment, cut_short
from nfq_failover.wire.seqnum import add
from nfq_failover.wire.tcp_options import each_option
from tests.support.scapy_packets import Option, dissect, first, option_lists, packets, pairs, tcp_checksum
from tests.support.strategies import any_options, u8, u16, u32

block_lists = st.lists(st.tuples(u32, u32), max_size=5)


def bytes_of(packet: Any, padding: int = 0) -> bytearray:
    return bytearray(bytes(packet) + b"\x55" * padding)


def payload_of(packet: Any) -> bytes:
    return bytes(packet[TCP].payload)


# ------------------------------------------------------------------------------------ reading


@given(packets(), st.integers(0, 6))
def test_fields_are_those_that_scapy_wrote(packet: Any, padding: int) -> None:
    """`padding`: an Ethernet frame's, after the packet's end."""
    seg = Segment(bytes_of(packet, padding))
    tcp = packet[TCP]
    assert (seg.src, seg.dst) == (IPv4Address(packet.src).packed, IPv4Address(packet.dst).packed)
    assert (seg.sport, seg.dport, seg.seq, seg.ack, seg.wnd) == (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.window)
    flags = int(tcp.flags)
    assert seg.flags == flags
    assert seg.end == len(bytes(packet))
    payload = payload_of(packet)
    assert seg.payload() == payload
    assert seg.payload_len == len(payload)
    assert seg.seg_len == len(payload) + bool(flags & SYN) + bool(flags & FIN)
    assert seg.seq_end == add(tcp.seq, seg.seg_len)
    assert seg.is_pure_ack is (not payload and bool(flags & ACK) and not flags & (SYN | FIN | RST))
    assert seg.checksum_ok()
    assert repr(seg).startswith(f"<{tcp.sport}>{tcp.dport} [")


@given(packets())
def test_options_are_those_that_scapy_wrote(packet: Any) -> None:
    options: list[Option] = packet[TCP].options
    seg = Segment(bytes_of(packet))
    timestamps = first(options, "Timestamp")
    assert bool(seg.ts_off) is (timestamps is not None)
    assert (seg.tsval, seg.tsecr) == (timestamps or (0, 0))
    if timestamps:
        assert seg.buf[seg.ts_off - 2 : seg.ts_off] == bytes((8, 10))
    sack = first(options, "SAck")
    assert seg.sack == pairs(sack)
    assert bool(seg.sack_off) is (sack is not None)
    assert seg.options() == bytes(packet)[seg.tcp_off + 20 : seg.data_off]


@given(option_lists(), option_lists())
def test_nothing_counts_after_the_end_of_the_list(before: list[Option], after: list[Option]) -> None:
    head, tail = (bytes(TCP(options=options))[20:] for options in (before, after))
    options = (head + bytes((OPT_EOL,)) * 4 + tail)[:40]
    packet = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(dataofs=5 + len(options) // 4)
    data = bytearray(bytes(packet)[:40] + options)
    data[2:4] = len(data).to_bytes(2, "big")
    seg = Segment(data)
    timestamps = first(before, "Timestamp")
    assert (seg.tsval, seg.tsecr) == (timestamps or (0, 0))
    assert seg.sack == pairs(first(before, "SAck"))


@given(packets(), st.data())
def test_any_flipped_bit_of_the_segment_breaks_the_checksum(packet: Any, data: st.DataObject) -> None:
    whole = bytes_of(packet)
    seg = Segment(bytearray(whole))
    bit = data.draw(st.integers(8 * seg.tcp_off, 8 * seg.end - 1))
    whole[bit >> 3] ^= 1 << (bit & 7)
    try:
        assert not Segment(whole).checksum_ok()
    except MalformedSegment as malformed:
        assert malformed.reason == "bad-data-offset"


# ------------------------------------------------------------------------------------ writing


@given(packets(), u32, u32, u16, u32, u32, block_lists, st.integers(0, 5))
def test_what_setters_write_scapy_reads(
    packet: Any, seq: int, ack: int, wnd: int, tsval: int, tsecr: int, blocks: list[tuple[int, int]], padding: int
) -> None:
    before = bytes_of(packet, padding)
    seg = Segment(bytearray(before))
    room = len(seg.sack)
    seg.set_seq(seq)
    seg.set_ack(ack)
    seg.set_wnd(wnd)
    if seg.ts_off:
        seg.set_timestamps(tsval, tsecr)
    if seg.sack_off:
        seg.set_sack(blocks)
    seg.seal()

    assert len(seg.buf) == len(before)
    assert seg.buf[: seg.tcp_off] == before[: seg.tcp_off]
    assert seg.buf[seg.data_off :] == before[seg.data_off :]
    got = dissect(seg.buf[: seg.end])
    tcp, original = got[TCP], packet[TCP]
    assert (tcp.seq, tcp.ack, tcp.window) == (seq, ack, wnd)
    assert (tcp.sport, tcp.dport, tcp.flags, tcp.urgptr) == (
        original.sport,
        original.dport,
        original.flags,
        original.urgptr,
    )
    assert payload_of(got) == payload_of(packet)
    assert tcp.chksum == tcp_checksum(seg.buf)
    assert seg.checksum_ok()
    assert_options(original.options, seg, (tsval, tsecr), blocks[:room])
    again = Segment(bytearray(seg.buf))
    assert (again.seq, again.ack, again.wnd) == (seg.seq, seg.ack, seg.wnd) == (seq, ack, wnd)
    assert (again.tsval, again.tsecr) == (seg.tsval, seg.tsecr)


def assert_options(options: list[Option], seg: Segment, timestamps: tuple[int, int], blocks: list[Any]) -> None:
    """The first timestamps and the first SACK option were replaced, and nothing else."""
    assert seg.sack == (blocks if first(options, "SAck") is not None else [])
    wanted: list[Option] = []
    replaced: set[str] = set()
    for kind, value in options:
        if kind == "Timestamp" and kind not in replaced:
            value = timestamps
            replaced.add(kind)
        elif kind == "SAck" and kind not in replaced:
            replaced.add(kind)
            left_over = len(value) // 2 - len(blocks)
            if blocks:
                wanted.append((kind, sum(blocks, ())))
            wanted += [("NOP", None)] * (8 * left_over + (0 if blocks else 2))
            continue
        wanted.append((kind, value))
    got = [option for option in dissect(seg.buf[: seg.end])[TCP].options if option[0] != "EOL"]
    assert got == wanted


@given(packets(), block_lists, block_lists)
def test_sack_blocks_can_be_replaced_twice(packet: Any, one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    seg = Segment(bytes_of(packet))
    if not seg.sack_off:
        return
    room = len(seg.sack)
    seg.set_sack(one)
    if seg.sack_off:
        seg.set_sack(two)
        assert seg.sack == two[: min(room, len(one))]
    if [kind for kind, _ in packet[TCP].options].count("SAck") == 1:
        assert Segment(bytearray(seg.buf)).sack == seg.sack


@given(packets(), st.binary(min_size=2, max_size=2))
def test_seal_does_not_build_on_the_old_checksum(packet: Any, rubbish: bytes) -> None:
    """Packets from a queue with GSO carry the sum of the pseudo header only."""
    whole = bytes_of(packet)
    seg = Segment(bytearray(whole))
    seg.buf[seg.tcp_off + 16 : seg.tcp_off + 18] = rubbish
    seg.seal()
    assert seg.buf == whole


# ------------------------------------------------------------------------------------ whatever arrives


def use(seg: Segment) -> None:
    """All that may be asked of a segment that was not refused."""
    size = len(seg.buf)
    assert 20 <= seg.tcp_off <= seg.data_off - 20 <= seg.data_off <= seg.end <= size
    assert seg.payload_len == len(seg.payload()) == seg.end - seg.data_off
    assert seg.data_off - seg.tcp_off - 20 == len(seg.options())
    assert isinstance(seg.checksum_ok(), bool)
    seg.set_seq(1)
    seg.set_ack(2**32 - 1)
    seg.set_wnd(65535)
    if seg.ts_off:
        assert seg.tcp_off + 20 < seg.ts_off <= seg.data_off - 8
        seg.set_timestamps(1, 2)
    if seg.sack_off:
        assert seg.sack
        seg.set_sack([(3, 4)])
    seg.seal()
    assert seg.checksum_ok()
    assert len(seg.buf) == size
    again = Segment(seg.buf)
    assert (again.seq, again.ack, again.wnd, again.tsval) == (1, 2**32 - 1, 65535, seg.tsval)


def parse(data: bytes | bytearray) -> Segment | None:
    try:
        return Segment(bytearray(data))
    except MalformedSegment as malformed:
        assert malformed.reason
        return None


@given(st.binary(max_size=150))
@example(b"")
@example(b"\x45" + bytes(38))
@example(b"\x45" + bytes(39))
def test_random_bytes(data: bytes) -> None:
    if seg := parse(data):
        use(seg)


@given(packets(), st.lists(st.tuples(st.integers(0, 79), u8), max_size=4), st.integers(0, 200))
def test_damaged_packets(packet: Any, damage: list[tuple[int, int]], cut: int) -> None:
    data = bytes_of(packet)
    for at, value in damage:
        if at < len(data):
            data[at] = value
    if seg := parse(data[: len(data) - cut] if cut < 100 else data):
        use(seg)


@given(any_options, st.binary(max_size=9))
def test_any_options_are_judged_as_the_option_walker_judges_them(options: bytes, payload: bytes) -> None:
    head = bytes(IP(src="10.0.0.1", dst="10.0.0.2", len=40 + len(options) + len(payload)) / TCP(dataofs=5))
    data = bytearray(head[:40] + options + payload)
    data[32] = (5 + len(options) // 4) << 4
    try:
        found = list(each_option(options))
    except MalformedSegment as malformed:
        with pytest.raises(MalformedSegment, match=malformed.reason):
            Segment(data)
        return
    seg = Segment(data)
    timestamps = [start for kind, start, length in found if (kind, length) == (8, 10)]
    assert seg.ts_off == (40 + timestamps[0] + 2 if timestamps else 0)
    blocks = [start for kind, start, length in found if kind == 5 and length in (10, 18, 26, 34)]
    assert seg.sack_off == (40 + blocks[0] if blocks else 0)
    use(seg)


@given(packets(), st.data())
def test_refusals_have_their_reasons(packet: Any, data: st.DataObject) -> None:
    whole = bytes_of(packet)
    tcp_off = Segment(bytearray(whole)).tcp_off
    total = len(whole)
    changes: dict[str, dict[int, int]] = {
        "short": {},
        "not-ipv4": {0: 0x65},
        "not-tcp": {9: 17},
        "fragment": data.draw(st.sampled_from(({6: 0x20}, {6: 0x1F}, {7: 1}, {6: 0x60}))),
        "bad-data-offset": data.draw(
            st.sampled_from(({tcp_off + 12: 0}, {tcp_off + 12: 0x40}, {2: 0, 3: tcp_off + 20, tcp_off + 12: 0x60}))
        ),
        "bad-length": data.draw(
            st.sampled_from(({0: 0x44}, {2: (total + 1) >> 8, 3: (total + 1) & 0xFF}, {2: 0, 3: tcp_off + 19}))
        ),
    }
    for reason, change in changes.items():
        broken = bytearray(whole if change else whole[: data.draw(st.integers(0, 39))])
        for at, value in change.items():
            broken[at] = value
        with pytest.raises(MalformedSegment, match=reason):
            Segment(broken)


# ---------------------------------------------------------------------------------------------- beyond 64 KiB


@given(packets(), st.integers(MAX_LENGTH + 1, 300_000))
@settings(max_examples=20)
def test_packet_whose_length_has_no_room_in_the_field_ends_with_the_buffer(packet: Any, size: int) -> None:
    """Linux writes 0 there (IPv4 BIG TCP)."""
    raw = bytearray(bytes_of(packet))
    raw += bytes(size - len(raw))
    raw[2:4] = b"\0\0"
    seg = Segment(raw)
    assert (seg.end, seg.payload_len) == (size, size - seg.data_off)
    seg.seal()
    assert seg.checksum_ok()
    with pytest.raises(MalformedSegment, match="bad-length"):
        Segment(raw[:MAX_LENGTH])
    seg.drop_payload()
    assert Segment(raw).end == len(raw) == seg.data_off


@given(packets(), st.data(), st.booleans())
def test_packet_without_its_end_is_a_shorter_one(packet: Any, data: st.DataObject, gso: bool) -> None:
    whole = Segment(bytearray(bytes_of(packet)))
    size = data.draw(st.integers(whole.data_off, len(whole.buf)))
    short = whole.buf[:size]
    cut_short(short, gso)
    seg = Segment(short)
    assert (seg.end, seg.seq, seg.ack, seg.wnd, seg.options()) == (
        size,
        whole.seq,
        whole.ack,
        whole.wnd,
        whole.options(),
    )
    assert seg.payload() == whole.payload()[: seg.payload_len]
    assert seg.flags == whole.flags & ~(FIN | PSH)
    assert ones_sum(short[: seg.tcp_off]) == 0xFFFF
    assert gso or seg.checksum_ok()
    for size in range(whole.data_off):
        with pytest.raises(MalformedSegment):
            cut_short(whole.buf[:size], gso)
