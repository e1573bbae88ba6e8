"""Heartbeats: what the sender process is told and says, and when a peer counts as lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nfq_failover.core.pair.monitor import PeerMonitor
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.heartbeat import LINK_HEADERS, HeartbeatBody, HeartbeatTemplate, datagram_bytes
from tests.support import configured
from tests.support.session_pair import agreed_pair, refusal, template

BODY = HeartbeatBody(1, 2, 0, 4, 5, 0, 1000, 0, 250)


def monitor(interval_ms: int = 50, count: int = 3, stall_ms: int = 300) -> PeerMonitor:
    return PeerMonitor(
        configured.settings(heartbeat_interval_ms=interval_ms, heartbeat_count=count, loop_stall_ms=stall_ms)
    )


# ------------------------------------------------------------------------------------ what is said


def test_a_heartbeat_is_at_most_128_bytes_with_all_headers() -> None:
    data = template(agreed_pair().ends["a"]).datagram(2**64 - 1, 2**64 - 1, 2**30)
    assert LINK_HEADERS == 42
    assert len(data) + LINK_HEADERS == datagram_bytes() <= 128


def test_the_peer_reads_what_the_template_says() -> None:
    pair = agreed_pair()
    received = pair.ends["b"].receive(template(pair.ends["a"], epoch=12).datagram(1, 5000, 17), 0.0)
    assert received.epoch == 12
    assert received.heartbeat == HeartbeatBody(
        role=2,
        state=3,
        flags=1,
        stored_epoch=5,
        generation=7,
        loop_age_ms=17,
        sent_ms=5000,
        echo_ms=11,
        release_after_ms=2300,
    )


def test_a_hung_loop_saturates() -> None:
    pair = agreed_pair()
    received = pair.ends["b"].receive(template(pair.ends["a"]).datagram(1, 5000, 10**7), 0.0)
    assert received.heartbeat is not None
    assert received.heartbeat.loop_age_ms == 0xFFFF


def test_a_template_survives_the_way_to_the_sender_process() -> None:
    pair = agreed_pair()
    for end in pair.ends.values():
        known = template(end)
        assert HeartbeatTemplate.decode(known.encode()) == known


@pytest.mark.parametrize("size", [0, 1, 44, 45, 60, 77])
def test_half_a_template_is_refused(size: int) -> None:
    encoded = template(agreed_pair().ends["a"]).encode()
    assert size < len(encoded)
    with pytest.raises(MalformedDatagram):
        HeartbeatTemplate.decode(encoded[:size])


def test_a_new_template_goes_on_in_the_same_lane() -> None:
    """The sender process owns the counter of a session: it grows over changes of the template."""
    pair = agreed_pair()
    first, second = template(pair.ends["a"], epoch=1), template(pair.ends["a"], epoch=2)
    b = pair.ends["b"]
    assert b.receive(first.datagram(10, 1, 0), 0.0).epoch == 1
    assert b.receive(second.datagram(11, 2, 0), 0.0).epoch == 2
    assert refusal(b, first.datagram(9, 3, 0)) == "too-old"
    assert refusal(b, first.datagram(11, 3, 0)) == "replayed"


def test_a_template_of_an_earlier_session_is_refused() -> None:
    old, new = agreed_pair(), agreed_pair()
    new.ends["b"] = type(new.ends["b"])(new.ends["b"].settings, new.ends["b"].peer, lambda n: bytes(n))
    new.ends["b"].on_timer(1.0)
    new.exchange(1.0)
    assert new.agreed
    assert refusal(new.ends["b"], template(old.ends["a"]).datagram(1, 1, 0)) == "wrong-session"


# ------------------------------------------------------------------------------------ the failure detector


def test_a_peer_that_never_spoke_is_lost() -> None:
    m = monitor()
    assert m.lost(0.0)
    assert m.deadline() is None


def test_lost_after_the_detection_time_and_not_before() -> None:
    m = monitor()
    m.heard(BODY, 10.0)
    assert m.deadline() == pytest.approx(10.15)
    assert not m.lost(10.149)
    assert m.lost(10.151)
    m.heard(BODY, 10.16)
    assert not m.lost(10.3)


def test_a_new_session_counts_as_a_sign_of_life() -> None:
    m = monitor()
    m.heard(replace(BODY, echo_ms=9000), 10.0)
    m.reset(20.0)
    assert not m.lost(20.1)
    assert m.lost(20.2)
    assert m.heard_by_peer_at is None


@pytest.mark.parametrize(("loop_age_ms", "alive"), [(0, True), (299, True), (300, False), (0xFFFF, False)])
def test_a_punctual_heartbeat_of_a_hung_loop_is_no_sign_of_life(loop_age_ms: int, alive: bool) -> None:
    m = monitor()
    m.heard(BODY, 10.0)
    for step in range(1, 11):
        m.heard(replace(BODY, loop_age_ms=loop_age_ms), 10.0 + 0.05 * step)
    assert m.lost(10.5) is not alive
    assert m.last_heard == pytest.approx(10.5)
    assert m.last_alive == pytest.approx(10.5 if alive else 10.0)


def test_echo_says_which_of_our_heartbeats_arrived() -> None:
    m = monitor()
    m.heard(BODY, 10.0)
    assert m.heard_by_peer_at is None  # echo 0: it has heard nothing
    m.heard(replace(BODY, echo_ms=9950), 10.05)
    assert m.heard_by_peer_at == pytest.approx(9.95)
    m.heard(replace(BODY, echo_ms=9900), 10.1)
    assert m.heard_by_peer_at == pytest.approx(9.95)  # an earlier echo takes nothing back
    m.heard(replace(BODY, echo_ms=10100), 10.15)
    assert m.heard_by_peer_at == pytest.approx(10.1)


def test_an_echo_from_the_future_is_worth_no_more_than_now() -> None:
    m = monitor()
    m.heard(replace(BODY, echo_ms=2**60), 10.0)
    assert m.heard_by_peer_at == 10.0


def test_a_peer_that_hears_nothing_of_us_is_alive_but_proves_nothing() -> None:
    m = monitor()
    for step in range(100):
        m.heard(replace(BODY, echo_ms=9000), 10.0 + 0.05 * step)
    assert not m.lost(14.96)
    assert m.heard_by_peer_at == pytest.approx(9.0)


def test_silence_counts_only_while_we_are_awake() -> None:
    m = monitor()
    m.heard(BODY, 10.0)
    m.excuse(5.0, 15.1)
    assert not m.lost(15.1)
    assert m.deadline() == pytest.approx(15.15)
    m.excuse(50.0, 15.2)
    assert m.deadline() == pytest.approx(15.35)  # never into the future
    silent = monitor()
    silent.excuse(5.0, 15.0)
    assert silent.lost(15.0)


@pytest.mark.parametrize(("interval_ms", "bandwidth_bps"), [(10, 90400), (50, 18080), (1000, 904), (5000, 181)])
def test_statistics(interval_ms: int, bandwidth_bps: int) -> None:
    m = monitor(interval_ms=interval_ms)
    interval = interval_ms / 1000
    assert m.statistics(1.0).silent_ms is None
    now = 10.0
    for gap in (1, 1.02, 0.98, 1.3, 4, 1):  # in intervals; four of them: three heartbeats are missing
        m.heard(BODY, now)
        now += gap * interval
    m.heard(BODY, now)
    shown = m.statistics(now + 0.02)
    assert shown.received == 7
    assert shown.missed == 3
    assert shown.largest_gap_ms == pytest.approx(4 * interval_ms, abs=0.1)
    assert shown.silent_ms == pytest.approx(20.0, abs=0.1)
    assert shown.detection_ms == 3 * interval_ms
    assert shown.datagram_bytes == 113
    assert shown.bandwidth_bps == bandwidth_bps


# ------------------------------------------------------------------------------------ other words of the peer


def test_records_count_as_life_while_heartbeats_are_lost_but_not_for_long() -> None:
    """On a link that is full of clients' bytes three heartbeats are soon lost in a row, and not all records."""
    seen = monitor(interval_ms=50, count=3, stall_ms=300)
    seen.spoke(0.5)
    assert seen.lost(0.5), "there has been no heartbeat at all"
    seen.reset(1.0)
    seen.heard(replace(BODY, loop_age_ms=0), 1.0)
    at = 1.0
    while at < 1.44:
        at += 0.04
        seen.spoke(at)
        assert not seen.lost(at)
    seen.spoke(1.46)
    assert seen.lost(1.46), "a queue of old records must not hide that the peer is dead"
    assert seen.deadline() == pytest.approx(1.45)
    seen.heard(replace(BODY, loop_age_ms=0), 1.5)
    assert not seen.lost(1.6)
    assert seen.last_progress == 1.5


def test_records_of_a_peer_that_dies_do_not_put_off_its_detection() -> None:
    seen = monitor(interval_ms=50, count=3, stall_ms=300)
    seen.reset(1.0)
    seen.heard(replace(BODY, loop_age_ms=0), 1.05)
    seen.spoke(1.06)
    assert not seen.lost(1.2)
    assert seen.lost(1.22)


def test_what_was_proved_is_proved_by_heartbeats_alone() -> None:
    seen = monitor()
    seen.reset(1.0)
    seen.heard(replace(BODY, loop_age_ms=0, echo_ms=900), 1.0)
    seen.spoke(1.2)
    assert (seen.last_heard, seen.last_progress, seen.heard_by_peer_at) == (1.0, 1.0, 0.9)
