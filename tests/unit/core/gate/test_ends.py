"""The end of the server's stream on the primary: held until the replica has ended at the same byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.wire.records import Close, EndAsked, EndKind, Fed, Opened, Unprotected, UnprotectedSeen, Whole
from tests.support.gate import TS, Gated
from tests.support.transcript import (
    FLOW,
    After,
    Copy,
    GateTranscript,
    asked,
    client,
    client_seq,
    confirmed,
    opening,
    replica_end,
    server,
    syn,
    syn_ack,
)

HELD = "drop end-held"
GONE = "client [F.] 100 ack 0 wnd 10000 ts 2000010/1010"


class Ending(Gated):
    """A protected connection whose server has sent 100 bytes. `failures`: what was reported; `moves`: the answer. How
    long a client waits for a replica that stands still is test_pace.py's business: here it is for ever."""

    def __init__(self) -> None:
        super().__init__(replica_patience_ms=0)
        self.failures: list[str] = []
        self.moves = False
        self >> server(0, 100, wnd=10000, ts=TS) << "pass"

    def judge(self, found: ApplicationFailed) -> None:
        assert not found.alone
        self.failures.append(found.reason)
        if self.moves:
            self.side.clear(self.now)

    def ends(self, kind: EndKind = EndKind.FIN) -> None:
        """The server ends after its 100 bytes."""
        flags = "F." if kind is EndKind.FIN else "R."
        self >> server(100, flags=flags, wnd=10000, ts=TS) << HELD << asked(100, kind)

    def still(self, seconds: float, at: int, taken: int = 0, kind: EndKind = EndKind.OPEN, well: bool = True) -> None:
        """The backup answers the same again and again, for that long or until it has a consequence."""
        give_up = self.now + seconds
        while self.now < give_up and not self.effects and not self.failures:
            self >> After(0.1)
            assert all(effect == "query" or isinstance(effect, EndAsked) for effect in self.effects)
            self.effects.clear()
            self >> replica_end(at, kind, taken, well=well)


def test_fin_waits_for_the_replicas_and_is_sent_newly_built() -> None:
    with Ending() as t:
        t.ends()
        t >> replica_end(100, EndKind.OPEN)
        t >> After(0.011) << asked(100)
        t >> replica_end(100) << GONE
        t >> server(100, flags="F.", wnd=10000, ts=TS) << "pass"  # a retransmission
        t >> server(101, wnd=10000, ts=TS) << "pass"
        t >> replica_end(100)
        t >> After(0.2) << "query"


@pytest.mark.parametrize("seq", [101, 102])
def test_fin_that_was_repeated_while_it_was_held_is_followed_by_no_reset(seq: int) -> None:
    """The client acknowledges both, and our TCP is gone by the second time. What says anything else passes."""
    with Ending() as t:
        t >> Copy(client(0, 100, flags="F."))
        t >> server(100, ack=101, flags="F.", wnd=10000, ts=TS) << HELD << asked(100)
        t >> confirmed(101, 40000)
        t.effects.clear()
        t >> replica_end(100, taken=101)
        assert str(t.effects.popleft()).startswith("client [F.] 100 ack 101")
        t >> server(100, ack=101, flags="F.", wnd=10000, ts=TS)
        assert str(t.effects.popleft()).startswith("pass [F.] 100")
        t.effects.clear()
        t >> server(seq, flags="R", wnd=0)
        assert t.effects.popleft() == ("drop rst-after-end" if seq == 101 else "pass")
        assert (FLOW in t.side.flows) == (seq == 101)
        t.effects.clear()


def test_fin_is_where_it_belongs_though_an_ack_went_ahead_of_it() -> None:
    with Ending() as t:
        t >> server(101, wnd=10000, ts=TS)  # the FIN before it was dropped: the host was in doubt
        t.effects.clear()
        t.ends()
        t >> replica_end(100) << GONE


