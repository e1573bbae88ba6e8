"""The nfnetlink codec against messages laid out by hand (linux/netfilter/nfnetlink_queue.h)."""

from __future__ import annotations

import struct

from nfq_failover.shell.packets import netlink as nl

HEADER = "=IHHII"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, flags: int, sequence: int, queue: int, body: bytes) -> bytes:
    family = b"\0\0" + struct.pack("!H", queue)
    return struct.pack(HEADER, 20 + len(body), kind, flags, sequence, 0) + family + body


def packet_message(*attributes: bytes) -> bytes:
    return message(0x300, 0, 0, 7760, b"".join(attributes))


def packet_header(packet_id: int) -> bytes:
    return attribute(1, struct.pack("!IHB", packet_id, 0x0800, 3))


def test_flags_are_set_with_their_mask() -> None:
    value = struct.pack("!I", 4)
    expected = message(0x302, 1 | 4, 9, 7760, attribute(5, value) + attribute(4, value))
    assert nl.config_flags(7760, nl.F_GSO, sequence=9) == expected
    taken_away = message(0x302, 1, 0, 7760, attribute(5, bytes(4)) + attribute(4, value))
    assert nl.config_flags(7760, nl.F_GSO, on=False) == taken_away


def test_configuration_without_sequence_asks_for_no_answer() -> None:
    assert nl.config_max_len(2, 8192) == message(0x302, 1, 0, 2, attribute(3, struct.pack("!I", 8192)))
    assert nl.config_copy_packet(2) == message(0x302, 1, 0, 2, attribute(2, b"\0\0\xff\xff\2"))
    assert nl.config_unbind(2) == message(0x302, 1, 0, 2, attribute(1, b"\2\0\0\0"))


def test_drop_verdict_has_nothing_but_the_verdict() -> None:
    expected = message(0x301, 1, 0, 7761, attribute(2, struct.pack("!II", 0, 0x01020304)))
    assert nl.verdict(7761, 0x01020304, False, None, None) == [expected]


def test_accept_verdict_with_mark() -> None:
    body = attribute(2, struct.pack("!II", 1, 5)) + attribute(3, struct.pack("!I", 0x10000001))
    assert nl.verdict(1, 5, True, 0x10000001, None) == [message(0x301, 1, 0, 1, body)]


def test_verdict_with_packet_is_padded_behind_its_stated_length() -> None:
    for size in range(20, 28):
        packet = bytes(range(size))
        parts = nl.verdict(1, 5, True, 0x10000001, packet)
        raw = b"".join(bytes(part) for part in parts)
        assert len(raw) % 4 == 0
        length, kind = nl.message_header(raw, 0)
        assert (length, kind) == (40 + 4 + size, nl.MSG_VERDICT)
        assert raw[40:44] == struct.pack("=HH", 4 + size, 10)
        assert raw[44:length] == packet
        assert parts[1] is packet  # sent from where it is


def test_packet_message_of_the_kernel() -> None:
    packet = bytes(range(61))
    raw = packet_message(
        packet_header(0x80000001),
        attribute(5, struct.pack("!I", 2)),  # NFQA_IFINDEX_INDEV
        attribute(3, struct.pack("!I", 0x10000000)),
        attribute(9, bytes(12)),  # NFQA_HWADDR
        attribute(14, struct.pack("!I", nl.SKB_CSUM_NOT_READY | nl.SKB_GSO)),
        attribute(10, packet),
    )
    fields = nl.packet_fields(raw, 0, len(raw))
    assert fields is not None
    packet_id, mark, info, start, stop, whole = fields
    assert (packet_id, mark, info, whole) == (0x80000001, 0x10000000, 3, 61)
    assert raw[start:stop] == packet


def test_truncated_packet_says_its_length() -> None:
    raw = packet_message(packet_header(1), attribute(13, struct.pack("!I", 65535)), attribute(10, bytes(100)))
    fields = nl.packet_fields(raw, 0, len(raw))
    assert fields is not None
    assert fields[4] - fields[3] == 100
    assert fields[5] == 65535


def test_packet_message_without_payload() -> None:
    raw = packet_message(packet_header(1))
    assert nl.packet_fields(raw, 0, len(raw)) == (1, 0, 0, len(raw), len(raw), 0)


def test_broken_messages_are_refused() -> None:
    good = packet_message(packet_header(1), attribute(10, bytes(40)))
    assert nl.packet_fields(good, 0, len(good) - 1) is None  # cut off
    assert nl.packet_fields(packet_message(attribute(10, bytes(40))), 0, 64) is None  # no packet header
    zero = packet_message(packet_header(1), bytes(4))
    assert nl.packet_fields(zero, 0, len(zero)) is None  # attribute of length 0: must not loop for ever


def test_error_answer() -> None:
    request = nl.config_flags(1, nl.F_GSO, sequence=77)
    body = struct.pack("=i", -95) + request
    raw = struct.pack(HEADER, 16 + len(body), nl.NLMSG_ERROR, 0, 77, 4711) + body
    assert nl.message_header(raw, 0) == (len(raw), nl.NLMSG_ERROR)
    assert nl.error_answer(raw, 0) == (95, 77)
