"""ICMP errors: what scapy builds we read and change, and nothing else but MalformedSegment is raised."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror

from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.icmp import IcmpError
from tests.support.scapy_packets import packets
from tests.support.strategies import u16, u32


def error_about(packet: Any, kept: int | None, mtu: int) -> bytearray:
    """What a router says that keeps `kept` bytes of the TCP header and payload."""
    raw = bytes(packet)
    start = (raw[0] & 15) << 2
    quoted = raw if kept is None else raw[: start + kept]
    return bytearray(bytes(IP(src="192.0.2.1", dst=packet.src) / ICMP(type=3, code=4, nexthopmtu=mtu) / quoted))


@given(packets(), st.none() | st.integers(8, 60), u16, u32)
def test_quoted_segment_is_read_and_its_number_exchanged(packet: Any, kept: int | None, mtu: int, seq: int) -> None:
    buf = error_about(packet, kept, mtu)
    before = bytes(buf)
    error = IcmpError(buf)
    assert (error.code, error.seq) == (4, packet[TCP].seq)
    assert (error.src, error.dst) == (IPv4Address(packet.src).packed, IPv4Address(packet.dst).packed)
    assert (error.sport, error.dport) == (packet[TCP].sport, packet[TCP].dport)
    assert error.checksum_ok()
    error.set_seq(seq)
    assert error.checksum_ok()
    after = IP(bytes(error.buf))
    quoted = after[TCPerror] if after.haslayer(TCPerror) else after[IPerror].payload
    assert bytes(quoted)[4:8] == seq.to_bytes(4, "big")
    changed = [at for at, (old, new) in enumerate(zip(before, error.buf, strict=True)) if old != new]
    start = 28 + ((before[28] & 15) << 2) + 4
    assert set(changed) <= {22, 23, *range(start, start + 4)}
    error.set_seq(packet[TCP].seq)
    assert error.checksum_ok()


@given(packets(), st.data())
def test_damage_is_refused_or_harmless(packet: Any, data: st.DataObject) -> None:
    buf = error_about(packet, 8, 1200)
    for _ in range(data.draw(st.integers(1, 4))):
        buf[data.draw(st.integers(0, len(buf) - 1))] = data.draw(st.integers(0, 255))
    del buf[data.draw(st.integers(0, len(buf))) :]
    with contextlib.suppress(MalformedSegment):
        error = IcmpError(buf)
        error.set_seq(7)
        assert error.checksum_ok()
        assert len(error.buf) == len(buf)
