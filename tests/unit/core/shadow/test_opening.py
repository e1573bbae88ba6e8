"""The backup opens the replica's connection."""

from __future__ import annotations

from typing import Any

import pytest

from nfq_failover.core.events import Inject
from nfq_failover.wire.records import Opened, Progress, Unprotected, UnprotectedSeen
from tests.support.shadow import SILENT, Shadowing, answer, from_client
from tests.support.transcript import (
    IRS,
    ISS,
    ISS_OWN,
    OFFER,
    OWN_TS,
    After,
    ShadowTranscript,
    client,
    client_seq,
    confirmed,
    granted,
    opening,
    server,
)


def test_syn_is_delivered_without_what_the_primary_did_not_grant() -> None:
    with ShadowTranscript() as t:
        t >> opening(wscale=None, sack_permitted=False, tsval=None)
        t.effects.clear()
    with ShadowTranscript() as t:
        t.side.take(opening(wscale=None, sack_permitted=False, tsval=None), 1.0)
        packet = bytes(t.out.effects.popleft().packet)  # type: ignore[union-attr,arg-type]
        assert packet[40:] == OFFER[:4] + b"\x01" * (len(OFFER) - 4)


def test_syn_is_repeated_until_the_replica_answers() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> After(0.021) << "kernel [S] -1 wnd 64240" << "query"
        t >> After(0.041) << "kernel [S] -1 wnd 64240"
        t >> server(-1, ack=0, flags="R.") << SILENT << Opened(1, False, 0, "")  # no listener yet
        t >> After(0.081) << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> After(0.2)


def test_opening_that_is_repeated_is_answered_again() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> opening()
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> opening() << Opened(1, True, client_seq(5000))


@pytest.mark.parametrize("grant", [{"wscale": None}, {"ts": None}, {"sack": False}], ids=str)
def test_replica_that_grants_other_options_cannot_continue(grant: dict[str, Any]) -> None:
    which = {"wscale": "window scaling", "ts": "timestamps", "sack": "SACK"}[next(iter(grant))]
    reason = f"the hosts grant different TCP options (primary, backup): {which} (yes, no)"
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer(**grant) << SILENT
        t << "log warning: connection lost its replica" << Unprotected(1, reason)
        t >> opening() << Opened(1, False, 0, reason)
        t >> UnprotectedSeen(1)


def test_clients_syn_reaches_no_one() -> None:
    with Shadowing() as t:
        t >> client(-1, ack=None, flags="S", options=OFFER) << "drop syn-of-shadow"


def test_acks_before_the_replica_has_answered_wait_and_are_told_later() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(0, 100) << "drop replica-opening"
        t >> answer() << SILENT << "kernel [.] 0 ack 0 wnd 501 ts 1000/7000000" << Opened(1, True, client_seq(5000))
        t << confirmed(100, 5000)
        t >> After(0.07) << "kernel [P.] 0:100 ack 0 wnd 501 ts 1000/7000000" << "query"


def test_replica_that_was_late_and_lacks_bytes_is_not_continued() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(100, flags="F.") << "drop replica-opening"  # the tap has lost what was before
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        assert t.side.numbers[1].inward.late
        t >> "takeover"
        t << "kernel [.] 0 ack 0 wnd 65535 ts 1000/7000000"
        t << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"


def test_replica_that_was_late_is_continued_when_the_primary_has_no_more_either() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(100, flags="F.")
        t.effects.clear()
        t >> answer()
        t.effects.clear()
        t >> Progress(1, client_seq(0), False) << confirmed(0, 5000, established=False)
        assert not t.side.numbers[1].inward.late


def test_handshake_that_the_tap_lost_is_completed_by_the_primary() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> Progress(1, client_seq(0), False) << confirmed(0, 5000, established=False)
        t >> Progress(1, client_seq(0), True) << "kernel [.] 0 ack 0 wnd 501 ts 1000/7000000" << confirmed(0, 5000)


def test_replica_that_missed_the_ack_gets_it_again_when_it_repeats_its_syn_ack() -> None:
    with Shadowing() as t:
        t >> answer() << SILENT << "kernel [.] 0 ack 0 wnd 500 ts 1001/7000000"


def test_replica_that_has_begun_anew_is_translated_anew() -> None:
    """Its listener was restarted between two SYNs, or it sent a SYN cookie of another minute."""
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        t >> After(0.021) << "query"
        t >> server(8999, ack=0, flags="S.", wnd=6000, options=granted(3, OWN_TS))
        t << SILENT << Opened(1, True, client_seq(6000))
        assert t.side.numbers[1].mapping.own.seq(0) == ISS_OWN + 9001


def test_full_table_is_refused_with_the_reason() -> None:
    with ShadowTranscript(max_connections=0) as t:
        t >> opening() << Opened(1, False, 0, "the backup's table is full")


def test_port_reuse_resets_the_old_connection_and_opens_the_new_one() -> None:
    with Shadowing() as t:
        t >> opening(2, irs=IRS + 300, iss=ISS + 300)
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "kernel [S] 299 wnd 64240"
        assert list(t.side.numbers) == [2]


def test_port_reuse_takes_the_old_connections_place_in_a_full_table() -> None:
    with Shadowing(max_connections=1) as t:
        t >> opening(2, irs=IRS + 300, iss=ISS + 300)
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "kernel [S] 299 wnd 64240"
        assert list(t.side.numbers) == [2]


def test_opening_that_was_overtaken_by_a_later_one_is_ignored() -> None:
    with Shadowing() as t:
        t >> opening(2, irs=IRS + 300, iss=ISS + 300)
        t << "kernel [R.] 0 ack 0 wnd 500 ts 1001/7000000" << "kernel [S] 299 wnd 64240"
        t >> opening(1)
        assert list(t.side.numbers) == [2]


def test_a_client_that_may_send_more_than_our_interface_takes_is_not_shadowed() -> None:
    """A primary of an earlier version does not hold its clients to our MTU."""
    with ShadowTranscript() as t:
        t.side.openings.fit_host(1360)
        (
            t
            >> opening()
            << Opened(1, False, 0, "the primary tells its client an MSS of 1460, and the backup's interface takes 1360")
        )
        assert not t.side.flows
        t >> opening(mss=1360) << "kernel [S] -1 wnd 64240"


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_what_we_build_for_a_client_fits_into_our_own_mtu(late: bool) -> None:
    with ShadowTranscript() as t:
        if not late:
            t.side.openings.fit_host(1360)
        t >> opening(mss=1360) << "kernel [S] -1 wnd 64240"
        t >> answer() << SILENT << Opened(1, True, client_seq(5000))
        if late:
            t.side.openings.fit_host(1360)
        for given in (client(0, ack=0, wnd=20_000), server(0, 2000, ack=0, wnd=1000)):
            t.feed(given)
            t.drain()
        t.effects.clear()
        t.feed("takeover")
        sizes = [len(effect.packet) for effect in t.out.effects if isinstance(effect, Inject) and not effect.inward]
        assert sizes == [1400, 40 + 12 + 2000 - (1360 - 12)]
        t.out.effects.clear()
