"""Clients are granted only what the backup's TCP can go on with."""

from __future__ import annotations

import pytest

from nfq_failover.constants import OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE
from nfq_failover.core.events import Inject, PacketQueued, Queue, Verdict
from nfq_failover.core.gate.connection import Gate
from nfq_failover.wire.records import Fed, Opened
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.tcp_options import SynOptions
from tests.support.transcript import FLOW, ISS, OFFER, GateTranscript, client_seq, granted, opening, syn, syn_ack

HELD = "drop syn-ack-held"
ALL = frozenset((OPT_TIMESTAMPS, OPT_SACK_PERMITTED, OPT_WSCALE))


def seen_by_our_tcp(t: GateTranscript) -> SynOptions:
    """What our TCP finds in the client's SYN."""
    packet = syn().packet(ISS)
    t.side.segments.inbound_syn(PacketQueued(Queue.IN, 77, packet), Segment(packet))
    verdict = t.out.effects.pop()
    assert isinstance(verdict, Verdict) and verdict.accept
    return SynOptions.parse(Segment(verdict.packet or packet).options())


@pytest.mark.parametrize("kind", [OPT_TIMESTAMPS, OPT_SACK_PERMITTED, OPT_WSCALE])
def test_an_option_that_the_backup_lacks_is_not_granted(kind: int) -> None:
    with GateTranscript() as t:
        t.side.fit_backup(frozenset((kind,)), None, t.now)
        options = seen_by_our_tcp(t)
        assert (options.tsval is None) is (kind == OPT_TIMESTAMPS)
        assert options.sack_permitted is (kind != OPT_SACK_PERMITTED)
        assert (options.wscale is None) is (kind == OPT_WSCALE)
        assert options.mss == 1460
        assert seen_by_our_tcp(t) == options, "its repetition, too"


def test_a_host_without_a_backup_grants_everything() -> None:
    with GateTranscript() as t:
        t.side.fit_backup(ALL, 1000, t.now)
        t.side.stop_protecting("no backup", t.now)
        assert seen_by_our_tcp(t) == SynOptions.parse(OFFER)
        t >> syn_ack() << "log warning: connection unprotected" << "pass"
        assert t.side.flows[FLOW].open.mss == 1460


def test_connection_whose_syn_came_before_the_backup_is_from_before() -> None:
    """Nothing was taken out of it, so the backup's TCP would not go on with it."""
    with GateTranscript() as t:
        t.side.stop_protecting("no backup", t.now)
        t >> syn() << "pass"
        t.side.fit_backup(frozenset((OPT_WSCALE,)), None, t.now)
        t.side.start_protecting(t.now)
        t >> syn_ack() << "log warning: connection unprotected" << "pass"
        connection = t.side.flows[FLOW]
        assert (connection.state, connection.reason) == (Gate.UNPROTECTED, "opened before the backup joined")
        assert connection.missing_from == 0 and not connection.counts
        t.effects.clear()


def mss_told(t: GateTranscript, given: object) -> int:
    """What the packet announces that goes to the client upon an input."""
    t.feed(given)
    (packet,) = (effect.packet for effect in t.out.effects if isinstance(effect, Inject | Verdict))
    assert packet is not None
    seg = Segment(bytearray(packet))
    assert seg.checksum_ok()
    t.drain()
    t.effects.clear()
    return SynOptions.parse(seg.options()).mss


def test_client_is_told_no_greater_segments_than_the_backup_takes() -> None:
    with GateTranscript() as t:
        t.side.fit_backup(frozenset(), 1360, t.now)
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening(mss=1360)
        t >> syn_ack() << HELD  # our TCP repeats it
        assert mss_told(t, Opened(1, True, client_seq(65000))) == 1360
        assert mss_told(t, syn_ack()) == 1360
        assert t.out.counters["mss-lowered"] == 1


def test_a_smaller_mss_of_our_own_stays() -> None:
    with GateTranscript() as t:
        t.side.fit_backup(frozenset(), 1360, t.now)
        t >> syn() << "pass"
        t >> syn_ack(options=granted(mss=1200)) << HELD << opening(mss=1200)
        assert mss_told(t, Opened(1, True, client_seq(65000))) == 1200


def test_clients_that_were_told_more_are_unprotected_when_the_backups_mtu_falls() -> None:
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << HELD << opening()
        t >> Opened(1, True, client_seq(65000)) << "client [S.] -1 ack 0 wnd 8000"
        t.side.fit_backup(frozenset(), 1460, t.now)
        assert t.side.flows[FLOW].state is Gate.PROTECTED
        t.side.fit_backup(frozenset(), 1360, t.now)
        why = "its client was told an MSS of 1460, and the backup's interface takes 1360"
        t.drain()
        t << "log warning: connection unprotected" << Fed(1, why)
        assert (t.side.flows[FLOW].state, t.side.flows[FLOW].reason) == (Gate.FED, why)
