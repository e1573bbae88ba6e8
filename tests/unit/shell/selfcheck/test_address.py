"""What the self-check says of the service address: the reason, the weight on this host, and the cure."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import replace
from typing import cast

import pytest

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.neighbourhood import Neighbourhood
from nfq_failover.shell.host.presence import Presence
from nfq_failover.shell.host.rtnetlink import Address, Link
from nfq_failover.shell.selfcheck.address import AddressCheck
from nfq_failover.shell.selfcheck.conflict import ConflictCheck

SERVICE = "192.0.2.100"
PACKED = socket.inet_aton(SERVICE)
WELL = Presence(Link(2, "eth0", 1), True, True, None, False, ())


class Settings:
    """The ARP settings, as the check asks for them."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.wrong: list[str] = []
        self.error: OSError | None = None

    def look(self, everywhere: bool = False) -> list[str]:
        self.asked.append(everywhere)
        if self.error:
            raise self.error
        wrong, self.wrong = self.wrong, []
        return wrong


class Host:
    """A service address whose repairs have the outcome that a test wants."""

    def __init__(self) -> None:
        self.service, self.interface, self.serves = SERVICE, "eth0", False
        self.problem = ""
        self.repairs: deque[float] = deque()
        self.settings = Settings()
        self.links_seen = 1
        self.found = WELL
        self.repaired = 0

    def look(self) -> Presence:
        return self.found

    def repair(self, now: float) -> Presence:
        del now
        self.repaired += 1
        return self.found


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def check(host: Host) -> AddressCheck:
    return AddressCheck(cast(ServiceAddress, host))


def only(concerns: tuple[Concern, ...]) -> Concern:
    (concern,) = concerns
    return concern


def test_all_is_well(host: Host, check: AddressCheck) -> None:
    assert check.run(0.0) == ()
    host.serves, host.found = True, replace(WELL, heard=True)
    assert check.run(1.0) == ()


def test_missing_and_not_to_be_put_back(host: Host, check: AddressCheck) -> None:
    host.found, host.problem = replace(WELL, on_lo=False), "Operation not permitted"
    concern = only(check.run(0.0))
    assert (concern.code, concern.weight, concern.bears) == ("address-missing", Weight.UNPROTECTED, Part.ANY)
    assert "Operation not permitted" in concern.what and concern.cure == f"ip addr add {SERVICE}/32 dev lo"


def test_lo_down_is_as_bad(host: Host, check: AddressCheck) -> None:
    host.found = replace(WELL, lo_up=False)
    concern = only(check.run(0.0))
    assert (concern.code, concern.cure) == ("address-missing", "ip link set lo up")


def test_the_one_that_serves_needs_it_on_its_interface(host: Host, check: AddressCheck) -> None:
    host.serves = True
    concern = only(check.run(0.0))
    assert concern.code == "address-missing" and "dev eth0 scope host" in concern.cure


def test_put_back_once_is_a_warning_and_again_and_again_is_worse(host: Host, check: AddressCheck) -> None:
    host.repairs.extend([0.0, 1.0])
    concern = only(check.run(1.0))
    assert (concern.code, concern.weight) == ("address-taken-away", Weight.WARNING)
    host.repairs.append(2.0)
    assert only(check.run(2.0)).weight is Weight.DEGRADED
    assert only(check.run(60.5)).weight is Weight.WARNING
    assert check.run(63.0) == ()


def test_on_an_interface_where_neighbours_ask(host: Host, check: AddressCheck) -> None:
    host.found = replace(WELL, elsewhere=(("eth1", Address(3, PACKED, 24)),))
    concern = only(check.run(0.0))
    assert (concern.code, concern.weight, concern.bears) == ("address-elsewhere", Weight.UNPROTECTED, Part.BACKUP)
    assert f"ip addr del {SERVICE}/24 dev eth1" in concern.cure


def test_with_a_network_on_lo_and_without_its_interface(host: Host, check: AddressCheck) -> None:
    host.found = replace(WELL, interface=None, odd=Address(1, PACKED, 24))
    codes = {concern.code: concern.weight for concern in check.run(0.0)}
    assert codes == {"interface-missing": Weight.UNPROTECTED, "address-prefix": Weight.DEGRADED}


def test_settings_are_looked_at_everywhere_at_first_now_and_then_and_when_interfaces_change(
    host: Host, check: AddressCheck
) -> None:
    for now in range(4):
        check.run(float(now))
    host.links_seen += 1
    check.run(4.0)
    check.run(63.9)
    check.run(64.0)
    assert host.settings.asked == [True, False, False, False, True, False, True]


def test_settings_that_others_change_are_said_for_a_while(host: Host, check: AddressCheck) -> None:
    host.settings.wrong = ["net.ipv4.conf.all.arp_ignore was 0"]
    concern = only(check.run(0.0))
    assert (concern.code, concern.weight) == ("arp-settings-changed", Weight.WARNING)
    assert "net.ipv4.conf.all.arp_ignore was 0" in concern.what
    assert only(check.run(59.0)).code == "arp-settings-changed"
    assert check.run(60.0) == ()


def test_settings_that_can_t_be_set(host: Host, check: AddressCheck) -> None:
    host.settings.error = OSError("read-only")
    concern = only(check.run(0.0))
    assert (concern.code, concern.weight, concern.bears) == ("arp-settings", Weight.UNPROTECTED, Part.BACKUP)


def test_without_a_daemon_nothing_is_mended_or_expected(host: Host) -> None:
    host.found = replace(WELL, on_lo=False, elsewhere=(("eth0", Address(2, PACKED, 24)),))
    concerns = AddressCheck(cast(ServiceAddress, host), mend=False).run(0.0)
    assert only(concerns).code == "address-elsewhere"
    assert host.repaired == 0 and host.settings.asked == []


class Segment:
    """What ARP has said."""

    def __init__(self, *present: tuple[str, bool]) -> None:
        self.present = list(present)

    def conflicts(self, now: float) -> list[tuple[str, bool]]:
        del now
        return self.present


@pytest.mark.parametrize(
    ("present", "said"),
    [
        ([("02:00:00:00:00:66", True)], "another machine has the service address"),
        ([("02:00:00:00:00:66", False)], "the peer, or another machine, is heard"),
        ([("02:77:00:00:00:03", False), ("02:00:00:00:00:66", True)], "another machine has"),
    ],
)
def test_others_that_have_the_address(present: list[tuple[str, bool]], said: str) -> None:
    concern = only(ConflictCheck(cast(Neighbourhood, Segment(*present)), SERVICE).run(0.0))
    assert (concern.code, concern.weight) == ("address-conflict", Weight.UNPROTECTED)
    assert said in concern.what and all(mac in concern.what for mac, _ in present)


def test_nobody_else_has_it() -> None:
    assert ConflictCheck(cast(Neighbourhood, Segment()), SERVICE).run(0.0) == ()
