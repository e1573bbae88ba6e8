"""Connections that get no replica, one after the other: when that is said of the whole host, and when it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.events import PacketQueued, Queue
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.missing import CODE, ENOUGH, SPAN_S
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.wire.records import Close, Fed, Progress, Unprotected
from nfq_failover.wire.segment import FlowKey, Segment
from tests.support.shadow import answer, replica
from tests.support.transcript import (
    CLIENT,
    ISS_OWN,
    SERVER,
    RecordingOutbox,
    Sent,
    client_seq,
    opening,
    server,
    settings,
)

PORT = SERVER[1]
EVERY_S = 0.25


class Backup:
    """A host that shadows what clients open at a port, and is looked at as `Presence` does it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.out = RecordingOutbox()
        self.out.concerns.act_as(Part.BACKUP)
        self.table = ShadowTable(settings(), self.out)
        self.count = 0
        self.where: set[int] | None = {PORT}
        self.wait(1.0)

    def flow(self, conn: int) -> FlowKey:
        return CLIENT[0], CLIENT[1] + conn, *SERVER

    def open(self, established: bool = True) -> int:
        """A client opens a connection; the primary does not wait for the replica. Returns its number."""
        self.count += 1
        self.table.take(replace(opening(), conn=self.count, flow=self.flow(self.count)), self.now)
        if established:
            self.table.take(Progress(self.count, client_seq(0), True), self.now)
        return self.count

    def says(self, conn: int, sent: Sent) -> None:
        """Our TCP sends a segment."""
        event = PacketQueued(Queue.OUT, 1, replace(sent, port=self.flow(conn)[1]).packet(ISS_OWN), False, False)
        self.table.segments.outbound(event, Segment(event.packet), self.table.flows[self.flow(conn)], self.now)

    def refuse(self, conn: int) -> None:
        self.says(conn, server(-1, ack=0, flags="R."))

    def answer(self, conn: int) -> None:
        self.says(conn, answer())

    def close(self, conn: int) -> None:
        """The primary has the connection no more."""
        self.table.take(Close(conn, "closed"), self.now)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / EVERY_S)):
            self.now += EVERY_S
            self.table.on_timer(self.now)
            self.table.missing.look(self.where, self.now)

    @property
    def concern(self) -> Concern | None:
        return next((each for each in self.out.concerns.own if each.code == CODE), None)

    @property
    def weight(self) -> Weight | None:
        return self.concern.weight if self.concern else None

    @property
    def what(self) -> str:
        return self.concern.what if self.concern else ""


@pytest.fixture
def backup() -> Backup:
    return Backup()


def test_open_connections_whose_syns_have_no_answer_are_a_state_of_the_host(backup: Backup) -> None:
    for _ in range(ENOUGH - 1):
        backup.open()
    backup.wait(2 * SPAN_S)
    assert backup.weight is None
    last = backup.open()
    backup.wait(1)
    assert backup.weight is Weight.UNPROTECTED
    assert backup.what == f"the last 3 connections at {PORT} got no replica: their SYNs had no answer"
    assert backup.concern is not None and "limit of open files" in backup.concern.cure
    backup.answer(last)
    backup.wait(EVERY_S)
    assert backup.weight is None, "one has a replica"


def test_refused_connections_that_are_over_by_then_count_too(backup: Backup) -> None:
    for _ in range(ENOUGH):
        assert backup.weight is None
        conn = backup.open()
        backup.refuse(conn)
        backup.wait(1)
        backup.close(conn)
        backup.wait(SPAN_S / 2)
    assert backup.weight is Weight.UNPROTECTED and backup.what.endswith("their SYNs were refused by RST")
    backup.wait(60)
    assert backup.weight is Weight.UNPROTECTED, "nothing has shown that it is over"
    backup.answer(backup.open())
    backup.wait(EVERY_S)
    assert backup.weight is None


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_application_that_closes_what_its_server_goes_on_with(backup: Backup, how: str) -> None:
    for _ in range(ENOUGH):
        conn = backup.open()
        backup.answer(conn)
        backup.wait(EVERY_S)
        backup.says(conn, replica(flags="R." if how == "reset" else "F."))
        backup.wait(1)
        if how == "fin":  # the primary's server has not ended within its deadline
            backup.table.take(Fed(conn, "the replica has closed"), backup.now)
        backup.wait(1)
    assert backup.weight is Weight.UNPROTECTED and backup.what.endswith("the application closed them at once")
    backup.answer(backup.open())
    backup.wait(EVERY_S)
    assert backup.weight is Weight.UNPROTECTED, "this one may be closed, too"
    backup.wait(1)
    assert backup.weight is None


def test_servers_that_close_at_once_on_both_hosts_are_well(backup: Backup) -> None:
    for _ in range(2 * ENOUGH):
        conn = backup.open()
        backup.answer(conn)
        backup.says(conn, replica(flags="F."))
        backup.wait(1)
        backup.close(conn)
        backup.wait(1)
    assert backup.weight is None


