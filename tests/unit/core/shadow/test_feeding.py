"""A replica whose output is of no use goes on getting what is sent, and is reset only when it has all of it."""

from __future__ import annotations

from dataclasses import replace

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.feeding import GRACE_S, PATIENCE_S
from nfq_failover.wire.records import Close, Closed, Data, EndAsked, EndKind, Fed, FedSeen, PaceAsked, Progress
from nfq_failover.wire.segment import Segment
from tests.support.gate import digest
from tests.support.shadow import EDGE, SILENT, from_client, replica
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    client,
    client_bytes,
    client_seq,
    confirmed,
    opening,
    server_seq,
)
from tests.unit.core.shadow.test_divergence import Comparing, lost

TS_OWN = "ts 1001/7000000"


def fed(**changes: object) -> Comparing:
    """The replica has sent 1200 bytes of noise, and the primary has been told."""
    t = Comparing(**changes)  # type: ignore[arg-type]
    noise = bytes(1200)
    t >> replica(0, 1200, payload=noise) << SILENT
    t.differ(0, bytes(range(1, 201)) * 6)
    t << "log debug: output differs"
    lost(t, "diverged")
    return t >> FedSeen(1)


def after(t: Comparing, seconds: float) -> list[str]:
    """Time passes, in small steps; what has come out."""
    found = []
    for _ in range(round(seconds / 0.01)):
        t >> After(0.01)
        found += quiet(t)
    return found


def quiet(t: Comparing) -> list[str]:
    """What has come out, as text."""
    found = [str(effect) for effect in t.effects]
    t.effects.clear()
    return found


def test_input_goes_on_and_output_goes_nowhere() -> None:
    with fed() as t:
        t >> from_client(0, 100, ack=700) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> from_client(100, 0, ack=5000) << "drop fed"  # of another server's output, and more of it
        t >> replica(1200, 300, ack=100) << SILENT << f"kernel [.] 100 ack 1500 wnd 65535 {TS_OWN}"
        assert t.shadow.output.outbound.size == 0
        assert t.shadow.output.snd_una == 5000  # for the reset at a takeover


def test_keep_alive_of_the_replica_is_answered() -> None:
    with fed() as t:
        t >> replica(1199, 0) << SILENT << f"kernel [.] 0 ack 1200 wnd 65535 {TS_OWN}"


def test_selective_acknowledgements_of_another_servers_output_are_kept_from_the_replica() -> None:
    with fed() as t:
        t >> from_client(0, 100, ack=700, sack=((900, 1000),)) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}"
        t << confirmed(100, EDGE)


def test_what_the_tap_has_lost_is_fetched() -> None:
    with fed() as t:
        t >> Progress(1, client_seq(100), True) << confirmed(0, EDGE)
        assert any(each.startswith("Missing(") for each in after(t, 0.1))
        t >> Data(1, client_seq(0), client_bytes(0, 100), False)
        found = quiet(t)
        assert any(f"kernel [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" in each for each in found), found
        assert t.shadow.inward.held == 100


def test_what_the_replica_has_not_taken_is_given_again() -> None:
    with fed() as t:
        t >> from_client(0, 100) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        assert any("kernel [P.] 0:100" in each for each in after(t, 0.08))


def test_primary_is_told_until_it_knows() -> None:
    t = Comparing()
    t >> replica(0, 1200, payload=bytes(1200)) << SILENT
    t.differ(0, bytes(range(1, 201)) * 6)
    t << "log debug: output differs"
    lost(t, "diverged")
    assert any(each.startswith("Fed(") for each in after(t, 0.1))
    t >> FedSeen(1)
    assert not any(each.startswith("Fed(") for each in after(t, 1.0))


def test_primary_says_so_itself() -> None:
    with Comparing() as t:
        t >> replica(0, 100) << SILENT
        t >> Fed(1, "the server has closed the connection, its replica has not")
        t << f"kernel [.] 0 ack 100 wnd 65535 {TS_OWN}" << FedSeen(1)
        assert t.shadow.state is Shadow.FED
        t >> Fed(1, "again") << FedSeen(1)
        t >> EndAsked(1, server_seq(100), EndKind.FIN)
        t << Fed(1, "the server has closed the connection, its replica has not")
        t >> digest(0, 100)  # nobody compares any more


def test_takeover_resets_the_client_and_gives_the_replica_the_rest_first() -> None:
    with fed() as t:
        t >> from_client(0, 100, ack=700) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> "takeover"
        assert t.shadow.heard
        found = quiet(t)
        assert any("client [R.] 700" in each for each in found), found
        assert not any("kernel [R" in each for each in found), found
        t >> from_client(100, 50, ack=700)
        assert quiet(t) == ["drop connection-dead", "client [R.] 700 ack 150 wnd 0"]
        assert any("kernel [P.] 0:100" in each for each in after(t, 0.08))
        t >> replica(1200, 10, ack=100) << SILENT << f"kernel [.] 100 ack 1210 wnd 65535 {TS_OWN}"
        assert any("kernel [R.] 100" in each for each in after(t, GRACE_S + 0.15))
        assert t.shadow.state is Shadow.DEAD


def test_takeover_does_not_wait_for_ever() -> None:
    with fed() as t:
        t >> from_client(0, 100, ack=700) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> "takeover"
        quiet(t)
        after(t, PATIENCE_S + 0.2)
        assert t.shadow.state is Shadow.DEAD


