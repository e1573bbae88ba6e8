"""What a client says after an answer waits for a replica that has still to give this answer, and not for long."""

from __future__ import annotations

from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.order import PATIENCE_MIN_S, PATIENCE_S
from nfq_failover.wire.records import Data, Fed, FedSeen, HeardBefore, Missing, Opened, Progress
from tests.support.shadow import EDGE, SILENT, Shadowing, answer, from_client, replica
from tests.support.transcript import (
    FLOW,
    After,
    ShadowTranscript,
    client_bytes,
    client_seq,
    confirmed,
    opening,
    server_seq,
)

TS = "ts 1001/7000000"
HELD = "drop held-back"


def asked(**changes: object) -> Shadowing:
    """The client has asked with 8 bytes, was answered by the primary with one, and has said 100 more. The replica has
    not answered."""
    t = Shadowing(**changes)
    t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
    t >> replica(0, 0, ack=8) << SILENT
    t >> from_client(8, 100, ack=1) << HELD << confirmed(108, EDGE)
    return t


def waits(t: Shadowing, seconds: float) -> list[str]:
    """Time passes, as the deadlines say; what has come out for our TCP."""
    found: list[str] = []
    end = t.now + seconds
    while (due := t.side.poll_timeout()) is not None and due <= end:
        t >> After(max(due - t.now, 0.0) + 1e-6)
        found += [str(effect) for effect in t.effects if str(effect).startswith("kernel")]
        t.effects.clear()
    t.now = end
    return found


def test_input_waits_for_the_answer_and_its_log_for_nothing() -> None:
    with asked() as t:
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [P.] 8:108 ack 1 wnd 500 {TS}"
        t >> replica(1, 0, ack=108) << SILENT


def test_a_replica_that_has_answered_gets_input_at_once() -> None:
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> replica(0, 1, ack=8) << SILENT
        t >> from_client(8, 100, ack=1) << f"pass [.] 8:108 ack 1 wnd 500 {TS}" << confirmed(108, EDGE)


def test_order_is_kept_over_many_answers() -> None:
    with asked() as t:
        t >> from_client(108, 50, ack=3) << HELD << confirmed(158, EDGE)
        t >> from_client(158, 50, ack=3) << HELD << confirmed(208, EDGE)
        t >> from_client(208, 0, ack=4) << HELD
        t >> replica(0, 2, ack=8) << SILENT << f"kernel [P.] 8:108 ack 2 wnd 501 {TS}"
        t >> replica(2, 1, ack=108) << SILENT << f"kernel [P.] 108:208 ack 3 wnd 501 {TS}"
        t >> replica(3, 1, ack=208) << SILENT << f"kernel [.] 208 ack 4 wnd 500 {TS}"


def test_what_is_sent_again_is_held_back_too() -> None:
    with asked() as t:
        t >> from_client(8, 100, ack=1) << HELD << confirmed(108, EDGE)
        assert waits(t, 0.3) == []  # nor is it given to a TCP that seems to lack it
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [P.] 8:108 ack 1 wnd 500 {TS}"


def test_what_the_client_has_sent_before_is_not_held_back() -> None:
    """Sent again it acknowledges an answer that may depend on it."""
    with Shadowing() as t:
        t >> from_client(8, 0, ack=1) << f"pass [.] 8 ack 0 wnd 501 {TS}"  # the tap has lost what was asked
        t >> from_client(0, 8, ack=2) << f"pass [.] 0:8 ack 0 wnd 501 {TS}" << confirmed(8, EDGE)


def test_what_was_overtaken_on_its_way_is_held_back() -> None:
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> replica(0, 0, ack=8) << SILENT
        t >> from_client(108, 100, ack=2) << HELD << confirmed(8, EDGE, (108, 208))
        t >> from_client(8, 100, ack=1) << HELD << confirmed(208, EDGE)
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [P.] 8:108 ack 1 wnd 501 {TS}"
        t >> replica(1, 1, ack=108) << SILENT << f"kernel [P.] 108:208 ack 2 wnd 500 {TS}"


def test_of_a_segment_that_is_partly_new_our_tcp_gets_the_rest() -> None:
    with Shadowing() as t:
        t >> from_client(8, 0, ack=1) << f"pass [.] 8 ack 0 wnd 501 {TS}"
        t >> from_client(0, 100, ack=2) << HELD << f"kernel [.] 0:8 ack 0 wnd 501 {TS}" << confirmed(100, EDGE)
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [.] 8 ack 1 wnd 501 {TS}"
        t >> replica(1, 1, ack=8) << SILENT << f"kernel [P.] 8:100 ack 2 wnd 500 {TS}"


def test_an_end_is_held_back() -> None:
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> from_client(8, 0, ack=1, flags="F.") << HELD << confirmed(9, EDGE)
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [FP.] 8 ack 1 wnd 500 {TS}"


def test_what_the_primary_sends_is_held_back_if_it_says_so() -> None:
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> replica(0, 0, ack=8) << SILENT
        t >> Progress(1, client_seq(108), True) << confirmed(8, EDGE)
        t >> After(0.0021) << Missing(1, client_seq(8), client_seq(108))
        t >> HeardBefore(1, client_seq(8), server_seq(1))
        t >> Data(1, client_seq(8), client_bytes(8, 100)) << confirmed(108, EDGE)
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [P.] 8:108 ack 0 wnd 500 {TS}"


