"""The ACK gate: nothing the backup lacks is acknowledged, and whatever was held back is said later."""

from __future__ import annotations

import pytest

from nfq_failover.core.events import PacketQueued, Queue, Verdict
from nfq_failover.core.gate.ack_gate import AckGate
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.own_tcp import OwnTcp
from nfq_failover.wire.records import Confirm, EndKind, Opened, Progress
from nfq_failover.wire.segment import Segment
from tests.support.gate import HELD, TS, Gated, ack
from tests.support.transcript import (
    FLOW,
    ISS,
    After,
    Copy,
    GateTranscript,
    RecordingOutbox,
    Sent,
    asked,
    client,
    client_seq,
    confirmed,
    describe,
    granted,
    opening,
    replica_end,
    server,
    syn,
    syn_ack,
)


def test_ack_of_what_the_backup_has_passes_untouched() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"


def test_pure_ack_waits_and_is_sent_newly_built() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        (
            t
            >> server(0, 200, ack=1000, wnd=9750, ts=(2_000_020, 1_020))
            << ("pass [.] 0:200 ack 0 wnd 10000 ts 2000020/1020")
        )
        t >> confirmed(1000, 40000)
        t << "client [.] 200 ack 1000 wnd 9750 ts 2000020/1020"
        t >> After(0.1)


def test_release_goes_as_far_as_the_backup_is() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> ack(3000) << HELD
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> confirmed(2000, 40000) << "client [.] 0 ack 2000 wnd 9500 ts 2000010/1010"
        t >> confirmed(3000, 40000) << "client [.] 0 ack 3000 wnd 9250 ts 2000010/1010"
        t >> After(0.1)


def test_several_held_acks_become_one() -> None:
    with Gated() as t:
        for at in (1000, 2000, 3000, 4000):
            t >> ack(at) << HELD
        t >> confirmed(5000, 40000) << "client [.] 0 ack 4000 wnd 9000 ts 2000010/1010"


def test_confirmations_that_overtake_each_other_do_no_harm() -> None:
    with Gated() as t:
        t >> ack(2000) << HELD
        t >> confirmed(2000, 40000) << "client [.] 0 ack 2000 wnd 9500 ts 2000010/1010"
        t >> confirmed(1000, 39000)
        t >> ack(2000) << "pass"


def test_unconfirmed_bytes_are_asked_for_until_the_backup_answers() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> After(0.003) << Progress(1, client_seq(1000), True)
        t >> After(0.007) << Progress(1, client_seq(1000), True)
        t >> After(0.013) << Progress(1, client_seq(1000), True)
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> After(0.05)


def test_data_goes_at_once_with_its_ack_clamped_and_the_rest_follows() -> None:
    with Gated() as t:
        t >> confirmed(400, 40000)
        t >> server(0, 100, ack=1000, wnd=9750, ts=TS)
        t << "pass [.] 0:100 ack 400 wnd 9900 ts 2000010/1010"
        t >> confirmed(1000, 40000)  # the next segment may take it along, for a moment
        t >> After(0.004) << "client [.] 100 ack 1000 wnd 9750 ts 2000010/1010"
        t >> After(0.1)


def test_owed_acknowledgement_rides_on_the_next_segment() -> None:
    with Gated() as t:
        t >> server(0, 100, ack=1000, wnd=9750, ts=TS)
        t << "pass [.] 0:100 ack 0 wnd 10000 ts 2000010/1010"
        t >> confirmed(1000, 40000)
        t >> server(100, 100, ack=1000, wnd=9750, ts=TS) << "pass"
        t >> After(0.1)


def test_owed_acknowledgement_is_not_forgotten_when_the_timer_was_set_for_an_earlier_one() -> None:
    with Gated() as t:
        t >> server(0, 100, ack=1000, wnd=9750, ts=TS) << "pass [.] 0:100 ack 0 wnd 10000 ts 2000010/1010"
        t.now += 0.001
        t >> confirmed(1000, 40000)
        t >> server(100, 100, ack=1000, wnd=9750, ts=TS) << "pass"
        t.now += 0.001
        t >> server(200, 100, ack=2000, wnd=9500, ts=TS) << "pass [.] 200:300 ack 1000 wnd 9750 ts 2000010/1010"
        t >> confirmed(2000, 40000)
        t >> After(0.0015)
        t >> After(0.003) << "client [.] 300 ack 2000 wnd 9500 ts 2000010/1010"
        t >> After(0.1)


