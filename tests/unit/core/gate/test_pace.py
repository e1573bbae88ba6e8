"""A replica that stands still or can't keep up: its client is let go, loudly, and protected again when it is back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import BEHIND, NOBODY_GOES_ON, STANDS_STILL, Gate, GatedConnection
from nfq_failover.wire.records import (
    Close,
    EndKind,
    Opened,
    PaceAsked,
    PaceTold,
    Progress,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import TS, Gated, ack
from tests.support.transcript import (
    FLOW,
    After,
    Copy,
    GateTranscript,
    client,
    client_seq,
    confirmed,
    replica_end,
    server,
    server_seq,
    syn,
    syn_ack,
)

STEP_S = 0.05


class Paced(Gated):
    """A protected connection, the questions about its replica's pace included."""

    paced = True

    def passes(self, seconds: float, *answers: object) -> list[object]:
        """Time passes, and the backup gives these answers every 50 ms. Returns everything that comes out."""
        got: list[object] = []
        for _ in range(round(seconds / STEP_S)):
            for given in (After(STEP_S), *answers):
                self >> given
                got += self.effects
                self.effects.clear()
        return got

    @property
    def where(self) -> tuple[Gate, str]:
        """The connection's state, and why."""
        return self.gate.state, self.gate.reason


def told(taken: int, edge: int, sent: int = 0, turn: int = 0) -> PaceTold:
    """Where the replica is, in offsets."""
    return PaceTold(1, turn, client_seq(taken), client_seq(edge), server_seq(sent))


def uploaded(t: Paced, upto: int = 40000) -> None:
    """The client has filled the replica's window; our own TCP's is open."""
    t >> Copy(client(0, upto)) >> confirmed(upto, 40000)
    t >> ack(upto, upto + 40000)
    t.effects.clear()


def quietly(t: GateTranscript, *given: object) -> None:
    """Inputs whose effects are other tests' business."""
    for each in given:
        t >> each
        t.effects.clear()


def test_client_is_let_go_that_waits_for_the_window_of_a_replica_that_stands_still() -> None:
    with Paced() as t:
        uploaded(t)
        t.passes(1.9, confirmed(40000, 40000))
        assert t.where == (Gate.PROTECTED, "")
        got = t.passes(0.3, confirmed(40000, 40000))
        assert t.where == (Gate.UNPROTECTED, STANDS_STILL)
        assert "client [.] 0 ack 40000 wnd 10000 ts 2000010/1010" in got
        assert "log warning: connection unprotected" in got
        assert {"log error: concern: degraded", "log error: concern: unprotected"} <= set(got)
        assert PaceAsked(1, 1) in got  # the backup is to know
        assert t.out.counters["pace-let-go"] == 1


def test_patience_is_a_setting_and_may_be_endless() -> None:
    with Paced(replica_patience_ms=0) as t:
        uploaded(t)
        t.passes(60, confirmed(40000, 40000))
        assert t.where == (Gate.PROTECTED, "")
    with Paced(replica_patience_ms=500) as t:
        uploaded(t)
        t.passes(0.7, confirmed(40000, 40000))
        assert t.where == (Gate.UNPROTECTED, STANDS_STILL)


def test_client_that_our_own_application_does_not_read_waits_for_nobody_else() -> None:
    """Both windows are closed, or ours has all but closed as well."""
    for edge in (40000, 60000):
        with Paced() as t:
            t >> Copy(client(0, 40000)) >> confirmed(40000, 40000)
            t >> ack(40000, edge)
            t.effects.clear()
            t.passes(10, confirmed(40000, 40000))
            assert t.where == (Gate.PROTECTED, ""), edge


def silent_client(t: Paced, at: int, sent: int, answer: PaceTold) -> list[object]:
    """Our TCP has sent up to `sent`, and its client says nothing more: TCP repeats `at`, ever more rarely."""
    quietly(t, server(0, sent, wnd=10000, ts=TS))
    got = []
    for wait_s in (0.2, 0.4, 0.8, 1.6, 3.2):
        got += t.passes(wait_s, answer)
        quietly(t, server(at, 100, wnd=10000, ts=TS))
    return got


