"""ICMP "fragmentation needed" for connections that were taken over: the quoted numbers become the replica's."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from nfq_failover.core.events import PacketQueued, Queue, Verdict
from nfq_failover.core.shadow import path_mtu
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.icmp import IcmpError
from tests.support.shadow import Shadowing, from_client
from tests.support.transcript import FLOW

CLIENT, PORT, SERVER, SERVER_PORT = FLOW


def too_big(seq: int, sport: int = SERVER_PORT, damage: bool = False, proto: int = 6) -> bytearray:
    server, client = socket.inet_ntoa(SERVER), socket.inet_ntoa(CLIENT)
    quoted = bytes(IP(src=server, dst=client, proto=proto) / TCP(sport=sport, dport=PORT, seq=seq))[:28]
    packet = IP(src="192.0.2.1", dst=server) / ICMP(type=3, code=4, nexthopmtu=600) / quoted
    raw = bytearray(bytes(packet))
    raw[-1] ^= damage
    return raw


def judged(t: Any, packet: bytearray, serving: bool = True) -> Verdict:
    event = PacketQueued(Queue.IN, 7, packet)
    path_mtu.judge(event, t.side.flows, serving, t.out)
    verdict = t.out.effects.pop()
    assert isinstance(verdict, Verdict)
    assert (verdict.queue, verdict.packet_id) == (Queue.IN, 7)
    return verdict


def taken_over() -> Shadowing:
    t = Shadowing()
    t.side.take_over(t.now)
    t.out.effects.clear()
    return t


def test_quoted_number_becomes_the_replicas_own() -> None:
    t = taken_over()
    mapping = t.shadow.mapping
    for offset in (0, 2896, 1 << 20):
        verdict = judged(t, too_big(mapping.seen.seq(offset)))
        assert verdict.accept
        assert verdict.packet is not None
        told = IcmpError(verdict.packet)
        assert told.seq == mapping.own.seq(offset)
        assert told.checksum_ok()
    assert mapping.own.seq(0) != mapping.seen.seq(0)
    assert t.out.counters["icmp-translated"] == 3


def test_native_connections_and_other_protocols_are_left_to_the_kernel() -> None:
    t = taken_over()
    for packet in (too_big(5, sport=SERVER_PORT + 1), too_big(5, proto=17), bytearray(too_big(5)[:40])):
        verdict = judged(t, packet)
        assert verdict.accept
        assert verdict.packet is None


@pytest.mark.parametrize("state", [Shadow.OPENING, Shadow.SHADOW, Shadow.DEAD])
def test_nothing_is_believed_about_connections_that_are_not_continued(state: Shadow) -> None:
    t = taken_over()
    t.shadow.state = state
    assert not judged(t, too_big(t.shadow.mapping.seen.seq(0))).accept


def test_damaged_message_is_dropped() -> None:
    t = taken_over()
    seq = t.shadow.mapping.seen.seq(0)
    assert not judged(t, too_big(seq, damage=True)).accept
    assert t.out.counters["bad-checksum"] == 1


def test_host_that_does_not_serve_takes_none() -> None:
    with Shadowing() as t:
        t >> from_client(0, 0) << "pass [.] 0 ack 0 wnd 500 ts 1001/7000000"
        assert not judged(t, too_big(t.shadow.mapping.seen.seq(0)), serving=False).accept