def test_owed_acknowledgement_of_two_segments_does_not_wait() -> None:
    with Gated() as t:
        t >> server(0, 100, ack=4000, wnd=9000, ts=TS)
        t << "pass [.] 0:100 ack 0 wnd 10000 ts 2000010/1010"
        t >> confirmed(4000, 40000) << "client [.] 100 ack 4000 wnd 9000 ts 2000010/1010"


def test_data_with_a_held_ack_takes_the_confirmed_part_along() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(500, 40000) << "client [.] 0 ack 500 wnd 9875 ts 2000010/1010"
        t >> server(0, 100, ack=1000, wnd=9750, ts=TS)
        t << "pass [.] 0:100 ack 500 wnd 9875 ts 2000010/1010"
        t >> confirmed(1000, 40000) << "client [.] 100 ack 1000 wnd 9750 ts 2000010/1010"


def test_ack_covered_by_data_that_went_out_is_not_sent_again() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> confirmed(1000, 40000) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> ack(1000) << "pass"
        t >> confirmed(2000, 40000)


@pytest.mark.parametrize(("flags", "text"), [("F.", "[F.]"), ("R.", "[R.]")])
def test_segments_that_end_the_connection_are_clamped_too(flags: str, text: str) -> None:
    with Gated() as t:
        kind = EndKind.FIN if flags == "F." else EndKind.RST
        t >> replica_end(0, kind) << asked(0, EndKind.OPEN)
        t >> server(0, ack=1000, wnd=9750, ts=TS, flags=flags)
        t << f"pass {text} 0 ack 0 wnd 10000 ts 2000010/1010"
        while t.effects:
            t.effects.popleft()  # the closing record is another test's affair


@pytest.mark.parametrize(("start", "ack", "flags"), [(1000, None, "R"), (0, None, "R"), (-5000, 5001, "R.")])
def test_refusing_what_came_instead_of_the_last_ack_is_no_end(start: int, ack: int | None, flags: str) -> None:
    """RFC 9293 section 3.10.7.1: a wrong ACK, any after the client's RST, another SYN. It is there still."""
    with GateTranscript() as t:
        t >> syn() << "pass"
        t >> syn_ack() << "drop syn-ack-held" << opening()
        t >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
        t >> server(start, ack=ack, wnd=0, ts=None, flags=flags) << "pass"
        assert t.side.flows[FLOW].state is Gate.PROTECTED
        assert t.side.flows[FLOW].end is None


def test_bare_reset_acknowledges_nothing_and_passes() -> None:
    with Gated() as t:
        t >> replica_end(0, EndKind.RST) << asked(0, EndKind.OPEN)
        t >> server(0, ack=None, flags="R") << "pass"
        assert "reset by the server" in str(t.effects.popleft())


def test_selective_acknowledgements_wait_for_the_same_ranges() -> None:
    with Gated() as t:
        t >> ack(0, sack=((2000, 3000),)) << HELD
        t >> confirmed(0, 40000, (2000, 3000))
        t << "client [.] 0 ack 0 wnd 10000 sack 2000-3000 ts 2000010/1010"


def test_selective_acknowledgements_are_clipped_to_what_the_backup_has() -> None:
    with Gated() as t:
        t >> confirmed(0, 40000, (2000, 2500), (5000, 7000))
        t >> server(0, 50, ack=0, wnd=10000, ts=TS, sack=((2000, 3000), (5500, 6000), (9000, 9500)))
        t << "pass [.] 0:50 ack 0 wnd 10000 sack 2000-2500, 5500-6000 ts 2000010/1010"


def test_selective_acknowledgement_alone_does_not_hold_an_ack_for_ever() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000, sack=((2000, 3000),)) << HELD
        t >> After(0.003) << "client [.] 0 ack 1000 wnd 9750 ts 2000010/1010"
        t >> After(0.1)


def test_fin_counts_as_a_byte() -> None:
    with Gated() as t:
        t >> confirmed(500, 40000)
        t >> ack(501, start=0) << HELD  # 500 bytes and the FIN
        t >> confirmed(501, 40000) << "client [.] 0 ack 501 wnd 9875 ts 2000010/1010"  # 9874.75: never left of 40000


