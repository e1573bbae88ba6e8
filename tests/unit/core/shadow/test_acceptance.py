"""What a host that shadows does not believe though it hears it, and which contradictions end the protection."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.shadow.acceptance import ASK_EVERY_S, LEFT_BEHIND_BYTES
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.inward import JOURNAL_AHEAD
from nfq_failover.core.shadow.vanished import RESET_PATIENCE_S
from nfq_failover.core.tcp.claims import PAWS_SLACK, TWO_VERSIONS, URGENT
from nfq_failover.wire.records import Data, Missing, SentAsked, SentUpTo, Unprotected
from tests.support.gate import Gated
from tests.support.shadow import EDGE, SILENT, Shadowing, from_client, replica
from tests.support.transcript import (
    FLOW,
    IRS,
    ISS,
    After,
    Urgent,
    client_seq,
    confirmed,
    server,
    server_seq,
)

OTHER = bytes(100)
PASSED = "pass [.] 0:1000 ack 0 wnd 500 ts 1001/7000000"


def dead(t: Shadowing, reason: str = TWO_VERSIONS, at: int = 0) -> None:
    """The connection is given up, loudly."""
    t << "log warning: connection lost its replica" << f"kernel [R.] {at} ack 0 wnd 500 ts 1001/7000000"
    t << "drop contradiction" << Unprotected(1, reason)
    assert t.shadow.state is Shadow.DEAD


# ------------------------------------------------------------------------------------ the backup's log


def test_equal_bytes_again_are_no_contradiction() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> from_client(500, 700) << "pass [.] 500:1200 ack 0 wnd 500 ts 1001/7000000" << confirmed(1200, EDGE)


@pytest.mark.parametrize(("start", "size"), [(0, 100), (400, 100), (950, 100)])
def test_other_bytes_for_a_place_in_the_log_end_the_protection(start: int, size: int) -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> from_client(start, size, payload=OTHER)
        dead(t)


def test_other_bytes_beyond_a_hole_end_the_protection() -> None:
    with Shadowing() as t:
        t >> from_client(1000, 500) << "pass [.] 1000:1500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (1000, 1500))
        t >> from_client(1450, 100, payload=OTHER)
        dead(t)


def test_bytes_of_the_primary_that_contradict_the_log_end_the_protection() -> None:
    with Shadowing() as t:
        t >> from_client(1000, 500) << "pass [.] 1000:1500 ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(0, EDGE, (1000, 1500))
        t >> After(0.003) << Missing(1, client_seq(0), client_seq(1000))
        t >> Data(1, client_seq(950), OTHER) << "log warning: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Unprotected(1, TWO_VERSIONS)


def test_what_our_tcp_has_taken_is_settled() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> replica(ack=1000) << SILENT
        t >> from_client(900, 100, payload=OTHER) << "pass [.] 900:1000 WRONG BYTES ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(1000, EDGE)


def test_garbage_byte_of_a_keep_alive_is_none() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> from_client(999, 1, payload=b"\0") << "pass [.] 999:1000 WRONG BYTES ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(1000, EDGE)


def test_garbage_byte_of_a_keep_alive_after_the_end_is_not_logged() -> None:
    with Shadowing() as t:
        t >> from_client(0, 10, flags="F.") << "pass [F.] 0:10 ack 0 wnd 500 ts 1001/7000000" << confirmed(11, EDGE)
        t >> from_client(10, 1, payload=b"\0") << "pass [.] 10:11 WRONG BYTES ack 0 wnd 500 ts 1001/7000000"
        t << confirmed(11, EDGE)
        assert t.shadow.inward.inbound.end == 10


@pytest.mark.parametrize(("start", "size", "flags"), [(0, 9, "F."), (0, 12, "F."), (8, 10, ".")])
def test_stream_with_two_ends_ends_the_protection(start: int, size: int, flags: str) -> None:
    with Shadowing() as t:
        t >> from_client(0, 10, flags="F.") << "pass [F.] 0:10 ack 0 wnd 500 ts 1001/7000000" << confirmed(11, EDGE)
        t >> from_client(start, size, flags=flags)
        dead(t)


def test_urgent_data_ends_the_protection() -> None:
    with Shadowing() as t:
        t >> Urgent("client", 0, 10, ts=(1001, 2_000_000))
        dead(t, URGENT)


# ------------------------------------------------------------------------------------ ACK numbers (RFC 5961 section 5)


def test_acks_outside_a_window_around_what_is_acknowledged_are_not_believed() -> None:
    with Shadowing() as t:
        wide = t.shadow.header.widest
        t >> from_client(0, 100, ack=wide) << "drop held-back" << "kernel [.] 0 ack 0 wnd 1012 ts 1001/7000000"
        t << confirmed(100, EDGE)
        t >> from_client(100, 100, ack=-1) << "drop ack-too-old"
        t >> from_client(100, 100, ack=2 * wide + 1) << "drop ack-of-unsent" << SentAsked(1)
        t >> from_client(100, 100, ack=2**31 - 10) << "drop ack-of-unsent"  # asked a moment ago
        assert (t.shadow.inward.held, t.shadow.output.snd_una) == (100, wide)


def test_primary_knows_whether_so_much_was_sent() -> None:
    with Shadowing() as t:
        far = 3 * t.shadow.header.widest
        t >> from_client(0, 100, ack=far) << "drop ack-of-unsent" << SentAsked(1)
        t >> SentUpTo(1, server_seq(far))
        t >> from_client(0, 100, ack=far) << "drop held-back" << "kernel [.] 0 ack 0 wnd 2036 ts 1001/7000000"
        t << confirmed(100, EDGE)
        assert t.shadow.output.snd_una == far
        t.now += 2 * ASK_EVERY_S
        t >> from_client(100, 1, ack=2 * far) << "drop ack-of-unsent" << SentAsked(1)


def test_primary_tells_what_it_has_sent() -> None:
    with Gated() as t:
        t >> server(0, 700, wnd=10000, ts=(2_000_010, 1_010)) << "pass"
        t >> SentAsked(1) << SentUpTo(1, server_seq(700))
        t >> SentAsked(2)


def test_after_the_takeover_an_ack_of_what_nobody_sent_is_our_tcps_to_refuse() -> None:
    """Not clamped to what it has sent, which would tell it that the client has everything."""
    with Shadowing() as t:
        t >> "takeover"
        t.effects.clear()
        wide = t.shadow.header.widest
        beyond = LEFT_BEHIND_BYTES + wide + 1
        t >> from_client(0, 0, ack=beyond) << f"pass [.] 0 ack {beyond} wnd 500 ts 1001/7000000"
        assert t.shadow.output.snd_una == 0


def test_after_the_takeover_the_client_says_once_what_the_dead_primary_has_sent() -> None:
    with Shadowing() as t:
        t >> "takeover"
        t.effects.clear()
        far = 2 * t.shadow.header.widest
        t >> from_client(0, 0, ack=far)
        assert t.shadow.output.snd_una == far
        t.effects.clear()
        beyond = far + t.shadow.header.widest + 1
        t >> from_client(0, 0, ack=beyond) << f"pass [.] 0 ack {beyond} wnd 500 ts 1001/7000000"
        t >> from_client(0, 0, ack=-1) << "pass [.] 0 ack -1 wnd 500 ts 1001/7000000"
        assert t.shadow.output.snd_una == far


# ------------------------------------------------------------------------------------ blind resets (RFC 5961 section 3)


def test_reset_of_the_replica_alone_is_told() -> None:
    """A forged reset that fits the replica, which is behind, and not the primary's TCP, which goes on."""
    with Shadowing() as t:
        t >> from_client(0, flags="R", ack=None, ts=None) << "pass [R] 0 wnd 500"
        t.now += 3
        t >> FlowsGone([FLOW])
        t.now += RESET_PATIENCE_S
        t >> FlowsGone([FLOW]) << "log warning: connection lost its replica"
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << Unprotected(1, "the replica has closed the connection")


def test_segments_beyond_every_window_are_refused() -> None:
    with Shadowing() as t:
        t >> from_client(EDGE + JOURNAL_AHEAD + 1, 10) << "drop implausible"


def test_numbers_of_the_test_are_those_of_the_wire() -> None:
    assert client_seq(0) == (IRS + 1) % 2**32
    assert server_seq(0) == (ISS + 1) % 2**32


def test_old_timestamps_are_not_believed() -> None:
    with Shadowing() as t:
        t >> from_client(0, 100, payload=OTHER, ts=((1001 - PAWS_SLACK - 1) % 2**32, 0)) << "drop old-timestamp"
        t >> from_client(0, 1000) << PASSED << confirmed(1000, EDGE)
        t >> "takeover"
        t.effects.clear()
        t >> from_client(0, 100, ts=((1001 - PAWS_SLACK - 1) % 2**32, 0))
        assert [str(effect)[:4] for effect in t.effects] == ["pass"]  # our TCP answers it
        t.effects.clear()