def test_a_replica_that_has_still_to_be_opened_greets_before_it_is_spoken_to() -> None:
    with ShadowTranscript() as t:
        t >> opening() << "kernel [S] -1 wnd 64240"
        t >> from_client(0, 100, ack=20) << "drop replica-opening"
        t >> answer() << SILENT << "kernel [.] 0 ack 0 wnd 502 ts 1000/7000000" << Opened(1, True, client_seq(5000))
        t << confirmed(100, 5000)
        t >> After(0.061)
        t.effects.clear()  # whether our TCP has forgotten the connection
        t >> replica(0, 20) << SILENT << "kernel [P.] 0:100 ack 20 wnd 501 ts 1000/7000000" << confirmed(100, EDGE)


def test_a_replica_that_says_less_gets_everything_in_bounded_time() -> None:
    with Shadowing() as t:
        began, told = t.now, 0
        for turn in range(20):
            t >> from_client(turn * 10, 10, ack=turn * 5 + 1)
            t.effects.clear()
            due = t.now
            while t.shadow.inward.order.edge <= turn * 10:
                assert t.now - due < PATIENCE_S + 0.001
                told += waits(t, 0.005) != []
            t >> replica(turn * 5, 5, ack=turn * 10 + 10)  # always one byte behind what the client has
            t.effects.clear()
        assert told
        assert t.now - began < 2 * PATIENCE_S + 0.1
        assert t.shadow.state is Shadow.SHADOW


def test_a_slow_replica_that_comes_nearer_all_the_time_is_waited_for() -> None:
    """A server that has still something to say when it hears of its client's end may leave that unsaid."""
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> replica(0, 0, ack=8) << SILENT
        t >> from_client(8, 0, ack=50, flags="F.") << HELD << confirmed(9, EDGE)
        for at in range(0, 40, 10):
            assert waits(t, 0.8 * PATIENCE_S) == []
            t >> replica(at, 10, ack=8)
            assert not [str(effect) for effect in t.effects if "F" in str(effect)]
            t.effects.clear()
        t >> replica(40, 10, ack=8) << SILENT << f"kernel [FP.] 8 ack 50 wnd 500 {TS}"
        assert not t.out.counters["held-back-in-vain"]


def test_a_replica_that_repeats_itself_comes_no_nearer() -> None:
    with Shadowing() as t:
        t >> from_client(0, 8) << f"pass [.] 0:8 ack 0 wnd 500 {TS}" << confirmed(8, EDGE)
        t >> replica(0, 10, ack=8) << SILENT
        t >> from_client(8, 100, ack=50) << HELD << f"kernel [.] 8 ack 10 wnd 501 {TS}" << confirmed(108, EDGE)
        assert waits(t, 0.8 * PATIENCE_S) == []
        t >> replica(0, 10, ack=8)
        t.effects.clear()
        assert any("8:108" in line for line in waits(t, 0.2 * PATIENCE_S + 0.001))


def test_nothing_more_is_held_back_until_the_replica_has_caught_up() -> None:
    with asked() as t:
        assert waits(t, PATIENCE_S + 0.001) == [f"kernel [P.] 8:108 ack 0 wnd 501 {TS}"]
        assert t.out.counters["held-back-in-vain"] == 1
        t >> from_client(108, 100, ack=2) << f"pass [.] 108:208 ack 0 wnd 501 {TS}" << confirmed(208, EDGE)
        t >> replica(0, 2, ack=208) << SILENT << f"kernel [.] 208 ack 2 wnd 500 {TS}"
        t >> from_client(208, 100, ack=3) << HELD << confirmed(308, EDGE)
        assert waits(t, PATIENCE_S / 2 + 0.001) == [f"kernel [P.] 208:308 ack 2 wnd 501 {TS}"]


def test_waiting_in_vain_ends() -> None:
    with Shadowing() as t:
        order, times = t.shadow.inward.order, 0
        while True:
            order.heard(0, 1, 0)
            if order.edge:
                break
            until = order.holds_until(0.0)
            assert PATIENCE_MIN_S <= until <= PATIENCE_S / 2**times
            order.in_vain()
            order.replica_is_at(0, 0, 0.0)
            times += 1
        assert times == 6


def test_a_replica_whose_output_is_of_no_use_gets_what_was_held_back() -> None:
    with asked() as t:
        t >> Fed(1, "diverged") << f"kernel [.] 8 ack 0 wnd 65535 {TS}"
        t << f"kernel [P.] 8:108 ack 0 wnd 65535 {TS}" << FedSeen(1)
        t >> from_client(108, 100, ack=1) << f"pass [.] 108:208 ack 0 wnd 65535 {TS}" << confirmed(208, EDGE)


def test_after_a_takeover_it_waits_for_the_answer_and_not_longer() -> None:
    for answers in (True, False):
        t = asked()
        t >> After(PATIENCE_S - 0.1)
        t.effects.clear()
        t >> "takeover"
        t.effects.clear()
        t >> from_client(108, 100, ack=1)  # the client has more to say, and goes on saying it
        t.effects.clear()
        if answers:
            t >> replica(0, 1, ack=8)
            assert f"kernel [P.] 8:208 ack 1 wnd 500 {TS}" in [str(effect) for effect in t.effects]
        else:
            assert f"kernel [P.] 8:208 ack 0 wnd 501 {TS}" in waits(t, 0.101)
        assert t.side.flows[FLOW].state is Shadow.ACTIVE


def test_a_clients_reset_waits_for_what_is_held_back() -> None:
    with asked() as t:
        t >> from_client(108, 0, ack=1, flags="R.") << "drop rst-held"
        t >> replica(0, 1, ack=8) << SILENT << f"kernel [P.] 8:108 ack 1 wnd 500 {TS}"
        t >> replica(1, 0, ack=108) << SILENT << f"kernel [R.] 108 ack 1 wnd 500 {TS}"
