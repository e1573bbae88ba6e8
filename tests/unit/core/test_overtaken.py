"""A segment of the daemon's own that has waited in the queue behind newer ones says what is newest, or is refused."""

from __future__ import annotations

import pytest

from nfq_failover.wire.segment import Segment
from tests.support.gate import HELD, Gated, ack
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import ISS, OWN_TS, SEEN_TS, Sent, confirmed, describe, server

AT = SEEN_TS + 1000  # the client's view of the replica's clock after a takeover


def renewed(renew: object, sent: Sent) -> tuple[bool, str]:
    """Whether a segment is changed, and what it is then."""
    seg = Segment(sent.packet(ISS))
    assert callable(renew)
    changed = bool(renew(seg))
    if changed:
        seg.seal()
    return changed, describe(seg.buf, ISS)


def test_ack_that_the_servers_data_has_overtaken() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> confirmed(3000, 40000)
        ours = server(ack=1000, wnd=9750, ts=(2_000_010, 1_010), sack=((1200, 1300),))
        assert renewed(t.gate.acks.renew, server(ack=1000, wnd=9750, ts=(2_000_010, 1_010))) == (
            False,
            "[.] 0 ack 1000 wnd 9750 ts 2000010/1010",
        ), "nothing is newer"
        t >> server(0, 200, ack=3000, wnd=9250, ts=(2_000_030, 1_030)) << "pass"
        assert renewed(t.gate.acks.renew, ours) == (True, "[.] 0 ack 3000 wnd 9250 ts 2000030/1030")


def test_what_is_held_back_is_not_said_by_one_that_was_overtaken() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> ack(3000, ts=(2_000_030, 1_030)) << HELD
        ours = server(ack=1000, wnd=9750, ts=(2_000_010, 1_010))
        assert renewed(t.gate.acks.renew, ours) == (True, "[.] 0 ack 1000 wnd 9750 ts 2000030/1030")


@pytest.mark.parametrize("told", [-1, 1001])
def test_one_of_an_earlier_connection_stays_as_it_is(told: int) -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        assert not renewed(t.gate.acks.renew, server(ack=told, wnd=1, ts=(1, 1)))[0]
    with Shadowing() as t:
        t >> "takeover"
        t << f"client [.] 0 ack 0 wnd 10000 ts {AT + 60}/1001"
        assert t.shadow.map is not None
        assert not t.shadow.resending.renew(t.shadow.map, Segment(server(ack=told, wnd=1, ts=(1, 1)).packet(ISS)))


def test_resent_bytes_that_the_replicas_have_overtaken_are_no_older() -> None:
    with Shadowing() as t:
        t >> replica(0, 100) << SILENT
        t >> "takeover" << f"client [P.] 0:100 ack 0 wnd 10000 ts {AT + 60}/1001"
        ours = server(0, 100, ack=0, wnd=10000, flags="P.", ts=(AT + 60, 1001))
        mapping = t.shadow.map
        assert mapping is not None
        assert renewed(lambda seg: t.shadow.resending.renew(mapping, seg), ours)[0] is False, "nothing is newer"
        t >> replica(100, 50, ts=(OWN_TS + 75, 1001)) << f"pass [.] 100:150 ack 0 wnd 10000 ts {AT + 75}/1001"
        assert renewed(lambda seg: t.shadow.resending.renew(mapping, seg), ours) == (
            True,
            f"[P.] 0:100 ack 0 wnd 10000 ts {AT + 75}/1001",
        )
        t >> from_client(0, 0, ack=150) << "pass [.] 0 ack 150 wnd 500 ts 1001/7000000"
