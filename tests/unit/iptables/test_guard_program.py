"""The silence guard's packet filter, run on packets by a small interpreter of classic BPF."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_iptables import PEER, plan

NET = 0xFFF00000  # SKF_NET_OFF, linux/filter.h
MARK_AT = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
DROPPED, PASSED = 4, 0xFFFFFFFF
SERVICE = bytes((10, 77, 0, 100))
OTHER = bytes((10, 77, 0, 2))
MARK = 0x10000000


@dataclass
class Instruction:
    code: int
    if_true: int
    if_false: int
    k: int


def program(directory: Path, role: str, *arguments: str) -> list[Instruction]:
    found = re.search(r"bytecode '(\d+),([^']*)'", plan(directory, role, *PEER, *arguments))
    assert found is not None
    instructions = [Instruction(*map(int, text.split())) for text in found[2].split(",")]
    assert len(instructions) == int(found[1])
    return instructions


def execute(instructions: list[Instruction], packet: bytes, mark: int) -> int:
    """Run it as Documentation/networking/filter.rst says; a load outside the packet ends it with 0."""
    a = x = at = 0
    while True:
        step = instructions[at]
        at += 1
        match step.code:
            case 0x00:
                a = step.k
            case 0x05:
                at += step.k
            case 0x06:
                return step.k
            case 0x54:
                a &= step.k
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = {0x15: a == step.k, 0x25: a > step.k, 0x35: a >= step.k, 0x45: bool(a & step.k)}[step.code]
                at += step.if_true if holds else step.if_false
            case 0x20 if step.k == MARK_AT:
                a = mark
            case 0x20 | 0x28 | 0x30 | 0x48 | 0xB1:
                size = {0x20: 4, 0x28: 2, 0x48: 2}.get(step.code, 1)
                offset = step.k - NET + (x if step.code == 0x48 else 0)
                if not 0 <= offset <= len(packet) - size:
                    return 0
                value = int.from_bytes(packet[offset : offset + size], "big")
                if step.code == 0xB1:
                    x = (value & 0xF) * 4
                else:
                    a = value
            case _:
                raise AssertionError(f"unknown instruction {step}")


def packet(source: bytes, port: int, protocol: int = 6, options: int = 0, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45 + options, 0, 0, 0, fragment, 64, protocol, 0, source, bytes(4))
    return head + bytes(4 * options) + struct.pack("!HH", port, 1234) + bytes(16)


def test_backup_drops_all_of_the_service_address_and_nothing_else(tmp_path: Path) -> None:
    filter_program = program(tmp_path, "backup")
    for protocol in (1, 6, 17):
        for port in (0, 80, 5000):
            assert execute(filter_program, packet(SERVICE, port, protocol), 0) == DROPPED
            assert execute(filter_program, packet(SERVICE, port, protocol), ~MARK & 0xFFFFFFFF) == DROPPED
            assert execute(filter_program, packet(SERVICE, port, protocol), MARK | 7) == PASSED
            assert execute(filter_program, packet(OTHER, port, protocol), 0) == PASSED


@pytest.mark.parametrize("ports", ["80", "80,7000:7099", ",".join(str(p) for p in range(1000, 1400, 3))])
def test_primary_drops_the_services_own_ports(tmp_path: Path, ports: str) -> None:
    filter_program = program(tmp_path, "primary", "--ports", ports)
    served = {80, *range(7000, 7100)}
    for item in ports.split(","):
        low, _, high = item.partition(":")
        served |= set(range(int(low), int(high or low) + 1))
    probes = served | {port + 1 for port in served} | {port - 1 for port in served} | {1, 65535}
    for port in probes:
        for options in (0, 10):
            sent = packet(SERVICE, port, options=options)
            assert execute(filter_program, sent, 0) == (DROPPED if port in served else PASSED)
            assert execute(filter_program, sent, MARK) == PASSED
    assert execute(filter_program, packet(SERVICE, 80, protocol=17), 0) == PASSED
    assert execute(filter_program, packet(OTHER, 80), 0) == PASSED
    assert execute(filter_program, packet(SERVICE, 80, fragment=0x4000), 0) == DROPPED, "don't fragment"
    assert execute(filter_program, packet(SERVICE, 80, fragment=0x2000), 0) == DROPPED, "a first fragment"
    assert execute(filter_program, packet(SERVICE, 80, fragment=100), 0) == PASSED, "no header, no port"


def test_a_mask_of_several_bits_needs_all_of_them(tmp_path: Path) -> None:
    filter_program = program(tmp_path, "backup", "--mark", "0x30")
    assert execute(filter_program, packet(SERVICE, 80), 0x10) == DROPPED
    assert execute(filter_program, packet(SERVICE, 80), 0x20) == DROPPED
    assert execute(filter_program, packet(SERVICE, 80), 0x130) == PASSED


def test_instances_know_their_own(tmp_path: Path) -> None:
    def names(instance: str) -> list[int]:
        return [step.k for step in program(tmp_path, "backup", "--instance", instance) if step.code == 0]

    assert bytes(names("web_2")[1:]) == b"web_2"
    assert len(names("web")) == 4
    assert names("web")[0].to_bytes(4, "big") == b"NFQF"
