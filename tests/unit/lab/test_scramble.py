"""What the scrambler does to a segment, and which shifts it chooses."""

from __future__ import annotations

import struct

import pytest

from nfq_failover.constants import ACK, PSH, RST, SYN
from nfq_failover.lab.scramble import Shifts, parse_ports, ruleset, scramble, unscramble
from nfq_failover.wire.segment import Segment

SERVER = b"\x0a\x4d\x00\x64"
CLIENT = b"\x0a\x4d\x00\x01"
TIMESTAMPS = bytes((1, 1, 8, 10))


def segment(flags: int, seq: int, ack: int, options: bytes = b"", *, outward: bool = True, port: int = 4000) -> Segment:
    src, dst = (SERVER, CLIENT) if outward else (CLIENT, SERVER)
    sport, dport = (80, port) if outward else (port, 80)
    size = 20 + 20 + len(options) + 3
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 6, 0, src, dst)
    offset = (5 + len(options) // 4) << 4
    tcp = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, flags, 500, 0, 0)
    return Segment(bytearray(ip + tcp + options + b"abc"))


def timestamps(tsval: int, tsecr: int) -> bytes:
    return TIMESTAMPS + struct.pack("!II", tsval, tsecr)


def test_outward_seq_and_tsval_move_and_wrap() -> None:
    it = segment(ACK | PSH, 0xFFFFFFF0, 77, timestamps(0xFFFFFFFF, 5))
    before = bytes(it.buf)
    scramble(it, 0x20, 2)
    again = Segment(it.buf)
    assert (again.seq, again.ack, again.tsval, again.tsecr) == (0x10, 77, 1, 5)
    changed = [i for i, (old, new) in enumerate(zip(before, it.buf, strict=True)) if old != new]
    assert set(changed) <= {*range(24, 28), *range(44, 48)}


def test_inward_ack_sack_and_tsecr_move_back() -> None:
    sack = bytes((1, 1, 5, 18)) + struct.pack("!IIII", 0x10, 0x20, 0x30, 0x40)
    it = segment(ACK, 500, 8, timestamps(9, 1) + sack, outward=False)
    unscramble(it, 0x20, 2)
    again = Segment(it.buf)
    assert (again.seq, again.ack) == (500, 0xFFFFFFE8)
    assert again.sack == [(0xFFFFFFF0, 0), (0x10, 0x20)]
    assert (again.tsval, again.tsecr) == (9, 0xFFFFFFFF)


@pytest.mark.parametrize("flags", [SYN, RST])
def test_inward_without_ack_flag_stays(flags: int) -> None:
    it = segment(flags, 500, 0x1234, timestamps(9, 0x5678), outward=False)
    before = bytes(it.buf)
    unscramble(it, 0x20, 2)
    assert bytes(it.buf) == before


def test_inward_tsecr_zero_stays() -> None:
    it = segment(ACK, 500, 8, timestamps(9, 0), outward=False)
    unscramble(it, 1, 2)
    assert (Segment(it.buf).ack, Segment(it.buf).tsecr) == (7, 0)


def test_without_timestamps_only_seq_moves() -> None:
    it = segment(ACK, 1, 2)
    scramble(it, 10, 20)
    assert (Segment(it.buf).seq, Segment(it.buf).ts_off) == (11, 0)


def test_constant_shifts() -> None:
    shifts = Shifts((7, 8))
    assert shifts.of_outbound(segment(SYN | ACK, 1, 2)) == (7, 8)
    assert shifts.of_inbound(segment(ACK, 1, 2, outward=False)) == (7, 8)


def test_shifts_chosen_to_wrap_belong_to_the_connection() -> None:
    shifts = Shifts((7, 8), wrap_after_bytes=1000, wrap_after_ms=50)
    first = segment(SYN | ACK, 0x12345678, 2, timestamps(0xABCDEF01, 1))
    chosen = shifts.of_outbound(first)
    assert (0x12345678 + chosen[0]) & 0xFFFFFFFF == 2**32 - 1000
    assert (0xABCDEF01 + chosen[1]) & 0xFFFFFFFF == 2**32 - 50
    # The same SYN-ACK again, some time later; then traffic both ways.
    assert shifts.of_outbound(segment(SYN | ACK, 0x12345678, 2, timestamps(0xABCDF301, 1))) == chosen
    assert shifts.of_outbound(segment(ACK, 0x12345679, 3, timestamps(0xABCDF302, 1))) == chosen
    assert shifts.of_inbound(segment(ACK, 5, 6, outward=False)) == chosen
    # Another connection, and one that is not known.
    other = shifts.of_outbound(segment(SYN | ACK, 0x55, 2, timestamps(1, 1), port=4001))
    assert other != chosen
    assert shifts.of_inbound(segment(ACK, 5, 6, outward=False, port=4001)) == other
    assert shifts.of_inbound(segment(ACK, 5, 6, outward=False, port=4002)) == (7, 8)
    # The port is used again.
    assert shifts.of_outbound(segment(SYN | ACK, 0x99, 2, timestamps(1, 1))) != chosen


def test_only_one_of_the_two_may_be_chosen() -> None:
    shifts = Shifts((7, 8), wrap_after_ms=50)
    assert shifts.of_outbound(segment(SYN | ACK, 1, 2, timestamps(100, 1)))[0] == 7


def test_known_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfq_failover.lab.scramble._MAX_FLOWS", 2)
    shifts = Shifts((7, 8), wrap_after_bytes=1)
    for port in (1, 2, 3):
        shifts.of_outbound(segment(SYN | ACK, 1, 2, port=port))
    assert shifts.of_inbound(segment(ACK, 1, 2, outward=False, port=1)) == (7, 8)
    assert shifts.of_inbound(segment(ACK, 1, 2, outward=False, port=3)) != (7, 8)


def test_ports() -> None:
    assert parse_ports("80,7000:7099") == ((80, 80), (7000, 7099))
    for bad in ("", "0", "70000", "9:8", "http"):
        with pytest.raises(ValueError, match=r"port|invalid literal"):
            parse_ports(bad)


def test_rules_exempt_the_mark_outward_only() -> None:
    text = ruleset("10.77.0.100", ((80, 80), (7000, 7099)), 0x10000000, 1, 2)
    outward, inward = text.split("*mangle")
    for ports in ("80:80", "7000:7099"):
        start = f"-s 10.77.0.100/32 -p tcp --sport {ports} -m mark ! --mark 0x10000000/0x10000000 -j NFQUEUE"
        assert f"-A LAB-SCRAMBLE {start} --queue-num 1\n" in outward
        assert f"-A LAB-SCRAMBLE -d 10.77.0.100/32 -p tcp --dport {ports} -j NFQUEUE --queue-num 2\n" in inward
    assert (outward.count("queue-num"), inward.count("queue-num")) == (2, 2)