def test_client_that_has_vanished_is_not_waited_for_in_vain_by_its_replica() -> None:
    """The replica's congestion window may be smaller: it does not get an acknowledgement either, and sends no more."""
    with Paced() as t:
        got = silent_client(t, 1000, 3000, told(0, 40000, sent=2000))
        assert t.where == (Gate.PROTECTED, "") and not [each for each in got if "error" in str(each)]
        t.passes(7, told(0, 40000, sent=2000))
        assert t.where == (Gate.PROTECTED, ""), "until it should have repeated itself again"
        t.passes(4, told(0, 40000, sent=2000))
        assert t.where == (Gate.UNPROTECTED, BEHIND), (
            "the client has heard something, and it is the replica that is late"
        )


def test_client_that_has_vanished_excuses_no_replica_that_has_nothing_to_wait_for() -> None:
    """It has sent nothing beyond what the client has."""
    with Paced() as t:
        silent_client(t, 1000, 3000, told(0, 40000, sent=1000))
        assert t.where == (Gate.UNPROTECTED, BEHIND)


def test_server_that_goes_on_has_a_client_that_hears_it() -> None:
    with Paced() as t:
        quietly(t, server(0, 3000, wnd=10000, ts=TS))
        for at in range(10):
            t.passes(0.25, told(0, 40000, sent=2000))
            quietly(t, server(1000, 100, wnd=10000, ts=TS), server(3000 + 100 * at, 100, wnd=10000, ts=TS))
        assert t.where == (Gate.UNPROTECTED, BEHIND)


def test_time_in_which_the_backup_is_silent_does_not_count() -> None:
    """It may be gone, and about to take over: what it lacks must not be acknowledged."""
    with Paced() as t:
        uploaded(t)
        t.passes(1.5, confirmed(40000, 40000))
        t.passes(30)
        assert t.where == (Gate.PROTECTED, "")
        t.passes(0.7, confirmed(40000, 40000))
        assert t.where == (Gate.UNPROTECTED, STANDS_STILL)


def test_our_own_pause_does_not_count() -> None:
    with Paced() as t:
        uploaded(t)
        t.passes(0.2, confirmed(40000, 40000))
        quietly(t, After(30.0), confirmed(40000, 40000), After(0.05))
        assert t.where == (Gate.PROTECTED, "")


def test_backup_that_does_not_confirm_is_too_far_behind() -> None:
    with Paced() as t:
        quietly(t, Copy(client(0, 3000)), ack(3000, 43000))
        got = t.passes(2.3, confirmed(1000, 40000))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        assert "client [.] 0 ack 3000 wnd 10000 ts 2000010/1010" in got


def test_replica_that_sends_nothing_while_the_server_does_is_too_far_behind() -> None:
    with Paced() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        got = t.passes(2.3, told(0, 40000, sent=0))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        assert 10 < sum(each == PaceAsked(1, 0) for each in got) < 25  # not at every look


def test_connection_that_its_client_has_reset_is_not_taken_for_one_with_a_slow_replica() -> None:
    """A reset goes to our own TCP, and nobody tells us: the kernel is asked in time."""
    with Paced() as t:
        t.now += 1.0
        quietly(t, After(0.05), server(0, 100, wnd=10000, ts=TS))
        assert t.passes(1.3, told(0, 40000)).count("query") == 1
        t >> FlowsGone([FLOW])
        t.passes(4.0, told(0, 40000))  # nobody waits for its replica any more
        t >> FlowsGone([FLOW])
        assert Close(1, "closed") in t.effects
        t.effects.clear()
        assert not t.out.counters["pace-let-go"]


def test_replica_that_is_late_and_comes_on_is_waited_for() -> None:
    with Paced() as t:
        for at in range(60):
            quietly(t, server(100 * at, 100, wnd=10000, ts=TS))
            t.passes(0.1, told(0, 40000, sent=max(100 * (at - 10), 0)))
        assert t.where == (Gate.PROTECTED, "")


def test_nobody_is_asked_about_a_replica_that_keeps_up() -> None:
    with Paced() as t:
        for at in range(20):
            quietly(t, server(100 * at, 100, wnd=10000, ts=TS), told(0, 40000, sent=100 * at + 100))
            got = t.passes(0.1)
            assert not any(isinstance(each, PaceAsked) for each in got)
        assert t.side.pace.poll_timeout() is None


def behind(t: Paced) -> None:
    """An upload was let go; meanwhile the client has been told of another 5000 bytes."""
    uploaded(t)
    t.passes(2.2, confirmed(40000, 40000))
    quietly(t, Copy(client(40000, 5000)), ack(45000, 85000))
    assert t.where == (Gate.UNPROTECTED, STANDS_STILL)