def test_clients_that_do_not_complete_their_handshake_prove_nothing(backup: Backup) -> None:
    """A scan, or a flood of SYNs, which fills the queue of half-open connections."""
    for _ in range(20):
        backup.open(established=False)
        backup.wait(EVERY_S)
    backup.wait(SPAN_S)
    assert backup.weight is None


def test_clients_that_are_gone_at_once_prove_nothing(backup: Backup) -> None:
    for _ in range(20):
        conn = backup.open()
        backup.wait(EVERY_S)
        backup.close(conn)
    backup.wait(SPAN_S)
    assert backup.weight is None


def test_peak_of_load_in_which_replicas_are_late_is_none(backup: Backup) -> None:
    """Some clients have gone before their replicas were there."""
    late = [backup.open() for _ in range(10)]
    backup.wait(1.5)
    for conn in late:
        backup.close(conn)
    backup.wait(60)
    assert backup.weight is None
    late = [backup.open() for _ in range(10)]
    backup.wait(SPAN_S - 1)
    for conn in late:
        backup.answer(conn)
    backup.wait(60)
    assert backup.weight is None


def test_one_that_has_a_replica_begins_the_row_anew(backup: Backup) -> None:
    for number in range(9):
        conn = backup.open()
        if number % ENOUGH == ENOUGH - 1:
            backup.answer(conn)
        backup.wait(2)
        backup.close(conn)
    assert backup.weight is None


def test_pause_of_this_host_is_not_the_replicas_silence(backup: Backup) -> None:
    conns = [backup.open() for _ in range(ENOUGH)]
    backup.now += 60
    backup.wait(EVERY_S)
    assert backup.weight is None
    for conn in conns:
        backup.answer(conn)
    backup.wait(60)
    assert backup.weight is None


def test_other_connections_with_a_replica_make_it_a_limit(backup: Backup) -> None:
    good = backup.open()
    backup.answer(good)
    backup.wait(2)
    for _ in range(ENOUGH):
        backup.open()
    backup.wait(2 * SPAN_S)
    assert backup.table.flows[backup.flow(good)].state is Shadow.SHADOW
    assert backup.weight is Weight.DEGRADED
    backup.close(good)
    backup.wait(5)
    worst = backup.out.concerns.worst
    assert worst and worst.concern.weight is Weight.UNPROTECTED, "nothing is left that is protected"


def test_ports_without_a_listener_are_another_concern(backup: Backup) -> None:
    backup.where = set()
    for _ in range(ENOUGH):
        backup.refuse(backup.open())
    backup.wait(2 * SPAN_S)
    assert backup.weight is None
    backup.where = None  # nobody knows where it listens
    backup.wait(EVERY_S)
    assert backup.weight is Weight.UNPROTECTED


def test_application_that_has_begun_anew_is_not_judged_by_what_was_before(backup: Backup) -> None:
    conns = [backup.open() for _ in range(ENOUGH)]
    backup.wait(2 * SPAN_S)
    assert backup.weight is Weight.UNPROTECTED
    backup.table.missing.begun()
    backup.wait(EVERY_S)
    assert backup.weight is None
    for conn in conns:
        backup.close(conn)
    backup.wait(60)
    assert backup.weight is None


def test_replicas_that_ended_with_the_application_are_not_those_of_the_next_one(backup: Backup) -> None:
    conns = [backup.open() for _ in range(ENOUGH)]
    for conn in conns:
        backup.answer(conn)
    backup.wait(EVERY_S)
    for conn in conns:
        backup.says(conn, replica(flags="R."))
    backup.table.missing.begun()
    backup.wait(2 * SPAN_S)
    assert backup.weight is None


def test_protection_that_was_refused_for_another_reason_does_not_count(backup: Backup) -> None:
    for _ in range(ENOUGH):
        conn = backup.open()
        backup.table.take(Unprotected(conn, "TCP-MD5"), backup.now)
    backup.wait(2 * SPAN_S)
    assert backup.weight is None


@pytest.mark.parametrize("over", ["takeover", "clear"])
def test_host_that_is_no_backup_any_more_has_no_such_concern(backup: Backup, over: str) -> None:
    for _ in range(ENOUGH):
        backup.open()
    backup.wait(2 * SPAN_S)
    assert backup.weight is Weight.UNPROTECTED
    if over == "takeover":
        backup.table.take_over(backup.now)
    else:
        backup.table.clear("this host serves")
    backup.wait(EVERY_S)
    assert backup.weight is None


def test_many_ports_are_one_concern_that_fits_into_its_record(backup: Backup) -> None:
    backup.where = None
    for number in range(300):
        backup.count += 1
        flow = (*CLIENT, SERVER[0], 1000 + 2 * (number // ENOUGH))
        backup.table.take(replace(opening(), conn=backup.count, flow=flow), backup.now)
        backup.table.take(Progress(backup.count, client_seq(0), True), backup.now)
        backup.table.flows[backup.flow(backup.count)] = backup.table.flows.pop(flow)
    backup.wait(2 * SPAN_S)
    assert backup.concern is not None and "..." in backup.what
    assert max(len(backup.what), len(backup.concern.cure)) <= 255
