"""TCP packets made and read by scapy: the independent opinion on our wire code."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, IPOption_NOP, in4_chksum
from scapy.packet import Raw

from tests.support.strategies import u8, u16, u32

Option = tuple[str | int, Any]
Blocks = tuple[tuple[int, int], ...]
_SIZES = {"NOP": 1, "SAckOK": 2, "WScale": 3, "MSS": 4, "Timestamp": 10}

addresses = st.integers(0, 2**32 - 1).map(lambda value: str(IPv4Address(value)))
sack_blocks = st.lists(st.tuples(u32, u32), min_size=1, max_size=4).map(lambda blocks: sum(blocks, ()))
payloads = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda piece, size: (piece * size)[:size], st.binary(min_size=1, max_size=40), st.integers(400, 3000)),
)


def option_size(option: Option) -> int:
    """Bytes that an option takes."""
    kind, value = option
    if kind == "SAck":
        return 2 + 4 * len(value)
    return _SIZES[kind] if isinstance(kind, str) else 2 + len(value)


@st.composite
def option_lists(draw: st.DrawFn) -> list[Option]:
    """Options that fit a header, in any order, repeated ones among them; often the two NOPs and timestamps of Linux."""
    one: st.SearchStrategy[Option] = st.one_of(
        st.just(("NOP", None)),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("WScale"), u8),
        st.tuples(st.just("MSS"), u16),
        st.tuples(st.just("Timestamp"), st.tuples(u32, u32)),
        st.tuples(st.just("SAck"), sack_blocks),
        st.tuples(st.just(253), st.binary(max_size=12)),  # RFC 4727
    )
    options: list[Option] = []
    if draw(st.booleans()):
        options = [("NOP", None), ("NOP", None), ("Timestamp", (draw(u32), draw(u32)))]
    for option in draw(st.lists(one, max_size=6)):
        if sum(map(option_size, options)) + option_size(option) <= 40:
            options.append(option)
    return options


@st.composite
def packets(draw: st.DrawFn) -> Any:
    """An IPv4 packet with a TCP segment, as scapy's object."""
    ip = IP(
        src=draw(addresses),
        dst=draw(addresses),
        tos=draw(u8),
        id=draw(u16),
        ttl=draw(u8),
        flags=draw(st.sampled_from((0, "DF"))),
        options=[IPOption_NOP()] * draw(st.sampled_from((0, 0, 0, 4, 40))),
    )
    tcp = TCP(
        sport=draw(u16),
        dport=draw(u16),
        seq=draw(u32),
        ack=draw(u32),
        flags=draw(u8),
        window=draw(u16),
        urgptr=draw(u16),
        options=draw(option_lists()),
    )
    payload = draw(payloads)
    return ip / tcp / Raw(payload) if payload else ip / tcp


def dissect(packet: bytes | bytearray) -> Any:
    """What scapy reads."""
    return IP(bytes(packet))


def tcp_checksum(packet: bytes | bytearray) -> int:
    """The TCP checksum that scapy would write, whatever is there now."""
    ip = dissect(packet)
    start, end = 4 * ip.ihl, ip.len
    segment = bytearray(packet[start:end])
    segment[16:18] = b"\0\0"
    checksum: int = in4_chksum(6, ip, bytes(segment))
    return checksum


def first(options: list[Option], wanted: str) -> Any:
    """The value of the first option of a kind, None without one."""
    return next((value for kind, value in options if kind == wanted), None)


def pairs(flat: tuple[int, ...] | None) -> list[tuple[int, int]]:
    """scapy's SACK edges as blocks."""
    return list(zip(flat[::2], flat[1::2], strict=True)) if flat else []
