"""A connection is handed over: the primary is silent about it before the backup hears of it, and for good."""

from __future__ import annotations

from dataclasses import replace

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.ends import ApplicationFailed
from nfq_failover.core.gate.handover import ASK_MAX_S, LOST_AFTER_S, PROBES, WATCH_S
from nfq_failover.wire.records import (
    DigestSeen,
    EndAsked,
    EndKind,
    Handed,
    HandedOver,
    HandOver,
    Opened,
    Unprotected,
    UnprotectedSeen,
)
from tests.support.gate import TS, Gated
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    GateTranscript,
    asked,
    client_seq,
    confirmed,
    opening,
    replica_end,
    server,
    server_seq,
    syn,
    syn_ack,
)

HELD = "drop end-held"
SILENT = "drop handed-over"
RESET_OWN = "kernel [R] 0 wnd 0"
ACTIVE = HandedOver(1, Handed.ACTIVE)


def hand_over(at: int = 100) -> HandOver:
    """The question, in offsets."""
    return HandOver(1, FLOW, IRS, ISS, server_seq(at))


class Failing(Gated):
    """A protected connection whose server has sent 100 bytes. `may`: whether the backup can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may = True
        self.side.settings.adopt(replace(self.side.settings, on_app_failure="connection"))
        self >> server(0, 100, wnd=10000, ts=TS) << "pass"

    def judge(self, found: ApplicationFailed) -> None:
        assert found.alone
        if self.may:
            self.side.hand_over(found.connection, found.reason, self.now)

    def fails(self) -> None:
        """The server ends, the replica goes on."""
        self >> server(100, flags="F.", wnd=10000, ts=TS) << HELD << asked(100)
        self >> replica_end(101, EndKind.OPEN) << "log warning: connection handed over to the backup" << hand_over()

    def handed(self) -> None:
        """The backup has it."""
        self.fails()
        self >> ACTIVE << RESET_OWN

    def quiet(self, seconds: float) -> None:
        """For that long nothing but questions leaves, and nothing for the client."""
        for _ in range(round(seconds / 0.1)):
            self >> After(0.1)
            assert all(e == "query" or isinstance(e, HandOver) for e in self.effects), self.effects
            self.effects.clear()


def test_nothing_leaves_before_or_after_the_backup_has_it() -> None:
    with Failing() as t:
        t.fails()
        assert FLOW not in t.side.flows
        # What our TCP says, what was held, what the backup confirms: nothing of it gets out.
        t >> server(100, flags="F.", wnd=10000, ts=TS) << SILENT
        t >> server(50, 50, wnd=10000, ts=TS) << SILENT
        t >> server(101, flags="R", ack=None, wnd=0) << SILENT
        t >> confirmed(500, 40000)
        t >> Unprotected(1, "the replica is gone") << UnprotectedSeen(1)  # said before it was asked: the answer counts
        t >> FlowsGone([FLOW])
        t.quiet(1.0)
        t >> ACTIVE << RESET_OWN
        t >> server(101, flags="R", ack=None, wnd=0) << SILENT
        t >> replica_end(101, EndKind.OPEN)
        t.quiet(6.0)


def test_what_was_held_back_is_discarded() -> None:
    with Failing() as t:
        t >> server(100, ack=500, wnd=9875, ts=TS) << "drop ack-held"
        t.fails()
        t >> confirmed(500, 40000)
        t.quiet(1.0)


def test_question_is_repeated_until_the_backup_has_it_and_then_slowly() -> None:
    with Failing() as t:
        t.fails()
        waits, last = [], t.now
        for _ in range(300):
            t >> After(0.01)
            if hand_over() in t.effects:
                waits.append(t.now - last)
                last = t.now
            t.effects.clear()
        assert waits[0] <= 0.02
        assert max(waits) <= ASK_MAX_S + 0.02
        t >> ACTIVE << RESET_OWN
        t.quiet(WATCH_S - 0.2)
        t >> After(0.3)
        assert hand_over() in t.effects
        t.effects.clear()


def test_our_tcp_is_reset_whatever_it_knows_by_then() -> None:
    with Failing() as t:
        t.handed()
        t >> server(100, ack=70, flags="F.", wnd=10000, ts=TS) << SILENT << "kernel [R] 70 wnd 0"


def test_it_waits_until_the_backup_can_go_on() -> None:
    with Failing() as t:
        t.may = False
        t >> server(100, flags="F.", wnd=10000, ts=TS) << HELD << asked(100)
        t >> replica_end(101, EndKind.OPEN)
        assert t.gate.state is Gate.PROTECTED
        t >> After(0.02)
        assert any(isinstance(e, EndAsked) for e in t.effects)
        t.effects.clear()
        t.may = True
        t >> replica_end(101, EndKind.OPEN) << "log warning: connection handed over to the backup" << hand_over()


def test_what_the_backup_never_had_is_ours_again_and_ends() -> None:
    with Failing() as t:
        t.fails()
        t >> HandedOver(1, Handed.REFUSED, "diverged: something")
        t << "client [F.] 100 ack 0 wnd 10000 ts 2000010/1010" << "log warning: connection unprotected"
        t << Unprotected(1, "diverged: something")
        assert t.side.flows[FLOW].state is Gate.UNPROTECTED
        assert not t.side.handovers.flows
        t >> server(100, flags="F.", wnd=10000, ts=TS) << "pass"


def test_it_is_forgotten_when_it_is_over() -> None:
    with Failing() as t:
        t.handed()
        t >> HandedOver(1, Handed.OVER)
        assert not t.side.handovers.flows and not t.side.numbers
        t.quiet(10.0)


def test_syn_from_the_same_port_is_for_the_backups_tcp_as_long_as_it_has_the_connection() -> None:
    with Failing() as t:
        t.handed()
        t >> syn() << SILENT
        t >> HandedOver(1, Handed.OVER)
        t >> syn() << "pass"
        t >> syn_ack() << "drop syn-ack-held" << opening(2)
        t.effects.clear()


def test_backup_that_has_lost_it_says_so_and_the_client_is_made_to_ask() -> None:
    with Failing() as t:
        t.handed()
        t >> HandedOver(1, Handed.REFUSED, "unknown to the backup")
        t << "log error: a connection that was handed over is lost"
        t << "client [.] 99 ack 0 wnd 0" << "client [.] 99 ack 0 wnd 0 ts 2000010/1010"
        t >> server(900, flags="R", ack=None, wnd=0) << "pass"  # our TCP does not know it, and says where
        t >> server(100, flags="F.", wnd=10000, ts=TS) << SILENT << "kernel [R] 0 wnd 0"
        for _ in range(PROBES - 1):
            t >> After(0.61)
            assert sum(isinstance(e, str) and e.startswith("client [.] 99") for e in t.effects) == 2
            t.effects.clear()
        t >> After(0.61)
        assert not t.side.handovers.flows


def test_silence_of_the_backup_is_a_loss_only_when_the_protection_has_ended() -> None:
    with Failing() as t:
        t.handed()
        t.quiet(20.0)
        t.side.stop_protecting("the backup is gone", t.now)
        t.quiet(LOST_AFTER_S - 0.1)
        t >> ACTIVE  # it is there after all
        t.quiet(LOST_AFTER_S - 0.2)
        lost = False
        for _ in range(5):
            t >> After(0.1)
            lost = lost or "log error: a connection that was handed over is lost" in t.effects
            t.effects.clear()
        assert lost


def test_next_protection_finds_it_as_it_was() -> None:
    with Failing() as t:
        t.handed()
        t.side.stop_protecting("the backup's application has failed", t.now)
        t.quiet(1.0)
        t.side.start_protecting(0.0)
        t.quiet(20.0)
        assert FLOW in t.side.handovers.flows


def test_host_that_does_not_serve_any_more_forgets_it() -> None:
    with Failing() as t:
        t.fails()
        t.side.clear(t.now)
        t >> After(1.0)
        assert not t.side.handovers.flows


def test_with_the_policy_strict_no_comparison_lets_anything_out() -> None:
    with GateTranscript(divergence="strict") as t:
        t >> syn() << "pass"
        t >> syn_ack() << "drop syn-ack-held" << opening()
        t >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> confirmed(0, 40000)
        t >> server(0, wnd=10000, ts=TS) << "pass"
        t >> server(0, 100, wnd=10000, ts=TS) << "drop strict-held"
        t.effects.clear()  # digests
        t.side.handovers.start(t.side.flows[FLOW], "its server has failed", t.now)
        t.drain()
        t.effects.clear()
        t >> DigestSeen(1, server_seq(100), 0)
        t >> server(0, 100, wnd=10000, ts=TS) << SILENT


def test_status_says_what_has_become_of_it() -> None:
    with Failing() as t:
        t.fails()
        assert "being handed over" in t.side.handovers.flows[FLOW].reason
        t >> ACTIVE << RESET_OWN
        assert "goes on there" in t.side.handovers.flows[FLOW].reason
