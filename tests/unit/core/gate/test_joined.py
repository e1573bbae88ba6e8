"""What a host has served before a backup joined: when that is said, and when it is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.gate.joined import CODE
from nfq_failover.core.gate.missed import MissedInput
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.tcp.input_count import InputCount
from nfq_failover.wire.records import Anew, Lives, Whole
from nfq_failover.wire.segment import FlowKey
from tests.support.transcript import FLOW

A, B, C = ((*FLOW[:1], port, *FLOW[2:]) for port in (40001, 40002, 40003))
OLD, NEW = 71, 72


class Server:
    """A host that serves, and its backups."""

    def __init__(self, shared: bool = True) -> None:
        self.out = Outbox()
        self.flows: dict[FlowKey, Any] = {}
        self.missed = MissedInput(self.out, self.flows, shared)
        self.now = 10.0

    def brings(self, flow: FlowKey, size: int) -> None:
        """The client sends so much more on a connection, which is opened for that."""
        have = self.flows.setdefault(
            flow,
            SimpleNamespace(
                flow=flow, own=SimpleNamespace(rcv_nxt=0), state=None, missing_from=None, opened_at=self.now
            ),
        )
        have.miss_from = lambda *_, **__: None
        have.own.rcv_nxt += size

    def closes(self, flow: FlowKey) -> None:
        self.missed.closed(self.flows.pop(flow))

    def joins(self, life: int = OLD, instance: int = 1) -> None:
        self.now += 1
        self.missed.start(self.now)
        self.tells(life, instance)

    def tells(self, life: int = OLD, instance: int = 1) -> None:
        self.now += 1
        self.missed.on_lives(Lives(instance, life, Anew.NONE), self.now)
        self.missed.on_whole(Whole(instance, 0, 0), self.now)

    def leaves(self) -> None:
        self.now += 1
        self.missed.stop(self.now)

    @property
    def concern(self) -> Concern | None:
        return next((each for each in self.out.concerns.own if each.code == CODE), None)

    @property
    def said(self) -> str:
        return self.concern.what if self.concern else ""


def test_what_was_served_before_the_backup_joined_is_a_warning() -> None:
    server = Server()
    server.brings(A, 100)
    server.closes(A)
    server.brings(B, 50)
    server.joins()
    assert server.concern is not None and server.concern.weight is Weight.WARNING
    assert server.said.startswith("this host has served 2 connections that brought 150 bytes while no backup was there")
    assert "unless it has loaded them" in server.said and "replica-is-whole" in server.concern.cure
    assert max(len(server.said), len(server.concern.cure)) <= 255
    server.tells()
    server.tells()
    assert "2 connections" in server.said


@pytest.mark.parametrize("shared", [True, False])
def test_nothing_is_said_of_what_nobody_misses(shared: bool) -> None:
    """Connections that bring nothing, such as a check of the port; whatever comes while there is a backup; and input
    that clients share with nobody."""
    server = Server(shared)
    server.brings(A, 1)  # a FIN
    server.brings(B, 0)
    server.closes(A)
    if not shared:
        server.brings(C, 1000)
    server.joins()
    assert not server.said
    server.brings(B, 1000)
    server.closes(B)
    server.brings(C, 1000)
    server.leaves()
    server.joins()
    assert not server.said


@pytest.mark.parametrize("open_still", [True, False])
def test_application_that_is_another_one_when_the_backup_is_back_lacks_what_came_before(open_still: bool) -> None:
    """The host was rebooted, say, and no client has sent anything meanwhile."""
    server = Server()
    server.joins()
    server.brings(A, 1000)
    if not open_still:
        server.closes(A)
    server.leaves()
    server.joins(NEW, instance=2)
    assert server.concern is not None and server.concern.weight is Weight.WARNING
    assert server.said.startswith("the replica's application is another one than the last backup had")
    server.tells(NEW, instance=2)
    assert server.said
    server.leaves()
    assert not server.said
    server.joins(NEW, instance=2)
    assert server.said, "it has not got it meanwhile"
    server.tells(NEW, instance=3)  # somebody has said that it is whole
    assert not server.said
    server.leaves()
    server.joins(NEW, instance=2)
    assert not server.said


@pytest.mark.parametrize(("size", "shared", "life"), [(1, True, NEW), (1000, False, NEW), (1000, True, OLD)])
def test_application_that_lacks_nothing_when_the_backup_is_back(size: int, shared: bool, life: int) -> None:
    server = Server(shared)
    server.joins()
    server.brings(A, size)
    server.leaves()
    server.joins(life, instance=2)
    assert not server.said


def test_backup_without_an_application_will_have_another_one() -> None:
    server = Server()
    server.joins()
    server.brings(A, 1000)
    server.leaves()
    server.joins(0, instance=2)
    assert server.said


def test_only_what_came_while_the_backup_was_away_counts() -> None:
    server = Server()
    server.joins()
    server.brings(A, 1000)
    server.leaves()
    server.brings(A, 10)
    server.joins(NEW)
    assert "1 connections that brought 10 bytes" in server.said and "unless" in server.said


def test_application_that_was_there_all_the_time_lacks_it_for_certain() -> None:
    server = Server()
    server.joins()
    server.leaves()
    server.brings(A, 10)
    server.joins()
    assert server.said.endswith("the replica's application was running, and lacks them")


def test_application_that_is_heard_of_before_the_backup_counts_is_not_taken_for_the_last_one() -> None:
    server = Server()
    server.joins()
    server.leaves()
    server.brings(A, 10)
    server.tells(NEW)
    server.joins(NEW)
    assert "unless it has loaded them" in server.said


def test_word_that_it_is_whole_ends_it_for_good() -> None:
    server = Server()
    server.brings(A, 10)
    server.joins(instance=1)
    server.tells(instance=2)  # as the backup says when it believes an operator
    assert not server.said
    server.leaves()
    server.joins()
    assert not server.said
    server.leaves()
    server.brings(A, 20)
    server.joins()
    assert "1 connections that brought 20 bytes" in server.said


def test_backup_that_leaves_takes_the_warning_along_and_what_is_lacking_adds_up() -> None:
    server = Server()
    server.brings(A, 10)
    server.joins(instance=1)
    assert server.said
    server.leaves()
    assert not server.said
    server.brings(B, 20)
    server.joins(NEW, instance=7)
    assert "2 connections that brought 30 bytes" in server.said


def test_connections_that_were_taken_over_count_too() -> None:
    server = Server()
    server.missed.later.inherited(3, 500)
    server.joins(instance=1)
    assert "3 connections that brought 500 bytes" in server.said
    server.tells(instance=2)
    server.leaves()
    server.missed.later.inherited(4, 600)
    server.joins(instance=2)
    assert "1 connections that brought 100 bytes" in server.said


def test_host_that_serves_no_more_begins_again() -> None:
    server = Server()
    server.brings(A, 10)
    server.missed.later.forget(server.now)
    server.flows.clear()
    server.joins()
    assert not server.said


def test_count_of_input() -> None:
    count = InputCount()
    count.begin(A, 5)
    assert count.follows(A) and not count.follows(B)
    count.end(A, 8)
    count.end(B, -1)  # its handshake was not complete
    assert (count.connections, count.size) == (1, 3) and not count.follows(A)
    count.clear()
    assert (count.connections, count.size) == (0, 0)