def test_duplicate_acks_of_the_kernel_survive_but_do_not_multiply() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        for _ in range(3):
            t >> ack(1000, sack=((2000, 3000),)) << HELD
        t >> confirmed(1000, 40000, (2000, 3000))
        for _ in range(3):
            t << "client [.] 0 ack 1000 wnd 9750 sack 2000-3000 ts 2000010/1010"
        t >> confirmed(1000, 40000, (2000, 3000))


def test_super_segment_is_left_to_the_kernel_to_seal() -> None:
    with Gated() as t:
        t >> server(0, 4000, ack=1000, wnd=9750, ts=TS, gso=True)
        t << "pass [.] 0:4000 ack 0 wnd 10000 ts 2000010/1010 UNSEALED"
        t >> confirmed(1000, 40000)
        t >> After(0.004) << "client [.] 4000 ack 1000 wnd 9750 ts 2000010/1010"


def test_without_timestamps_and_scale_the_built_ack_has_none() -> None:
    with Gated(granted(None, None, False), edge=60000, wscale=None) as t:
        t >> server(0, ack=1000, wnd=7000) << HELD
        t >> confirmed(1000, 60000) << "client [.] 0 ack 1000 wnd 59000"


def test_going_unprotected_says_everything_that_was_held() -> None:
    with Gated() as t:
        t >> ack(1000) << HELD
        t >> ack(2000) << HELD
        t.side.stop_protecting("the backup is silent, and its time to take over has passed", t.now)
        t.drain()
        t << "client [.] 0 ack 2000 wnd 9500 ts 2000010/1010"
        assert (t.gate.state, t.gate.reason[:22]) == (Gate.UNPROTECTED, "the backup is silent, ")
        t >> ack(3000) << "pass"
        t >> confirmed(1000, 40000)


def test_going_unprotected_with_nothing_held_says_nothing() -> None:
    with Gated() as t:
        t >> confirmed(1000, 40000)
        t >> ack(1000) << "pass"
        t.side.stop_protecting("the backup has restarted", t.now)
        t.drain()


def test_record_of_an_unknown_connection_is_ignored() -> None:
    with Gated() as t:
        t >> Confirm(77, 1, 1)
        t >> Opened(77, True, 1)


def test_copies_with_a_wrong_checksum_are_not_kept() -> None:
    with Gated() as t:
        t >> Copy(client(0, 100, corrupt=True))
        t >> Copy(client(200, 100, corrupt=True, pending=True))
        assert t.gate.retained.inbound.size == 100
        assert t.out.counters["copy-bad-checksum"] == 1


class SentEdges:
    """Somebody who keeps the client's bytes, and is no connection of a table."""

    client_ended = False


def test_gate_stands_alone() -> None:
    out = RecordingOutbox()
    own = OwnTcp(opening(), 40000, 100.0)
    gate = AckGate(own, SentEdges())
    gate.shut()
    gate.accept_edge(40000)

    def send(number: int, sent: Sent) -> None:
        packet = sent.packet(ISS)
        seg = Segment(packet)
        gate.outbound(PacketQueued(Queue.OUT, number, packet), seg, own.learn(seg, 100.0), out, 100.0)

    def said() -> list[str]:
        effects = [e.accept if isinstance(e, Verdict) else describe(e.packet, ISS) for e in out.effects]  # type: ignore[union-attr]
        out.effects.clear()
        return [str(effect) for effect in effects]

    send(1, ack(1000))
    assert (said(), gate.waiting, gate.told_ack) == (["False"], True, 0)
    send(2, server(0, 100, ack=1000, wnd=9750, ts=TS))
    assert (said(), gate.told_ack) == (["True"], 0)
    assert gate.confirm(confirmed(1000, 40000))
    gate.release(out, 101.0)
    assert said() == ["[.] 100 ack 1000 wnd 9750 ts 2000010/1010"]
    assert not gate.waiting
    send(3, ack(3000, start=100))
    gate.open()
    gate.let_go(out)
    assert said() == ["False", "[.] 100 ack 3000 wnd 9250 ts 2000010/1010"]
