"""Values that several property tests draw."""

from __future__ import annotations

from hypothesis import strategies as st

from nfq_failover.constants import OPT_EOL, OPT_NOP
from nfq_failover.wire.datagram import Header, Kind
from nfq_failover.wire.heartbeat import HeartbeatBody
from nfq_failover.wire.records import (
    MAX_TEXT,
)
from nfq_failover.wire.seqnum import MASK

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.one_of(st.integers(0, MASK), st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**31 + 1, MASK - 1, MASK)))
u64 = st.integers(0, 2**64 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=MAX_TEXT // 4)


@st.composite
def flows(draw: st.DrawFn) -> tuple[bytes, int, bytes, int]:
    """A flow of either address family."""
    size = draw(st.sampled_from((4, 16)))
    address = st.binary(min_size=size, max_size=size)
    return draw(address), draw(u16), draw(address), draw(u16)


@st.composite
def _option_lists(draw: st.DrawFn) -> bytes:
    """Well-formed TCP options of any kind, padded with NOPs or an end of list to whole words; at most 40 bytes."""
    known = st.sampled_from((2, 3, 4, 5, 8, 19, 29, 30, 34))
    kinds = st.one_of(known, known, st.integers(2, 255))
    options = b""
    for kind in draw(st.lists(kinds, max_size=8)):
        value = draw(st.binary(max_size=12))
        piece = bytes((kind, 2 + len(value))) + value
        if len(options) + len(piece) <= 40:
            options += piece + bytes((OPT_NOP,)) * draw(st.sampled_from((0, 0, 1, 2)))
    options = options[:40] if len(options) <= 40 else options.rstrip(bytes((OPT_NOP,)))
    return options + bytes((draw(st.sampled_from((OPT_NOP, OPT_EOL))),)) * (-len(options) % 4)


well_formed_options = _option_lists()


@st.composite
def _damaged_options(draw: st.DrawFn) -> bytes:
    options = bytearray(draw(well_formed_options.filter(bool)))
    options[draw(st.integers(0, len(options) - 1))] = draw(st.one_of(u8, st.integers(0, 3)))
    return bytes(options)


any_options = st.one_of(
    well_formed_options,
    _damaged_options(),
    st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
)

headers = st.builds(Header, st.sampled_from(list(Kind)), st.booleans(), u64, u32, u64)
heartbeats = st.builds(HeartbeatBody, u8, u8, u8, u32, u32, u16, u64, u64, u32)
