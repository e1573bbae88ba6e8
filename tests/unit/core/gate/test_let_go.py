"""What a server says while its client does not wait for the replica is compared, too, before it is protected again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.gate import digests
from nfq_failover.core.gate.connection import BEHIND, NOT_READY, Gate
from nfq_failover.core.gate.digests import FLUSH_LATE_S, NOT_COMPARED
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.status import DIFFERS, connections_of
from nfq_failover.wire.records import Digest, DigestSeen, Fed, FedSeen, Opened, PaceTold
from tests.support.gate import TS, digest, seen
from tests.support.transcript import FLOW, After, client_seq, confirmed, server, settings, syn, syn_ack
from tests.unit.core.gate.test_pace import STEP_S, Paced, quietly, told


class Compared(Paced):
    """A connection whose replica is 100 bytes behind, and was let go."""

    def __init__(self, policy: str = "default") -> None:
        super().__init__(divergence=policy)
        self.effects.clear()
        quietly(self, server(0, 100, wnd=10000, ts=TS))
        self.passes(2.3, told(0, 40000, sent=0), confirmed(0, 40000))
        assert self.where == (Gate.UNPROTECTED, BEHIND)

    def says(self, start: int, length: int) -> list[Digest]:
        """Our server says more; what the backup hears of it."""
        quietly(self, server(start, length, wnd=10000, ts=TS))
        return [each for each in self.passes(FLUSH_LATE_S + 0.1) if isinstance(each, Digest)]

    def back(self, sent: int) -> None:
        """The replica has sent so much, and the backup knows that the client waits for it again."""
        for _ in range(round(20 / STEP_S)):
            if self.gate.state is not Gate.PROTECTED:
                self.passes(STEP_S, told(0, 40000, sent=sent, turn=self.gate.distance.turn))


def unmarked(start: int, length: int) -> Digest:
    """What the primary says of output that no takeover goes on with."""
    return replace(digest(start, length), marks=())


def test_what_the_server_says_meanwhile_is_told_in_larger_pieces() -> None:
    with Compared() as t:
        quietly(t, server(100, 20, wnd=10000, ts=TS), After(0.05))
        assert t.says(120, 30) == [unmarked(100, 50)]


def test_it_is_protected_again_when_all_of_it_was_compared() -> None:
    with Compared() as t:
        t.says(100, 50)
        t.back(150)
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        quietly(t, seen(100))  # what had been said when it was let go: it is worth a try
        t.passes(3.0, told(0, 40000, sent=150, turn=1))
        assert t.gate.distance.turn == 3
        t.back(150)
        assert t.gate.state is not Gate.PROTECTED
        quietly(t, seen(150))
        t.back(150)
        assert t.where == (Gate.PROTECTED, "")


def test_it_is_protected_as_soon_as_the_backup_has_compared() -> None:
    with Compared() as t:
        t.says(100, 50)
        t.passes(2.1, told(0, 40000, sent=150, turn=1))
        quietly(t, seen(100))
        assert t.where == (Gate.CATCHING_UP, BEHIND)
        quietly(t, told(0, 40000, sent=150, turn=2))
        assert t.where == (Gate.CATCHING_UP, BEHIND)
        quietly(t, seen(150))
        assert t.where == (Gate.PROTECTED, "")


def test_backup_is_reminded_when_the_replica_is_near_and_not_before() -> None:
    with Compared() as t:
        t.says(100, 50)
        got = t.passes(10, told(0, 40000, sent=0, turn=1))
        assert not any(isinstance(each, Digest) for each in got)
        got = t.passes(1.1, told(0, 40000, sent=150, turn=1))
        assert digest(0, 100) in got and unmarked(100, 50) in got


def test_replica_that_has_said_more_than_the_server_is_not_back() -> None:
    """A server that is late itself comes there; a replica that has said something else does not."""
    with Compared() as t:
        quietly(t, seen(100))
        t.back(114)
        assert t.gate.state is not Gate.PROTECTED
        t.says(100, 14)
        quietly(t, seen(114))
        t.back(114)
        assert t.where == (Gate.PROTECTED, "")


def test_replica_whose_output_differs_is_not_back_and_people_are_told_why() -> None:
    with Compared() as t:
        quietly(t, seen(100, 1, is_open=True))
        t.back(100)
        assert t.gate.state is not Gate.PROTECTED
        (row,) = connections_of(t.side, ShadowTable(settings(), Outbox()))
        assert (row.protected, row.reason) == (False, DIFFERS)
        t.says(100, 50)
        quietly(t, seen(150, 1))
        t.back(150)
        assert t.where == (Gate.PROTECTED, "")


def test_end_of_both_servers_is_no_byte_that_is_to_be_compared() -> None:
    with Compared() as t:
        quietly(t, server(100, flags="F.", wnd=10000, ts=TS), seen(100))
        t.back(101)
        assert t.where == (Gate.PROTECTED, "")


def test_what_can_not_be_kept_until_it_is_compared_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MAX_UNSEEN", 3)
    with Compared() as t:
        for number in range(4):
            t.says(100 + 10 * number, 10)
        got = t.passes(1.1, told(0, 40000, sent=140, turn=1))
        assert (t.gate.state, t.gate.reason) == (Gate.FED, NOT_COMPARED)
        assert Fed(1, NOT_COMPARED) in got
        quietly(t, FedSeen(1))
        assert not t.side.digests._streams and not t.side.digests._hashes_total


def test_replica_that_was_not_ready_is_compared_from_its_first_byte_on() -> None:
    with Paced(divergence="default") as t:
        t.effects.clear()
        conn, port = 2, 40001
        quietly(t, syn(port=port), syn_ack(port=port))
        t.passes(3.0)
        gate = t.side.flows[(FLOW[0], port, *FLOW[2:])]
        assert (gate.state, gate.reason) == (Gate.UNPROTECTED, NOT_READY)
        quietly(t, server(0, 100, wnd=10000, ts=TS, port=port))
        late = digest(0, 100)
        expected = Digest(conn, late.seq, late.length, late.hashes)
        assert expected in t.passes(1.0)
        answers = (
            Opened(conn, True, client_seq(40000)),
            confirmed(0, 40000, conn=conn),
            PaceTold(conn, 0, client_seq(0), client_seq(40000), late.seq + 100),
        )
        assert expected in t.passes(5.0, *answers)
        assert gate.state is not Gate.PROTECTED
        t.passes(5.0, *answers, DigestSeen(conn, (late.seq + 100) & 0xFFFFFFFF, 0))
        assert (gate.state, gate.reason) == (Gate.PROTECTED, "")


def test_strict_holds_nothing_meanwhile_and_then_again() -> None:
    with Compared("strict") as t:
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        t >> server(100, 50, wnd=10000, ts=TS) << "pass"
        t.passes(0.3)
        quietly(t, seen(150))
        t.back(150)
        assert t.where == (Gate.PROTECTED, "")
        t >> server(150, 50, wnd=10000, ts=TS)
        assert "drop strict-held" in t.effects
        t.effects.clear()
        t >> seen(200)
        assert any("150:200" in str(each) for each in t.effects)
        t.effects.clear()


def test_strict_gives_the_client_what_was_held_when_the_replica_has_not_caught_up() -> None:
    with Compared("strict") as t:
        t.passes(2.1, told(0, 40000, sent=100, turn=1))
        quietly(t, seen(100))
        assert t.where == (Gate.CATCHING_UP, BEHIND)
        t >> server(100, 50, wnd=10000, ts=TS)
        assert "drop strict-held" in t.effects
        t.effects.clear()
        got = t.passes(0.7, told(0, 40000, sent=100, turn=1))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        assert any("100:150" in str(each) for each in got)