def test_over_on_the_primary_gives_the_replica_the_rest_first() -> None:
    with fed() as t:
        t >> from_client(0, 100, flags="F.") << f"pass [F.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(101, EDGE)
        t >> Close(1, "closed") << Closed(1)
        found = after(t, 0.08)
        assert any("kernel [FP.] 0:100" in each for each in found), found
        assert not any("[R" in each for each in found), found
        t >> replica(1200, 0, ack=101, flags="F.") << SILENT << f"kernel [.] 101 ack 1201 wnd 65535 {TS_OWN}"
        assert not any("[R" in each for each in after(t, GRACE_S + 0.15))  # it has ended by itself
        assert FLOW in t.side.flows


def test_protected_connection_that_ends_on_the_primary_is_not_cut_before_its_replica_has_read_all() -> None:
    with Comparing() as t:
        t >> from_client(0, 100)
        t.effects.clear()
        t >> Close(1, "closed")
        found = quiet(t)
        assert not any("kernel [R" in each for each in found), found
        assert any("kernel [P.] 0:100" in each for each in after(t, 0.08))
        t >> replica(0, 0, ack=100)
        quiet(t)
        assert any("kernel [R.] 100" in each for each in after(t, GRACE_S + 0.15))


def test_replica_that_was_let_go_gets_the_rest_before_it_is_reset() -> None:
    with Comparing() as t:
        t >> replica(0, 1200) << SILENT
        t >> PaceAsked(1, 1)
        quiet(t)
        t >> from_client(0, 100, ack=700)
        quiet(t)
        t >> "takeover"
        found = quiet(t)
        assert any("client [R.] 700" in each for each in found), found
        assert not any("kernel [R" in each for each in after(t, PATIENCE_S - 0.5))  # its application hangs
        assert t.shadow.state is Shadow.FED
        t >> replica(1200, 0, ack=100)
        quiet(t)
        assert any("kernel [R.] 100" in each for each in after(t, GRACE_S + 0.15))
        assert not t.side.wholeness.missed


def test_new_connection_from_the_port_waits_until_the_replica_has_the_rest_of_the_last_one() -> None:
    """Our TCP can't have both, and would throw away what its application has not read."""
    following = replace(opening(), conn=2, irs=70_000)
    with fed() as t:
        t >> from_client(0, 100) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> Close(1, "replaced by a new connection") << Closed(1)
        t >> following
        assert not any("[S" in each or "[R" in each for each in after(t, 0.2))
        t >> replica(1200, 0, ack=100)
        quiet(t)
        t >> following
        assert [each.split()[:2] for each in quiet(t)] == [["kernel", "[R.]"], ["kernel", "[S]"]]
        assert t.side.flows[FLOW].conn == 2
        assert not t.side.wholeness.missed
        t.side.clear("the end")
        quiet(t)


def test_new_connection_that_the_primary_has_ceased_to_wait_for_is_opened_all_the_same() -> None:
    """What its client sends meanwhile is not taken for the last one's, whose numbers were near."""
    following = replace(opening(), conn=2, irs=IRS + 50)
    with fed() as t:
        t >> from_client(0, 100) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> Close(1, "replaced by a new connection") << Closed(1)
        t >> following
        t >> Progress(2, (IRS + 51) % 2**32, True) >> PaceAsked(2, 0)
        assert not quiet(t)
        t >> from_client(50, 60, payload=bytes(60)) << "drop closed"
        assert t.shadow.state is Shadow.FED
        t >> replica(1200, 0, ack=100)
        quiet(t)
        t >> Progress(2, (IRS + 51) % 2**32, True)
        assert [each.split()[:2] for each in quiet(t)] == [["kernel", "[R.]"], ["kernel", "[S]"]]
        assert t.side.flows[FLOW].conn == 2
        t >> Progress(3, 0, True)
        assert quiet(t) == ["Unprotected(conn=3, reason='unknown to the backup')"]
        t.side.clear("the end")
        quiet(t)


def test_new_connection_that_has_ended_before_its_port_was_free_is_not_opened() -> None:
    with fed() as t:
        t >> from_client(0, 100) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> replace(opening(), conn=2, irs=70_000)
        t >> Close(2, "closed") << Closed(2)
        t >> Progress(2, 70_001, True)
        assert quiet(t) == ["Unprotected(conn=2, reason='unknown to the backup')"]


def test_what_lies_behind_a_hole_that_the_primary_has_too_is_not_missing() -> None:
    """A client that has reset its connection never fills it."""
    with fed() as t:
        t >> from_client(100, 100)
        quiet(t)
        t >> Close(1, "closed") << Closed(1)
        after(t, GRACE_S + 0.15)
        assert not t.side.wholeness.missed


def test_hole_that_the_primary_does_not_have_is_missing_input() -> None:
    with fed() as t:
        t >> from_client(100, 100)
        quiet(t)
        t >> Progress(1, client_seq(200), True)
        quiet(t)
        t >> Close(1, "closed") << Closed(1)
        after(t, GRACE_S + 0.15)
        assert t.side.wholeness.missed == 1


def test_new_connection_from_the_port_waits_also_after_a_takeover() -> None:
    syn = Segment(client(-1, ack=None, flags="S", irs=IRS + 70_000).packet(ISS))
    with fed() as t:
        t >> from_client(0, 100) << f"pass [.] 0:100 ack 1200 wnd 65535 {TS_OWN}" << confirmed(100, EDGE)
        t >> "takeover"
        quiet(t)
        assert not t.side.gives_way(t.shadow, syn)
        t >> replica(1200, 0, ack=100)
        quiet(t)
        after(t, GRACE_S + 0.15)
        assert t.side.gives_way(t.shadow, syn)


def test_a_fed_replica_that_resets_keeps_the_reason_why_it_was_only_fed() -> None:
    with fed() as t:
        why = t.shadow.reason
        t >> replica(1200, flags="R.")
        quiet(t)
        assert t.shadow.reason == f"{why}; it has reset the connection"
