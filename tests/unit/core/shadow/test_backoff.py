"""After a takeover: clients take their doubled timers back, and repeat at once what they have sent to nobody."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import ICMP, IP

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.icmp import IcmpError, build_host_unreachable
from tests.support.shadow import SILENT, Shadowing, from_client, replica
from tests.support.transcript import FLOW, IRS, OWN_TS, After, client_seq, confirmed

UNREACHABLE_AT_0 = "client icmp 1 about 0"


def next_text(t: Shadowing) -> str:
    """The next thing that comes out, which is a segment."""
    return str(t.effects.popleft())


def taken_over(**changes: object) -> Shadowing:
    """A client that may have sent something to the dead primary; three messages have gone out already."""
    t = Shadowing(revert_backoff=True, **changes)
    t >> "takeover"
    assert next_text(t).startswith("client [.] 0 ack 0 ")  # the SEQ that is quoted next
    t << UNREACHABLE_AT_0 << UNREACHABLE_AT_0 << UNREACHABLE_AT_0
    return t


def test_an_eighth_of_the_timer_at_once_and_three_more_within_a_second() -> None:
    with taken_over() as t:
        for pause in (0.1, 0.2, 0.7):
            assert t.side.poll_timeout() == pytest.approx(t.now + pause)
            t >> After(pause + 1e-6) << UNREACHABLE_AT_0
        t >> After(1.0)
        assert t.side.out.counters["backoff-reverts"] == 6


def test_what_the_client_has_been_told_is_quoted() -> None:
    with Shadowing(revert_backoff=True) as t:
        t >> from_client(0, 1000) << f"pass [.] 0:1000 ack 0 wnd 500 ts 1001/{OWN_TS}" << confirmed(1000, 40000)
        t >> replica(0, 0, ack=1000) << SILENT
        t >> "takeover"
        assert " ack 1000 " in next_text(t)
        for _ in range(3):
            t << "client icmp 1 about 1000"


def test_a_client_that_goes_on_is_let_alone() -> None:
    with taken_over() as t:
        t >> from_client(0, 100)
        assert next_text(t).startswith("pass ")
        t >> replica(0, 0, ack=100)
        assert " ack 100 " in next_text(t)
        t >> After(2.0)


def test_an_acknowledgement_alone_may_come_from_one_that_still_waits() -> None:
    with Shadowing(revert_backoff=True) as t:
        t >> replica(0, 100) << SILENT
        t >> "takeover"
        assert next_text(t).startswith("client [P.] 0:100 ack 0 ")
        t << UNREACHABLE_AT_0 << UNREACHABLE_AT_0 << UNREACHABLE_AT_0
        t >> from_client(0, 0, ack=100)
        assert next_text(t).startswith("pass ")
        t >> After(0.11) << UNREACHABLE_AT_0


def test_nobody_speaks_for_a_connection_that_is_gone() -> None:
    with taken_over() as t:
        t.shadow.state = Shadow.DEAD
        t >> After(2.0)
    with taken_over() as t:
        t.side.clear("this host does not serve any more")
        t.drain()
        t.effects.clear()
        t >> After(2.0)


def test_not_during_a_handshake() -> None:
    """A Linux client in SYN_SENT would take the message for a refusal."""
    with Shadowing(revert_backoff=True) as t:
        t.shadow.output.snd_una = -1
        t >> "takeover"
        t >> After(2.0)


def test_can_be_switched_off() -> None:
    with Shadowing() as t:
        t >> "takeover"
        assert next_text(t).startswith("client [.] ")
        t >> After(2.0)


def test_the_message_is_what_others_read_too() -> None:
    client, port, server, server_port = FLOW
    quoted = build_segment((client, port), (server, server_port), client_seq(77), 5, 16, 0)
    packet = build_host_unreachable(quoted)
    seen = IP(bytes(packet))
    assert (seen.src, seen.dst, seen.proto) == (socket.inet_ntoa(server), socket.inet_ntoa(client), 1)
    assert (seen[ICMP].type, seen[ICMP].code) == (3, 1)
    assert bytes(seen[ICMP].payload) == bytes(quoted)
    inner = seen[ICMP].payload
    assert (inner.sport, inner.dport, inner.seq) == (port, server_port, (IRS + 78) & 0xFFFFFFFF)
    rebuilt = seen.copy()
    del rebuilt.chksum, rebuilt[ICMP].chksum
    assert bytes(rebuilt) == bytes(packet)
    assert IcmpError(packet).checksum_ok()