def test_reset_that_only_answers_the_client_comes_of_a_process_that_has_died() -> None:
    """Linux says nothing else if there was unsent data, which its FIN would have followed."""
    with Ending() as t:
        t >> server(100, ack=None, flags="R", wnd=0) << HELD << asked(100, EndKind.RST)
        t >> replica_end(150, EndKind.OPEN)
        assert not t.failures, "the client's reset may not have been read so far"
        t.still(1, 150)
        assert t.failures
        t.effects.clear()


def test_reset_that_answers_a_client_that_has_reset_the_connection_is_no_failure() -> None:
    """The replica has not got that yet, and has gone on meanwhile."""
    with Ending() as t:
        t >> server(100, ack=None, flags="R", wnd=0) << HELD << asked(100, EndKind.RST)
        t >> replica_end(150, EndKind.OPEN)
        t >> Copy(client(0, ack=None, flags="R"))
        t.effects.clear()
        t.still(30, 150)
        assert not t.failures
        t << "client [R.] 100 ack 0 wnd 10000 ts 2000010/1010"
        assert t.side.flows[FLOW].state is Gate.FED, "its replica gets what its client has sent"
        t.effects.clear()


def test_replica_that_was_first_costs_nothing() -> None:
    with Ending() as t:
        t >> replica_end(100) << asked(100, EndKind.OPEN)
        t >> server(100, flags="F.", wnd=10000, ts=TS) << "pass"
        t >> After(0.2) << "query"


def test_data_before_the_fin_goes_out_without_it() -> None:
    with Ending() as t:
        t >> server(100, 50, flags="F.", wnd=10000, ts=TS)
        t << "pass [.] 100:150 ack 0 wnd 10000 ts 2000010/1010" << asked(150)
        # The kernel's later ACKs come after its FIN; the client has not seen that.
        t >> server(151, wnd=10000, ts=TS) << "pass [.] 150 ack 0 wnd 10000 ts 2000010/1010"
        t >> server(100, 50, flags="F.", wnd=10000, ts=TS) << "pass [.] 100:150 ack 0 wnd 10000 ts 2000010/1010"
        t >> server(150, flags="F.", wnd=10000, ts=TS) << HELD
        t >> replica_end(150) << "client [F.] 150 ack 0 wnd 10000 ts 2000010/1010"


def test_what_the_held_fin_acknowledges_is_said_without_it() -> None:
    with Ending() as t:
        t >> server(100, ack=20, flags="F.", wnd=9995, ts=TS) << HELD << asked(100)
        t >> confirmed(20, 40000)
        t >> After(0.004) << "client [.] 100 ack 20 wnd 9995 ts 2000010/1010"
        t >> replica_end(100, taken=20) << "client [F.] 100 ack 20 wnd 9995 ts 2000010/1010"


def test_released_fin_acknowledges_no_more_than_the_backup_has() -> None:
    with Ending() as t:
        t >> Copy(client(0, 20, flags="F."))
        t >> server(100, ack=21, flags="F.", wnd=9995, ts=TS) << HELD << asked(100)
        t >> replica_end(100) << "client [F.] 100 ack 0 wnd 10000 ts 2000010/1010"
        assert not t.gate.living
        assert t.gate.keeps_last_ack  # our TCP is gone when its FIN is acknowledged: the rest is on us
        t >> confirmed(21, 40000)
        t >> After(0.004) << "client [.] 101 ack 21 wnd 9995 ts 2000010/1010"


@pytest.mark.parametrize("at", [100, 40])  # what a reset throws away depends on the moment
def test_two_resets_confirm_each_other(at: int) -> None:
    with Ending() as t:
        t.ends(EndKind.RST)
        t >> server(100, ack=None, flags="R", wnd=0) << HELD  # to what the client sends meanwhile
        t.now += 2.0
        t >> FlowsGone([FLOW])  # our TCP is rid of it
        assert FLOW in t.side.flows
        t >> replica_end(at, EndKind.RST) << "client [R.] 100 ack 0 wnd 10000 ts 2000010/1010"
        t << Close(1, "reset by the server")
        assert FLOW not in t.side.flows


