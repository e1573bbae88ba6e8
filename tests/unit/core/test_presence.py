"""Whether the application is there: what each host says when it is not, and after how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nfq_failover.core.application import STEADY_S, Application
from nfq_failover.core.concerns import Part, Weight
from nfq_failover.core.events import ListenersSeen
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.roles import Role
from nfq_failover.core.pair.told import STALE_S, Told
from nfq_failover.core.presence import CODE, GONE_S, LATE_S, Presence
from nfq_failover.wire.records import Listens
from tests.support.configured import settings

A, B = 7000, 7010


class Host:
    """A host, its application and what the other host tells of its own."""

    def __init__(self, part: Part, own: tuple[int, ...] = (A,), theirs: tuple[int, ...] | None = (A,)) -> None:
        self.out = Outbox()
        self.now = 100.0
        self.told = Told("b", self.out.concerns)
        self.application = Application()
        members: Any = SimpleNamespace(role=Role.PRIMARY if part is Part.PRIMARY else Role.BACKUP)
        nobody: Any = None  # who is told of a look
        shadow: Any = SimpleNamespace(missing=self)
        self.where: set[int] | None = None  # both listen there
        self.presence = Presence(
            *(settings(ports=((A, B),)), self.out, self.application, self.told, nobody),
            *(members, nobody, shadow),
        )
        self.theirs = theirs
        self.inode = 1
        self.out.concerns.act_as(part)
        self.listens(*own)
        self.wait(STEADY_S)

    def listens(self, *ports: int, bound: tuple[int, ...] = ()) -> None:
        self.inode += 1
        found = frozenset((port, 100 * port + self.inode) for port in ports)
        event = ListenersSeen(found, 1.0, bound=tuple((port, "eth0") for port in bound))
        self.application.seen(event, self.now)

    def look(self, where: set[int] | None, now: float) -> None:
        """As `MissingReplicas` is called."""
        assert now == self.now
        self.where = where

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1) + 3):
            self.now += 0.1
            if self.theirs is not None:
                self.told.take(Listens(tuple((port, port) for port in self.theirs)), self.now)
            self.told.on_timer(self.now)
            self.presence.on_timer(self.now)

    @property
    def weight(self) -> Weight | None:
        found = [each for each in self.out.concerns.own if each.code == CODE]
        return found[0].weight if found else None

    @property
    def what(self) -> str:
        return self.out.concerns.own[0].what


def test_both_are_there() -> None:
    for part in (Part.PRIMARY, Part.BACKUP):
        assert Host(part).weight is None


def test_backup_whose_application_has_ended_protects_nothing() -> None:
    host = Host(Part.BACKUP)
    host.listens()
    host.wait(GONE_S - 1)
    assert host.weight is None
    host.wait(1)
    assert host.weight is Weight.UNPROTECTED and "no program of this host listens" in host.what
    host.listens(A)
    host.wait(0.5)
    assert host.weight is None


def test_backup_whose_application_has_never_been_there_protects_nothing() -> None:
    host = Host(Part.BACKUP, own=())
    assert host.weight is Weight.UNPROTECTED and "so far" in host.what


def test_backup_whose_application_listens_at_other_ports_protects_nothing() -> None:
    host = Host(Part.BACKUP, own=(B,))
    assert host.weight is Weight.UNPROTECTED and "does not listen at 7000" in host.what


def test_backup_that_lacks_one_of_several_ports_says_which() -> None:
    host = Host(Part.BACKUP, own=(A, B), theirs=(A, B))
    host.listens(A)
    host.wait(LATE_S - 1)
    assert host.weight is None, "a port that was opened for one transfer"
    host.wait(2)
    assert host.weight is Weight.DEGRADED and "at 7010" in host.what
    host.theirs = (A,)
    host.wait(0.5)
    assert host.weight is None


def test_ports_of_others_are_no_matter() -> None:
    host = Host(Part.BACKUP, own=(A,), theirs=(A, 22))
    host.wait(LATE_S)
    assert host.weight is None


def test_primary_whose_application_has_ended_says_so() -> None:
    host = Host(Part.PRIMARY)
    host.listens()
    host.wait(GONE_S)
    assert host.weight is Weight.DEGRADED and "clients are refused" in host.what
    host.listens(A)
    host.wait(0.5)
    assert host.weight is None


def test_primary_whose_application_was_never_there_while_the_other_is() -> None:
    assert Host(Part.PRIMARY, own=()).weight is Weight.DEGRADED


def test_primary_that_has_lost_one_of_several_ports_says_so() -> None:
    host = Host(Part.PRIMARY, own=(A, B), theirs=(A, B))
    host.wait(STEADY_S)
    host.listens(A)
    host.wait(LATE_S + 1)
    assert host.weight is Weight.DEGRADED and "7010" in host.what


def test_port_that_the_backup_alone_has_opened_is_no_matter() -> None:
    """As for a passive FTP transfer whose port the hosts have chosen each for itself."""
    host = Host(Part.PRIMARY, own=(A,), theirs=(A, B))
    host.wait(2 * LATE_S)
    assert host.weight is None


def test_service_that_nobody_has_started_so_far_is_a_warning() -> None:
    for part in (Part.PRIMARY, Part.BACKUP):
        host = Host(part, own=(), theirs=())
        assert host.weight is Weight.WARNING


def test_service_that_has_ended_on_both_hosts() -> None:
    for part, weight in ((Part.PRIMARY, Weight.DEGRADED), (Part.BACKUP, Weight.WARNING)):
        host = Host(part)
        host.listens()
        host.theirs = ()
        host.wait(GONE_S)
        assert host.weight is weight


def test_backup_of_a_peer_that_does_not_tell() -> None:
    """One of an earlier version."""
    host = Host(Part.BACKUP, theirs=None)
    host.listens()
    host.wait(GONE_S)
    assert host.weight is Weight.UNPROTECTED
    assert Host(Part.BACKUP, own=(), theirs=None).weight is Weight.WARNING


def test_what_the_peer_has_told_long_ago_counts_no_more() -> None:
    host = Host(Part.BACKUP, own=(B,))
    host.theirs = None
    host.wait(STALE_S)
    assert host.weight is None


def test_kernel_that_can_not_be_asked_is_a_warning() -> None:
    host = Host(Part.BACKUP)
    host.application.seen(ListenersSeen(frozenset(), 1.0, known=False), host.now)
    host.wait(GONE_S)
    assert host.weight is Weight.WARNING and "can't be asked" in host.what


def test_replica_whose_socket_is_bound_to_an_interface_is_not_reached() -> None:
    host = Host(Part.BACKUP)
    host.listens(A, bound=(A,))
    host.wait(GONE_S - 1)
    assert host.weight is None
    host.wait(1)
    assert host.weight is Weight.UNPROTECTED
    assert "socket at 7000 is bound to eth0 (SO_BINDTODEVICE)" in host.what and "does not listen" not in host.what
    assert "BindToDevice=" in host.out.concerns.own[0].cure
    host.listens(A)
    host.wait(0.5)
    assert host.weight is None


def test_one_port_of_several_that_is_bound_to_an_interface_limits() -> None:
    host = Host(Part.BACKUP, (A, B), (A, B))
    host.listens(A, B, bound=(B,))
    host.wait(LATE_S + 0.5)
    assert host.weight is Weight.DEGRADED and "socket at 7010 is bound to eth0" in host.what


def test_clients_reach_a_server_whose_socket_is_bound_to_an_interface() -> None:
    host = Host(Part.PRIMARY)
    host.listens(A, bound=(A,))
    host.wait(2 * LATE_S)
    assert host.weight is None


def test_replicas_are_looked_for_where_both_applications_can_be_reached() -> None:
    host = Host(Part.BACKUP, own=(A, A + 1, A + 2), theirs=(A, A + 1, A + 3))
    assert host.where == {A, A + 1}
    host.listens(A, A + 1, bound=(A + 1,))
    host.wait(0.5)
    assert host.where == {A}
    host.theirs = None
    host.wait(STALE_S + 1)
    assert host.where == {A}
    host.application.seen(ListenersSeen(frozenset(), 1.0, known=False), host.now)
    host.wait(0.5)
    assert host.where is None
