"""A connection is handed over: the backup goes on with it while it shadows the others, whatever becomes of the pair."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.shadow.checkpoint import HEADER_BYTES, LIFE_BYTES, SLOT_BYTES, CheckpointWriter, pack, unpack
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.handover import COMPARE_PATIENCE_S, FIRST_NUMBER, ORPHAN_S
from nfq_failover.core.status import connections_of
from nfq_failover.wire.records import Close, Closed, Handed, HandedOver, HandOver, Progress, Unprotected
from tests.support.shadow import EDGE, SILENT, Shadowing, from_client, replica
from tests.support.transcript import FLOW, IRS, ISS, After, opening, server_seq, settings, syn
from tests.unit.core.shadow.test_takeover import AT, shown

ACTIVE = HandedOver(1, Handed.ACTIVE)
TAKEN = "log warning: connection handed over to this host"
RESET_INWARD = "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000"


def hand_over(at: int = 0, conn: int = 1, iss: int = ISS) -> HandOver:
    """The primary's request, in offsets."""
    return HandOver(conn, FLOW, IRS, iss, server_seq(at))


class Taking(Shadowing):
    """A connection whose replica has sent 100 bytes that the client has not acknowledged; it is handed over."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self >> replica(0, 100) << SILENT
        self >> hand_over() << shown(0, 100, 0, 60, flags="P.") << TAKEN << ACTIVE


def test_it_is_heard_from_the_moment_of_the_request() -> None:
    with Taking() as t:
        assert t.shadow.state is Shadow.ACTIVE
        t >> from_client(0, 80, ack=100) << "pass [.] 0:80 ack 100 wnd 500 ts 1001/7000000"
        t >> replica(100, 50, ack=80) << f"pass [.] 100:150 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 60}/1001"
        t >> hand_over() << ACTIVE  # and nothing is sent twice


def test_it_has_a_number_of_our_own_and_the_primarys_is_free() -> None:
    with Taking() as t:
        assert list(t.side.numbers) == [FIRST_NUMBER]
        t >> Close(1, "closed") << Closed(1)
        t >> opening()  # a repeated one that was overtaken
        t >> Progress(1, 0, True) << Unprotected(1, "unknown to the backup")
        assert t.shadow.state is Shadow.ACTIVE and t.shadow.closing.closed_at is None


def test_next_generation_and_a_lost_protection_leave_it_alone() -> None:
    with Taking() as t:
        t.side.invalidate("the primary went on unprotected")
        t.side.clear("a new generation of connections begins", keep_handed=True)
        t.drain()
        t << "log info: shadow connections dropped"
        assert t.side.flows[FLOW].state is Shadow.ACTIVE
        t >> hand_over() << ACTIVE


def test_takeover_of_everything_goes_on_with_it() -> None:
    with Taking() as t:
        t >> "takeover"
        assert t.shadow.state is Shadow.ACTIVE and not t.shadow.handed
        t >> replica(100, 50) << f"pass [.] 100:150 ack 0 wnd {EDGE // 4} ts {AT + 60}/1001"


def test_host_that_does_not_serve_any_more_drops_it() -> None:
    with Taking() as t:
        t.side.clear("this host does not serve any more")
        assert not t.side.flows and not t.side.numbers
        t.drain()
        t.effects.clear()


def test_end_is_told_at_once_and_again_when_asked() -> None:
    with Taking() as t:
        t.now += 3
        t >> FlowsGone([FLOW]) << HandedOver(1, Handed.OVER)
        t >> hand_over() << HandedOver(1, Handed.OVER)


def test_what_was_never_here_is_refused() -> None:
    with Shadowing() as t:
        t >> hand_over(conn=2) << HandedOver(2, Handed.REFUSED, "unknown to the backup")
        t >> hand_over(iss=ISS + 1) << HandedOver(1, Handed.REFUSED, "unknown to the backup")
        assert t.shadow.state is Shadow.SHADOW


def test_what_can_not_go_on_is_refused_with_its_reason_every_time() -> None:
    with Shadowing() as t:
        t >> Unprotected(1, "bytes were lost")
        t.effects.clear()
        t >> hand_over() << HandedOver(1, Handed.REFUSED, "bytes were lost")
        t >> hand_over() << HandedOver(1, Handed.REFUSED, "bytes were lost")
        assert not t.shadow.heard


def test_connection_that_the_client_has_reset_is_refused() -> None:
    with Shadowing() as t:
        t >> from_client(0, flags="R.") << "pass [R.] 0 ack 0 wnd 500 ts 1001/7000000"
        t >> hand_over() << RESET_INWARD << HandedOver(1, Handed.REFUSED, "reset by the client")


def test_it_waits_for_the_comparison_but_not_for_ever() -> None:
    with Shadowing(divergence="default") as t:
        compare = t.shadow.output.compare
        assert compare is not None
        compare.started = True
        t >> replica(0, 100) << SILENT
        t >> hand_over(100)
        assert not t.shadow.heard
        t.now += COMPARE_PATIENCE_S / 2
        t >> hand_over(100)
        t.now += COMPARE_PATIENCE_S
        t >> hand_over(100)
        assert t.shadow.state is Shadow.ACTIVE
        t.effects.clear()


def test_diverged_connection_is_refused() -> None:
    with Shadowing(divergence="default") as t:
        compare = t.shadow.output.compare
        assert compare is not None
        t >> replica(0, 100) << SILENT
        compare.compared = 50
        compare.differs(10, 50)
        t >> hand_over(100)
        t << RESET_INWARD
        (refused,) = t.effects
        assert isinstance(refused, HandedOver) and refused.state is Handed.REFUSED and "diverged" in refused.reason
        t.effects.clear()


def test_port_that_is_used_again_after_the_end_is_the_primarys() -> None:
    with Taking() as t:
        t >> from_client(0, ack=100, flags="F.") << "pass [F.] 0 ack 100 wnd 500 ts 1001/7000000"
        t >> replica(100, ack=1, edge=EDGE + 1, flags="F.")
        t.effects.clear()
        t >> from_client(1, ack=101) << "pass [.] 1 ack 101 wnd 500 ts 1001/7000000"
        t >> syn(irs=IRS + 99999) << "drop ended" << HandedOver(1, Handed.OVER)
        assert not t.side.flows


def test_primary_that_does_not_ask_for_it_any_more_has_forgotten_it() -> None:
    with Taking() as t:

        def pass_time(seconds: float, heard: bool) -> None:
            for _ in range(round(seconds)):
                t.now += 1.0
                t.side.handovers.on_timer(heard, t.now)

        pass_time(100, False)  # nobody can ask
        pass_time(ORPHAN_S - 1, True)
        t >> hand_over() << ACTIVE
        pass_time(ORPHAN_S - 1, True)
        t.drain()
        assert not t.effects
        pass_time(2, True)
        t.drain()
        t << "log error: a connection that was handed over to this host is lost"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 100 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"
        t >> hand_over() << HandedOver(1, Handed.OVER, t.shadow.reason)


def test_host_that_leaves_tells_the_client() -> None:
    with Taking() as t:
        t.side.handovers.cut("this host leaves", t.now)
        t.drain()
        t << "log error: a connection that was handed over to this host is lost"
        t << RESET_INWARD << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 100 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"
        t << HandedOver(1, Handed.OVER, "this host leaves")
        assert not t.side.flows


def test_it_outlives_the_daemon() -> None:
    with Taking() as t:
        found = unpack(pack(t.shadow), settings(), t.now)
        assert (found.handed, found.state, found.resync.pending) == (1, Shadow.ACTIVE, True)
        t.side.flows.clear()
        t.side.numbers.clear()
        t.side.restore([found], t.now)
        t.drain()
        t.effects.clear()
        assert list(t.side.numbers) == [FIRST_NUMBER + 1]
        t >> hand_over() << ACTIVE


def test_checkpoint_grows_and_its_slots_are_used_again() -> None:
    writer = CheckpointWriter(bytes(LIFE_BYTES))
    with Taking() as t:
        writer.note(False, 1, True)
        writer.writes.clear()
        writer.add(t.shadow)
        writer.note(False, 1, True)
        slot, header = writer.writes
        assert slot == (HEADER_BYTES, pack(t.shadow)) and header[0] == 0
        writer.writes.clear()
        writer.forget(FLOW)
        writer.add(t.shadow)
        assert [at for at, _ in writer.writes] == [HEADER_BYTES, HEADER_BYTES]
        t.shadow.flow = (*FLOW[:1], 1, *FLOW[2:])
        writer.add(t.shadow)
        assert writer.writes[-1][0] == HEADER_BYTES + SLOT_BYTES


@pytest.mark.parametrize("everything", [False, True])
def test_status_says_how_it_came_here(everything: bool) -> None:
    with Taking() as t:
        if everything:
            t >> "takeover"
        (row,) = connections_of(GateTable(settings(), t.out), t.side)
        assert (
            row.reason
            == ("taken over" if everything else "handed over by the primary")
            + ": an open connection survives one failure"
        )
        assert row.protected is False


@pytest.mark.parametrize("why", ["dead", "differs"])
def test_what_was_refused_stays_the_primarys_and_is_forgotten(why: str) -> None:
    """It is not asked about, by a number that the primary does not know, and not reset when this host leaves."""
    with Shadowing(divergence="default") as t:
        if why == "dead":
            t >> replica(0, flags="R.")
        else:
            t >> replica(0, 100)
            assert t.shadow.output.compare is not None
            t.shadow.output.compare.last = (50, 60)  # a date, not acknowledged yet
        t.effects.clear()
        t >> hand_over()
        assert any(isinstance(e, HandedOver) and e.state is Handed.REFUSED for e in t.effects)
        t.effects.clear()
        t.side.handovers.cut("this host leaves", t.now)
        t.drain()
        assert not t.effects
        t.now += 5.0
        t >> FlowsGone([FLOW])
        t.effects.clear()
        assert FLOW not in t.side.flows
        t >> After(60.0)
        assert not [e for e in t.effects if e != "query"]
        t.effects.clear()