def test_bytes_are_kept_for_a_replica_that_was_let_go() -> None:
    with Paced() as t:
        behind(t)
        assert t.gate.retained.read(40000, 5000)[0] == Copy(client(40000, 5000)).sent.packet(0)[-5000:]


def test_client_waits_again_once_the_replica_goes_on_and_is_protected_when_the_backup_knows() -> None:
    with Paced() as t:
        behind(t)
        t.passes(5, told(40000, 40000, turn=1))
        assert not t.gate.gated  # it stands still
        quietly(t, confirmed(45000, 85000))
        assert not t.gate.gated  # the log has it; the replica's TCP has still to take it
        assert [each.code for each in t.out.concerns.own] == ["replicas-stand-still", "replicas-behind"]
        t >> told(45000, 85000, turn=1)
        assert t.gate.state is Gate.CATCHING_UP
        t << "log info: concern is over" << PaceAsked(1, 2)
        t >> told(45000, 85000, turn=1)  # overtaken
        assert t.gate.state is Gate.CATCHING_UP
        t >> told(45000, 85000, turn=2) << "log info: concern is over" << "log info: connection protected again"
        t << Progress(1, client_seq(45000), True)
        assert not t.out.concerns.own
        assert t.where == (Gate.PROTECTED, "")
        assert t.side.pace.let_go_count == 0


def test_replica_that_falls_behind_again_is_waited_for_less_and_less_often() -> None:
    with Paced() as t:
        behind(t)
        times = []
        for _ in range(1200):
            catching_up = t.gate.gated
            t.passes(STEP_S, told(45000, 85000, turn=1))
            if t.gate.gated and not catching_up:
                times.append(t.now)
        assert [round(b - a) for a, b in pairwise(times)] == [5, 9, 17]
        assert t.where == (Gate.UNPROTECTED, STANDS_STILL)


def test_replica_that_has_sent_less_than_the_server_is_not_back() -> None:
    """Its output may be another one; the comparison has still to find out."""
    with Paced() as t:
        quietly(t, server(0, 100, wnd=10000, ts=TS))
        t.passes(2.3, told(0, 40000, sent=97))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        t.passes(30, told(0, 40000, sent=97, turn=1))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        t.passes(1, told(0, 40000, sent=100, turn=1), told(0, 40000, sent=100, turn=2))
        assert t.where == (Gate.PROTECTED, "")


def test_replica_that_is_lost_meanwhile_is_not_waited_for() -> None:
    with Paced() as t:
        behind(t)
        t >> Unprotected(1, "the replica reset the connection")
        assert list(t.effects)[-2:] == ["log warning: connection unprotected", UnprotectedSeen(1)]
        t.effects.clear()
        assert not any(isinstance(each, PaceAsked) for each in t.passes(10, confirmed(45000, 85000)))
        assert t.where == (Gate.UNPROTECTED, "the replica reset the connection")


def test_backup_is_told_when_no_more_can_be_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Paced() as t:
        behind(t)
        monkeypatch.setattr(t.gate.retained.inbound, "limit", 5000)
        t >> Copy(client(45000, 1))
        assert "no more room" in t.gate.reason
        assert list(t.effects)[-2:] == ["log warning: connection unprotected", Unprotected(1, t.gate.reason)]
        t.effects.clear()


def test_end_of_the_server_does_not_wait_for_a_replica_that_stands_still() -> None:
    """The client may wait for nothing else. It may be our own server that has failed: so that is judged before."""
    with Paced() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        quietly(t, server(100, flags="F.", wnd=10000, ts=TS))
        t.passes(1.9, replica_end(50, EndKind.OPEN))
        assert t.where == (Gate.PROTECTED, "")
        got = t.passes(0.4, replica_end(50, EndKind.OPEN))
        assert t.where == (Gate.UNPROTECTED, BEHIND)
        assert "client [F.] 100 ack 0 wnd 10000 ts 2000010/1010" in got


