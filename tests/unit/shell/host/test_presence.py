"""Where the service address is, and where it must not be."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nfq_failover.shell.host.presence import Presence, configured_in, find, heard_address, how_to_remove
from nfq_failover.shell.host.rtnetlink import IFF_LOOPBACK, IFF_NOARP, IFF_UP, SCOPE_HOST, Address, Link

SERVICE = "192.0.2.100"
PACKED = socket.inet_aton(SERVICE)
LINKS = {
    1: Link(1, "lo", IFF_UP | IFF_LOOPBACK),
    2: Link(2, "eth0", IFF_UP),
    3: Link(3, "eth1", IFF_UP),
    4: Link(4, "dummy0", IFF_UP | IFF_NOARP),
}
OWN = Address(2, socket.inet_aton("192.0.2.11"), 24, 0, "eth0")


def look(*addresses: Address, links: dict[int, Link] = LINKS) -> Presence:
    return find(PACKED, "eth0", (OWN, *addresses), links)


def test_nowhere() -> None:
    found = look()
    assert found == Presence(LINKS[2], True, False, None, False, ())
    assert not found.anywhere


@pytest.mark.parametrize("index", [1, 4])
def test_where_nobody_asks_it_is_at_home(index: int) -> None:
    found = look(Address(index, PACKED, 32, 0, "lo"))
    assert found.on_lo and found.anywhere and not found.elsewhere


def test_ours_on_the_interface_is_told_from_anybody_else_s() -> None:
    ours = heard_address(LINKS[2], PACKED)
    assert (ours.scope, ours.prefix_bits) == (SCOPE_HOST, 32)  # never a source, and no network
    assert look(ours).heard and not look(ours).elsewhere
    for other in (Address(2, PACKED, 24, 0, "eth0"), Address(2, PACKED, 32, 0, "eth0")):
        found = look(ours, other)
        assert found.heard and found.elsewhere == (("eth0", other),)


def test_on_another_interface_and_with_a_network_on_lo() -> None:
    second, odd = Address(3, PACKED, 32, 0, "eth1"), Address(1, PACKED, 24, 0, "lo")
    found = look(second, odd)
    assert found.elsewhere == (("eth1", second),)
    assert found.odd == odd and not found.on_lo and found.anywhere


def test_lo_down_and_no_interface() -> None:
    found = look(links={1: Link(1, "lo", IFF_LOOPBACK)})
    assert found.interface is None and not found.lo_up


def test_the_label_fits_a_long_name() -> None:
    label = heard_address(Link(7, "enp0s31f6np0vlan"[:15], 0), PACKED).label
    assert len(label) <= 15 and label.endswith(":nfqf")


def test_the_cure_names_the_command_and_the_file(tmp_path: Path) -> None:
    netplan, ifupdown = tmp_path / "etc/netplan", tmp_path / "etc/network"
    netplan.mkdir(parents=True)
    ifupdown.mkdir(parents=True)
    (netplan / "50-cloud.yaml").write_text("addresses: [192.0.2.11/24, 192.0.2.100/24]\n")
    (netplan / "60-other.yaml").write_text("addresses: [192.0.2.1001/24, 1192.0.2.100, 192.0.2.100.7]\n")
    (ifupdown / "interfaces").write_text("address 192.0.2.100\n")
    assert configured_in(SERVICE, tmp_path) == ["/etc/netplan/50-cloud.yaml", "/etc/network/interfaces"]
    elsewhere = [("eth0", Address(2, PACKED, 24, 0, "eth0"))]
    cure = how_to_remove(SERVICE, elsewhere, tmp_path)
    assert "ip addr del 192.0.2.100/24 dev eth0" in cure and "/etc/netplan/50-cloud.yaml" in cure
    assert "netplan, systemd-networkd" in how_to_remove(SERVICE, elsewhere, tmp_path / "nothing")
