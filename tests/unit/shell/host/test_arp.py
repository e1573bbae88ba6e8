"""ARP frames, against another implementation."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from nfq_failover.shell.host import arp

MAC, OTHER = bytes.fromhex("027700000002"), bytes.fromhex("027700000001")
SERVICE, CLIENT = "192.0.2.100", "192.0.2.1"


def read(frame: bytes) -> tuple[str, int, str, str, str]:
    """(destination, operation, sender's hardware address, sender, target), by scapy."""
    parsed = Ether(frame)
    body = parsed[ARP]
    assert parsed.src == body.hwsrc == MAC.hex(":") and len(frame) == 42
    return parsed.dst, body.op, body.hwsrc, body.psrc, body.pdst


def test_an_ordinary_request_to_one_neighbour_or_to_all() -> None:
    service, client = socket.inet_aton(SERVICE), socket.inet_aton(CLIENT)
    assert read(arp.question(MAC, service, client, OTHER)) == (OTHER.hex(":"), 1, MAC.hex(":"), SERVICE, CLIENT)
    assert read(arp.question(MAC, service, client))[0] == "ff:ff:ff:ff:ff:ff"


def test_a_probe_has_no_sender() -> None:
    assert read(arp.probe(MAC, socket.inet_aton(SERVICE)))[1:] == (1, MAC.hex(":"), "0.0.0.0", SERVICE)


def test_an_announcement_is_a_request_and_a_reply() -> None:
    request, reply = (read(frame) for frame in arp.announcement(MAC, socket.inet_aton(SERVICE)))
    assert request == ("ff:ff:ff:ff:ff:ff", 1, MAC.hex(":"), SERVICE, SERVICE)
    assert reply == ("ff:ff:ff:ff:ff:ff", 2, MAC.hex(":"), SERVICE, SERVICE)


def test_what_is_heard() -> None:
    heard = Ether(dst=MAC.hex(":"), src=OTHER.hex(":")) / ARP(
        op=2, hwsrc=OTHER.hex(":"), psrc=CLIENT, hwdst=MAC.hex(":"), pdst=SERVICE
    )
    wanted = arp.ArpFrame(2, OTHER, socket.inet_aton(CLIENT), socket.inet_aton(SERVICE))
    assert arp.parse(bytes(heard)) == wanted
    assert arp.parse(bytes(heard) + bytes(18)) == wanted  # padded to the least length of a frame


@pytest.mark.parametrize("change", [{"hwtype": 6}, {"ptype": 0x86DD}, {"op": 3}])
def test_other_kinds_say_nothing(change: dict[str, int]) -> None:
    packet = ARP(op=1, hwsrc=OTHER.hex(":"), psrc=CLIENT, pdst=SERVICE)
    assert arp.parse(bytes(Ether() / packet)) is not None
    for name, value in change.items():
        setattr(packet, name, value)
    assert arp.parse(bytes(Ether() / packet)) is None


@given(st.binary(max_size=80))
def test_whatever_comes_is_read_or_refused(frame: bytes) -> None:
    arp.parse(frame)
