"""The assembler, and the filter against a plain reading of the same packets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfq_failover.shell.packets.bpf import WHOLE_PACKET, Instruction, Line, Op, assemble, inbound_data_filter
from tests.support.bpf_machine import run

SERVICE = bytes((10, 77, 0, 100))
PORTS = ((80, 80), (7000, 7099))
FILTER = inbound_data_filter(SERVICE, PORTS)


def packet(
    *,
    dst: bytes = SERVICE,
    port: int = 80,
    flags: int = 0x10,
    payload: int = 0,
    ip_options: int = 0,
    tcp_options: int = 0,
    fragment: int = 0x4000,
    protocol: int = 6,
    version: int = 4,
    padding: int = 0,
) -> bytes:
    """An IPv4 packet; options in 32-bit words, `padding` bytes behind its end."""
    ihl, offset = 5 + ip_options, 5 + tcp_options
    size = 4 * (ihl + offset) + payload
    size = size if size <= 0xFFFF else 0
    ip = struct.pack("!BBHHHBBH4s4s", version << 4 | ihl, 0, size, 7, fragment, 64, protocol, 0, bytes(4), dst)
    tcp = struct.pack("!HHIIBBHHH", 4000, port, 1, 2, offset << 4, flags, 500, 0, 0)
    return ip + b"\1" * 4 * ip_options + tcp + b"\1" * 4 * tcp_options + bytes(payload + padding)


def passes(data: bytes, packet_type: int = 0) -> bool:
    answer = run(FILTER, data, packet_type)
    assert answer in (0, WHOLE_PACKET)
    return answer == WHOLE_PACKET


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (packet(payload=1), True),
        (packet(payload=0), False),
        (packet(payload=0, padding=6), False),  # padded to the least Ethernet frame
        (packet(flags=0x11), True),
        (packet(flags=0x14), True),
        (packet(flags=0x04), True),
        (packet(flags=0x02), False),
        (packet(flags=0x02, payload=9), True),  # data on a SYN
        (packet(payload=1, tcp_options=10), True),
        (packet(payload=0, tcp_options=10), False),
        (packet(payload=1, ip_options=10), True),
        (packet(payload=0, ip_options=10), False),
        (packet(payload=0x10000 - 40), True),  # IPv4 BIG TCP
        (packet(flags=0x11, ip_options=10, tcp_options=3), True),
        (packet(payload=65535 - 40), True),
        (packet(payload=1, port=7000), True),
        (packet(payload=1, port=7099), True),
        (packet(payload=1, port=6999), False),
        (packet(payload=1, port=7100), False),
        (packet(payload=1, port=81), False),
        (packet(payload=1, dst=bytes((10, 77, 0, 101))), False),
        (packet(payload=1, protocol=17), False),
        (packet(payload=1, version=6), False),
        (packet(payload=1, fragment=0x2000), False),
        (packet(payload=1, fragment=0x0001), False),
        (packet(payload=1)[:33], False),
        (b"", False),
    ],
)
def test_what_passes(data: bytes, expected: bool) -> None:
    assert passes(data) is expected


@pytest.mark.parametrize(("packet_type", "expected"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_packet_types(packet_type: int, expected: bool) -> None:
    assert passes(packet(payload=1), packet_type) is expected


def oracle(data: bytes) -> bool:
    """The same in plain Python."""
    if len(data) < 20 or data[0] >> 4 != 4 or data[9] != 6 or data[16:20] != SERVICE:
        return False
    if int.from_bytes(data[6:8], "big") & 0x3FFF:
        return False
    tcp = 4 * (data[0] & 15)
    if len(data) < tcp + 14:
        return False
    port = int.from_bytes(data[tcp + 2 : tcp + 4], "big")
    carries = int.from_bytes(data[2:4], "big") > tcp + 4 * (data[tcp + 12] >> 4)
    return any(low <= port <= high for low, high in PORTS) and (carries or bool(data[tcp + 13] & 0x05))


@given(
    port=st.sampled_from((79, 80, 81, 6999, 7000, 7050, 7099, 7100)),
    flags=st.integers(0, 255),
    payload=st.integers(0, 20),
    ip_options=st.integers(0, 10),
    tcp_options=st.integers(0, 10),
    cut=st.integers(0, 60),
    patch=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
)
@example(port=80, flags=0, payload=0, ip_options=0, tcp_options=0, cut=26, patch=[])
def test_filter_equals_the_plain_reading(
    port: int, flags: int, payload: int, ip_options: int, tcp_options: int, cut: int, patch: list[tuple[int, int]]
) -> None:
    data = bytearray(packet(port=port, flags=flags, payload=payload, ip_options=ip_options, tcp_options=tcp_options))
    for offset, value in patch:
        if offset < len(data):
            data[offset] = value
    data = data[: max(0, len(data) - cut)]
    assert passes(bytes(data)) is oracle(bytes(data))


def test_many_ports_stay_within_reach() -> None:
    ports = tuple((low, low + 1) for low in range(1, 3000, 3))
    program = inbound_data_filter(SERVICE, ports)
    assert run(program, packet(payload=1, port=2998)) == WHOLE_PACKET
    assert run(program, packet(payload=1, port=1)) == WHOLE_PACKET
    assert run(program, packet(payload=1, port=3)) == 0


RETURN = Instruction(Op.RETURN, 0)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([Instruction(Op.JUMP, yes="nowhere"), RETURN], "no label nowhere"),
        (["a", RETURN, "a", RETURN], "twice"),
        (["back", RETURN, Instruction(Op.JUMP, yes="back"), RETURN], "out of reach"),
        ([Instruction(Op.IF_EQUAL, 0, yes="far"), *[RETURN] * 256, "far", RETURN], "out of reach"),
        ([Instruction(Op.JUMP, yes="end"), RETURN, "end"], "out of reach"),
        ([], "0 instructions"),
        ([RETURN] * 4097, "4097 instructions"),
    ],
)
def test_bad_programs_are_refused(program: list[Line], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(program)


def test_layout() -> None:
    program: list[Line] = [Instruction(Op.IF_EQUAL, 0x40, no="out"), Instruction(Op.RETURN, 9), "out", RETURN]
    expected = (
        struct.pack("=HBBI", 0x15, 0, 1, 0x40) + struct.pack("=HBBI", 6, 0, 0, 9) + struct.pack("=HBBI", 6, 0, 0, 0)
    )
    assert assemble(program) == expected


def test_service_address_has_to_be_ipv4() -> None:
    with pytest.raises(ValueError, match="not IPv4"):
        inbound_data_filter(bytes(16), PORTS)