def test_replica_that_stands_still_beside_others_that_do_does_not_show_that_our_server_has_failed() -> None:
    """It has sent all that the server has, and does not end; but another connection waits for its replica as well."""
    with Paced(end_deadline_ms=1000) as t:
        another(t, 40001, 2)
        quietly(t, server(0, 100, wnd=10000, ts=TS, port=40001))
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        quietly(t, replica_end(100, EndKind.OPEN), server(100, flags="F.", wnd=10000, ts=TS))
        got = t.passes(2.3, replica_end(100, EndKind.OPEN))
        assert not any(str(each).startswith("found") for each in got)
        assert t.where == (Gate.UNPROTECTED, BEHIND)


def test_replica_that_goes_on_while_our_server_has_ended_shows_that_it_has_failed() -> None:
    with Paced(end_deadline_ms=1000) as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        quietly(t, replica_end(100, EndKind.OPEN), server(100, flags="F.", wnd=10000, ts=TS))
        got = t.passes(1.5, replica_end(100, EndKind.OPEN))
        assert any(str(each).startswith("found: the application has failed") for each in got)


def test_end_of_the_server_waits_for_a_replica_that_comes_nearer() -> None:
    with Paced() as t:
        t >> server(0, 100, wnd=10000, ts=TS) << "pass"
        quietly(t, server(100, flags="F.", wnd=10000, ts=TS))
        for at in range(10):
            t.passes(0.8, replica_end(10 * at, EndKind.OPEN))
        assert t.where == (Gate.PROTECTED, "")


# ------------------------------------------------------------------------------------ all connections together


def another(t: Paced, port: int, conn: int) -> GatedConnection:
    """A second connection, whose replica's kernel has answered."""
    quietly(t, syn(port=port), syn_ack(port=port), Opened(conn, True, client_seq(40000)))
    return t.side.flows[(FLOW[0], port, *FLOW[2:])]


def test_while_no_replica_goes_on_new_connections_do_not_wait() -> None:
    with Paced() as t:
        behind(t)
        assert t.side.pace.stands_still
        new = another(t, 40001, 2)
        assert (new.state, new.reason) == (Gate.UNPROTECTED, NOBODY_GOES_ON)
        t.passes(1, told(40000, 40000, turn=1), PaceTold(2, 1, client_seq(0), client_seq(40000), server_seq(0)))
        assert new.state is Gate.UNPROTECTED
        t.passes(0.1, told(40000, 40000, sent=1, turn=1))  # one goes on
        assert not t.side.pace.stands_still
        t.passes(4, *(PaceTold(2, turn, client_seq(0), client_seq(40000), server_seq(0)) for turn in (1, 2)))
        assert new.state is Gate.PROTECTED


def test_while_no_replica_goes_on_a_syn_ack_does_not_wait_for_one_that_does_not_answer() -> None:
    with Paced() as t:
        behind(t)
        quietly(t, syn(port=40001), syn_ack(port=40001))
        t.passes(0.15)
        assert t.side.flows[(FLOW[0], 40001, *FLOW[2:])].state is Gate.UNPROTECTED


def test_one_replica_that_stands_still_among_others_hinders_no_new_connection() -> None:
    with Paced() as t:
        uploaded(t)
        for _ in range(30):
            t.passes(0.1, confirmed(40000, 40000))
            t.side.pace.progressed(t.now)  # by another connection
        assert t.where == (Gate.UNPROTECTED, STANDS_STILL)
        assert another(t, 40001, 2).state is Gate.PROTECTED


def test_when_those_that_stand_still_have_ended_a_new_connection_is_tried() -> None:
    with Paced() as t:
        behind(t)
        quietly(t, confirmed(45000, 45000), server(0, flags="R.", ack=45000, wnd=0, ts=TS))
        assert not t.side.pace.stands_still
        assert another(t, 40001, 2).state is Gate.PROTECTED


def test_those_that_are_furthest_behind_are_let_go_first() -> None:
    with Paced() as t:
        rest = [another(t, 40000 + number, 1 + number) for number in range(1, 16)]
        for number in range(16):
            quietly(t, server(0, 100 + number, wnd=10000, ts=TS, port=40000 + number))
        order: list[int] = []
        for _ in range(60):
            before = {each.conn for each in (t.gate, *rest) if each.state is Gate.UNPROTECTED}
            t.passes(STEP_S, told(0, 40000))
            gone = [each.conn for each in (t.gate, *rest) if each.state is Gate.UNPROTECTED and each.conn not in before]
            assert len(gone) <= 2
            order += sorted(gone, reverse=True)
        assert order == list(range(16, 0, -1))