def test_reset_and_fin_at_the_same_byte_confirm_each_other() -> None:
    with Ending() as t:
        t.ends(EndKind.RST)
        t >> replica_end(100) << "client [R.] 100 ack 0 wnd 10000 ts 2000010/1010" << Close(1, "reset by the server")


@pytest.mark.parametrize("kind", [EndKind.FIN, EndKind.RST])
def test_replica_that_goes_on_shows_that_the_application_has_failed(kind: EndKind) -> None:
    with Ending() as t:
        t.moves = True
        t.ends(kind)
        t >> replica_end(101, EndKind.OPEN)
        assert len(t.failures) == 1 and "has failed" in t.failures[0]
        t >> After(1.0)  # nothing that was held gets out
        t >> replica_end(101)


def test_replica_that_ends_later_shows_it_too() -> None:
    with Ending() as t:
        t.ends()
        t >> replica_end(4000)
        assert t.failures


def test_replica_that_has_everything_and_does_not_end_shows_it_at_the_deadline() -> None:
    with Ending() as t:
        began = t.now
        t.ends()
        t.still(5.0, 100)
        assert t.failures
        assert 1.0 <= t.now - began < 1.4


def test_replica_that_may_hang_does_not_show_it() -> None:
    with Ending() as t:
        t.ends()
        t.still(5.0, 100, well=False)
        assert not t.failures
        t >> replica_end(100, EndKind.OPEN)
        assert t.failures


def test_failure_that_can_not_move_now_is_reported_again_and_nothing_is_released() -> None:
    with Ending() as t:
        t.ends()
        t >> replica_end(101, EndKind.OPEN)
        t >> replica_end(101, EndKind.OPEN)
        assert len(t.failures) == 2
        assert t.gate.state is Gate.PROTECTED


def test_policy_off_lets_the_end_go_and_says_so() -> None:
    with Ending() as t:
        t.side.settings.adopt(replace(t.side.settings, on_app_failure="off"))
        t.ends()
        t >> replica_end(101, EndKind.OPEN) << GONE << "log warning: connection unprotected"
        t << Fed(1, "the server has closed the connection, its replica has not")
        assert not t.failures


def test_one_end_moves_nothing_to_a_replica_that_has_missed_input() -> None:
    """Why it goes on where our server ends may be just that."""
    with Ending() as t:
        t >> Whole(7, told=1, missed=1)
        t.ends()
        t >> replica_end(101, EndKind.OPEN) << GONE << "log warning: connection unprotected"
        t << Fed(1, "the server has closed the connection, its replica has not")
        assert not t.failures


def test_end_of_everything_moves_the_service_to_whatever_replica_there_is() -> None:
    with Ending() as t:
        t >> Whole(7, told=1, missed=1)
        other = GatedConnection(replace(opening(), conn=2, flow=(FLOW[0], 41000, *FLOW[2:])), t.now)
        t.side.numbers[2] = other
        other.begin_end(t.now).hold(EndKind.FIN, 0, t.now)
        t.ends()
        t >> replica_end(101, EndKind.OPEN)
        assert len(t.failures) == 1


@pytest.mark.parametrize(("at", "taken"), [(99, 0), (100, -1)])
def test_replica_that_is_behind_is_slow_and_has_longer(at: int, taken: int) -> None:
    with Ending() as t:
        began = t.now
        t.ends()
        t.still(60.0, at, taken)
        assert not t.failures
        assert 9.5 < t.now - began < 12
        t << GONE << "log warning: connection unprotected"
        t << Fed(1, "the replica is too far behind the server's end")


def test_replica_that_still_moves_has_longer_again() -> None:
    with Ending() as t:
        t.ends()
        for at in range(10, 100, 10):
            t.still(1.5, at)
        t >> replica_end(100) << GONE
        assert not t.failures


