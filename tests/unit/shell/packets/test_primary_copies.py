"""Copies of what comes in: kept by a protected primary alone, and of the ports that it serves now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfq_failover.core.events import FrameCopied, Profile
from nfq_failover.core.ports import Ports
from nfq_failover.core.settings import Settings
from nfq_failover.shell.packets import primary_copies
from nfq_failover.shell.packets.primary_copies import PrimaryCopies
from tests.support.configured import settings

SERVICE = bytes((10, 0, 0, 100))


class Socket:
    """What stands for the packet socket."""

    opened: list[Socket] = []

    def __init__(self, interface: str, service: bytes, ports: Ports) -> None:
        self.ports, self.closed, self.waiting = ports, False, 0
        self.interface, self.service = interface, service
        self.opened.append(self)

    def serve(self, service: bytes, ports: Ports) -> None:
        self.service, self.ports = service, ports

    def read(self, limit: int) -> list[FrameCopied]:
        count = min(limit, self.waiting)
        self.waiting -= count
        return [FrameCopied(bytearray())] * count

    def lost(self) -> int:
        return 3

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrimaryCopies]:
    monkeypatch.setattr(primary_copies, "InboundCopies", Socket)
    monkeypatch.setattr(Socket, "opened", [])
    yield PrimaryCopies("eth0", SERVICE, ((80, 80),))


def test_only_a_protected_primary_keeps_them(copies: PrimaryCopies) -> None:
    copies.follow(Profile.BACKUP)
    assert (Socket.opened, copies.read(4), copies.lost()) == ([], [], 0)
    copies.follow(Profile.PRIMARY)
    copies.follow(Profile.PRIMARY)
    (socket,) = Socket.opened
    assert copies.lost() == 3
    copies.follow(Profile.ALONE)
    assert socket.closed
    assert copies.lost() == 0


def test_ports_that_are_added_while_they_are_kept_are_copied_too(copies: PrimaryCopies) -> None:
    copies.follow(Profile.PRIMARY)
    copies.serve(((80, 81),))
    assert Socket.opened[0].ports == ((80, 81),)


def test_ports_of_a_first_reload_are_seen_although_the_node_adopts_its_settings(copies: PrimaryCopies) -> None:
    """The node's settings are the object that the configuration had at the start: after they were adopted the two are
    equal, and say nothing of what has changed."""
    mine: Settings = settings(ports=((80, 80),))
    kept = PrimaryCopies("eth0", SERVICE, mine.ports)
    kept.follow(Profile.PRIMARY)
    mine.adopt(settings(ports=((80, 81),)))
    kept.serve(mine.ports)
    assert Socket.opened[0].ports == ((80, 81),)


def test_an_interface_that_has_come_back_is_copied_from_anew(copies: PrimaryCopies) -> None:
    copies.reopen()
    assert not Socket.opened
    copies.follow(Profile.PRIMARY)
    copies.serve(((80, 81),))
    copies.reopen()
    first, second = Socket.opened
    assert (first.closed, second.closed, second.ports) == (True, False, ((80, 81),))


def test_as_many_as_were_asked_for_may_not_be_all(copies: PrimaryCopies) -> None:
    copies.follow(Profile.PRIMARY)
    Socket.opened[0].waiting = 6
    assert (len(copies.read(4)), copies.due) == (4, True)
    assert (len(copies.read(4)), copies.due) == (2, False)
