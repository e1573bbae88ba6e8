"""The end of the replica's stream: the backup tells the primary of it, until the primary shows that it knows."""

from __future__ import annotations

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.records import Close, Closed, EndKind, Progress, Unprotected
from tests.support.shadow import EDGE, SILENT, Shadowing, from_client, replica
from tests.support.transcript import (
    After,
    ShadowTranscript,
    asked,
    client_seq,
    confirmed,
    opening,
    replica_end,
)

RESET_INWARD = "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"


def test_question_is_always_answered() -> None:
    with Shadowing() as t:
        t >> replica(0, 30) << SILENT
        t >> asked(30) << replica_end(30, EndKind.OPEN)
        t >> asked(30) << replica_end(30, EndKind.OPEN)


def test_answer_says_what_the_replica_has_taken() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000" << confirmed(100, EDGE)
        t >> replica(ack=60) << SILENT
        t >> asked(0) << replica_end(0, EndKind.OPEN, taken=60)


def test_replica_that_its_client_has_reset_does_not_go_on() -> None:
    """It may have ended before, and a full queue have lost that: it says nothing twice any more."""
    with Shadowing() as t:
        t >> replica(0, 30) << SILENT
        t >> asked(30) << replica_end(30, EndKind.OPEN)
        t >> from_client(0, flags="R", ack=None, ts=None) << "pass [R] 0 wnd 500"
        t >> asked(30) << replica_end(30, EndKind.OPEN, well=False)


def test_question_about_a_connection_that_is_opening_is_left_to_the_opening() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> asked(0)


def test_end_is_told_again_until_the_primary_asks() -> None:
    with Shadowing() as t:
        t >> replica(0, 30, flags="F.") << SILENT << replica_end(30)
        t >> replica(30, flags="F.") << SILENT  # a retransmission is no news
        t >> After(0.051) << replica_end(30)
        t >> After(0.101) << replica_end(30)
        t >> asked(20, EndKind.OPEN) << replica_end(30)
        t >> After(0.5)
        t >> asked(30) << replica_end(30)


def test_end_that_the_client_has_acknowledged_to_the_primary_is_told_no_more() -> None:
    with Shadowing() as t:
        t >> replica(0, flags="F.") << SILENT << replica_end(0)
        t >> from_client(0, 0, ack=1) << "pass [.] 0 ack 1 wnd 500 ts 1001/7000000"
        t >> After(0.2)


def test_end_of_a_closed_connection_is_told_no_more() -> None:
    with Shadowing() as t:
        t >> replica(0, flags="F.") << SILENT << replica_end(0)
        t >> Close(1, "closed") << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Closed(1)
        t >> After(0.2)


def test_end_that_a_full_queue_has_lost_is_not_taken_for_data_nor_for_a_replica_that_goes_on() -> None:
    """Its FIN was lost on the way to us, and its next segment shows only that it has sent something there."""
    with Shadowing() as t:
        t >> replica(0, 30) << SILENT
        t >> replica(31) << SILENT
        t >> asked(30) << replica_end(30, EndKind.OPEN, well=False)
        t >> replica(30, flags="F.") << SILENT  # its TCP repeats it
        t.effects.clear()
        t >> asked(30) << replica_end(30)
        t.effects.clear()


def test_reset_after_an_end_that_a_full_queue_has_lost_does_not_lie_beyond_that() -> None:
    """Nobody has seen that the replica went on after its server's end: what was lost may have been its FIN."""
    with Shadowing() as t:
        t >> replica(0, 30) << SILENT
        t >> replica(31) << SILENT
        t >> asked(30) << replica_end(30, EndKind.OPEN, well=False)
        t >> replica(31, flags="R.")
        t.effects.clear()
        t >> asked(30) << replica_end(30, EndKind.RST)


def test_telling_of_an_end_stops_some_time() -> None:
    with Shadowing() as t:
        t >> replica(0, flags="F.") << SILENT << replica_end(0)
        told = 0
        for _ in range(100):
            t >> After(1.0)
            told += sum(effect == replica_end(0) for effect in t.effects)
            t.effects.clear()
        assert 3 <= told <= 10


def test_reset_after_the_servers_own_end_is_an_end_and_no_loss() -> None:
    with Shadowing() as t:
        t >> asked(30, EndKind.RST) << replica_end(0, EndKind.OPEN)
        t >> replica(0, 30) << SILENT
        t >> replica(30, flags="R.") << "drop replica-reset" << RESET_INWARD << replica_end(30, EndKind.RST)
        assert t.shadow.state is Shadow.DEAD  # nobody can continue it
        t >> asked(30, EndKind.RST) << replica_end(30, EndKind.RST)
        t >> Progress(1, client_seq(0), True) << Unprotected(1, "the server has reset the connection")
        t >> "takeover"
        assert "[R.] 0" in str(t.effects.popleft())
        t.effects.clear()


def test_reset_that_crosses_the_question_is_an_end_too() -> None:
    with Shadowing() as t:
        t >> replica(0, flags="R.") << "drop replica-reset" << "log warning: connection lost its replica"
        t << RESET_INWARD << Unprotected(1, "the replica reset the connection")
        t >> asked(0, EndKind.RST) << replica_end(0, EndKind.RST)


def test_question_about_what_can_not_be_continued_or_is_unknown_gives_the_reason() -> None:
    with Shadowing() as t:
        t.side.take(Unprotected(1, "let go"), t.now)
        t.drain()
        t.effects.clear()
        t >> asked(0) << Unprotected(1, "let go")
        t >> asked(0, conn=9) << Unprotected(9, "unknown to the backup")


def test_replica_counts_as_alive_after_a_check_that_began_later_than_the_servers_end() -> None:
    with Shadowing(health_checked=True) as t:
        t.side.ends.note_well(t.now - 0.1)
        t >> asked(0, EndKind.OPEN) << replica_end(0, EndKind.OPEN)  # nothing to prove
        t >> asked(0) << replica_end(0, EndKind.OPEN, well=False)
        t.side.ends.note_well(t.now + 0.1)
        t.now += 0.2
        t >> asked(0) << replica_end(0, EndKind.OPEN)
