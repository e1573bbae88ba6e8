"""A connection that has ended is remembered for its client's sake, and is not listed as a living one."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import FlowsGone
from nfq_failover.core.pair.roles import State
from nfq_failover.wire.records import EndKind
from tests.support.transcript import FLOW, OWN_TS, SEEN_TS, client, server, server_seq
from tests.unit.core.test_node_packets import LoneNode, Protected, shadowing
from tests.unit.core.test_status import shown


def taken_over() -> tuple[LoneNode, dict[str, int]]:
    host, own = shadowing()
    host.node.members.state = State.PROTECTED
    assert host.node.shadow.take_over(host.now) == (1, 0)
    host.effects()
    assert len(shown(host)) == 1
    return host, own


def test_both_have_ended_after_the_takeover() -> None:
    host, own = taken_over()
    host.packet(client(0, 0, flags="F.", ts=(1002, SEEN_TS)))
    assert len(shown(host)) == 1
    host.packet(server(0, 0, ack=1, flags="F.", ts=(OWN_TS + 1, 1002), **own))
    assert len(shown(host)) == 1  # the client may not have it
    host.packet(client(1, 0, ack=1, ts=(1003, SEEN_TS)))
    assert not shown(host)
    assert host.node.shadow.flows  # the client may repeat its FIN


@pytest.mark.parametrize("by_client", [True, False])
def test_reset_after_the_takeover(by_client: bool) -> None:
    host, own = taken_over()
    if by_client:
        host.packet(client(0, 0, flags="R.", ts=(1002, SEEN_TS)))
    else:
        host.packet(server(0, 0, flags="R.", ts=(OWN_TS + 1, 1001), **own))
    assert not shown(host)


def test_what_has_ended_before_the_takeover_is_not_counted() -> None:
    host, own = shadowing()
    host.packet(client(0, 0, flags="F.", ts=(1002, SEEN_TS)))
    host.packet(server(0, 0, ack=1, flags="F.", ts=(OWN_TS + 1, 1002), **own))
    host.packet(client(1, 0, ack=1, ts=(1003, SEEN_TS)))
    assert not shown(host)
    host.node.members.state = State.PROTECTED
    assert host.node.shadow.take_over(host.now) == (0, 0)


def test_one_that_was_cut_is_not_listed() -> None:
    host, _ = shadowing()
    host.node.shadow.invalidate("the primary went on unprotected")
    assert len(shown(host)) == 1  # it goes on there
    host.node.members.state = State.PROTECTED
    assert host.node.shadow.take_over(host.now) == (0, 1)
    assert not shown(host)


def test_our_tcp_has_forgotten_one_whose_last_word_is_on_us() -> None:
    host = Protected()
    (connection,) = host.node.gate.flows.values()
    assert len(shown(host)) == 1
    assert host.node.status(host.now).protected_connections == 1
    connection.lingers(host.now)
    assert not shown(host)
    assert host.node.status(host.now).protected_connections == 0


def test_our_tcp_keeps_it_for_the_clients_sake_alone() -> None:
    host = Protected()
    (connection,) = host.node.gate.flows.values()
    host.node.handle(FlowsGone([], [FLOW]), host.now)
    assert len(shown(host)) == 1  # our FIN has not left: the client knows nothing of it
    connection.own.send_fin(server_seq(100))
    host.node.handle(FlowsGone([], [FLOW]), host.now)
    assert not shown(host)
    assert host.node.gate.flows


def test_held_reset_that_is_let_go_ends_it() -> None:
    host = Protected()
    (connection,) = host.node.gate.flows.values()
    connection.begin_end(host.now).hold(EndKind.RST, server_seq(0), host.now)
    assert len(shown(host)) == 1
    connection.unprotect("the replica reset the connection", host.node.gate.out)
    assert not shown(host)