def test_time_without_answers_does_not_count() -> None:
    with Ending() as t:
        t.ends()
        t >> replica_end(100, EndKind.OPEN)
        t.now += 60  # a pause of either host
        t >> replica_end(100, EndKind.OPEN)
        assert not t.failures
        t.still(5.0, 100)
        assert t.failures


def test_replica_that_has_ended_early_loses_the_protection_and_the_client_sees_the_servers_end() -> None:
    with Ending() as t:
        t.ends()
        t >> replica_end(60) << GONE << "log warning: connection unprotected"
        t << Fed(1, "the replica has closed the connection 40 bytes early")


def test_replica_that_ends_before_bytes_that_were_sent_has_failed() -> None:
    with Ending() as t:
        t >> replica_end(60) << "log warning: connection unprotected"
        t << Fed(1, "the replica has closed the connection 40 bytes early")


def test_replica_that_ends_alone_has_failed_at_the_deadline() -> None:
    with Ending() as t:
        began = t.now
        t >> replica_end(100) << asked(100, EndKind.OPEN)
        t.still(5.0, 100, kind=EndKind.FIN)
        assert 1.0 <= t.now - began < 1.4
        t << "log warning: connection unprotected"
        t << Fed(1, "the replica has closed the connection, the server has not")


def test_server_that_is_slower_than_its_replica_has_longer() -> None:
    with Ending() as t:
        t >> replica_end(200) << asked(100, EndKind.OPEN)
        t.still(5.0, 200, kind=EndKind.FIN)
        assert not t.effects
        t >> server(100, 100, flags="F.", wnd=10000, ts=TS) << "pass"


def test_end_of_the_protection_lets_the_end_go() -> None:
    with Ending() as t:
        t.ends()
        t.side.stop_protecting("the backup is gone", t.now)
        t.drain()
        t << GONE
        t >> replica_end(101, EndKind.OPEN)
        t >> After(1.0)
        assert not t.failures


def test_replica_that_can_not_be_continued_lets_the_end_go() -> None:
    with Ending() as t:
        t.ends()
        t >> Unprotected(1, "the replica reset the connection") << GONE << "log warning: connection unprotected"
        t << UnprotectedSeen(1)


def test_end_of_an_unprotected_connection_is_not_held() -> None:
    with Ending() as t:
        t >> Unprotected(1, "whatever") << "log warning: connection unprotected" << UnprotectedSeen(1)
        t >> server(100, flags="F.", wnd=10000, ts=TS) << "pass"
        t >> server(101, flags="R.", wnd=0) << "pass" << Close(1, "reset by the server")  # its client needs no reset


def test_backup_that_asks_about_a_connection_that_is_over_is_told_so() -> None:
    with Ending() as t:
        t >> Unprotected(77, "the replica has closed the connection") << Close(77, "over") << UnprotectedSeen(77)


def test_server_that_hangs_is_not_what_goes_on() -> None:
    """The replica ends first; our application has passed no check since, so nobody can say that it goes on."""
    with Ending() as t:
        t.side.settings.adopt(replace(t.side.settings, health_checked=True))
        t >> replica_end(100) << asked(100, EndKind.OPEN)
        t.side.ends.note_well(t.now)  # began before
        t.still(8.0, 100, kind=EndKind.FIN)
        assert not t.effects
        t.side.ends.note_well(t.now)
        t >> After(0.1)
        t.effects.clear()
        t >> replica_end(100) << "log warning: connection unprotected"
        t << Fed(1, "the replica has closed the connection, the server has not")


def test_server_that_dies_before_it_has_said_anything_resets_nobody() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << "drop syn-ack-held" << opening()
        t >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> server(0, flags="R.", wnd=0, ts=TS) << HELD << asked(0, EndKind.RST)
        t >> server(0, flags="R", ack=None, wnd=0) << HELD  # its answer to the client's first data
