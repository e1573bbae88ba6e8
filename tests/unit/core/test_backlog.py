"""What waits in this host's own queues is neither lost nor unanswered."""

from __future__ import annotations

from nfq_failover.core.backlog import Backlog
from nfq_failover.core.events import PacketsWait, Queue
from nfq_failover.core.shadow.order import PATIENCE_S
from nfq_failover.wire.records import AckAsked, Missing, Progress
from tests.support.shadow import EDGE, SILENT, Shadowing, from_client, replica
from tests.support.transcript import After, client_seq, confirmed, server_seq
from tests.unit.core.shadow.test_holding import asked, waits

TS = "ts 1001/7000000"


def read_until(t: Shadowing, queue: Queue, since: float | None) -> None:
    t.side.backlog.found(PacketsWait(queue, since))


def test_a_queue_is_read_up_to_now_unless_it_is_known_to_be_full() -> None:
    backlog = Backlog()
    assert backlog.read_until(Queue.IN, 7.0) == 7.0
    backlog.found(PacketsWait(Queue.IN, 5.0))
    assert (backlog.read_until(Queue.IN, 7.0), backlog.read_until(Queue.OUT, 7.0)) == (5.0, 7.0)
    backlog.found(PacketsWait(Queue.IN, 7.5))
    assert backlog.read_until(Queue.IN, 7.0) == 7.0
    backlog.found(PacketsWait(Queue.IN, None))
    assert backlog.read_until(Queue.IN, 8.0) == 8.0


def test_a_tail_that_may_wait_in_our_queue_is_not_fetched() -> None:
    with Shadowing() as t:
        read_until(t, Queue.IN, t.now - 0.01)
        t >> Progress(1, client_seq(700), True) << confirmed(0, EDGE)
        for _ in range(20):
            t >> After(0.051)
        read_until(t, Queue.IN, t.now - 0.5)
        t >> Progress(1, client_seq(900), True) << confirmed(0, EDGE)
        t >> After(0.051) << Missing(1, client_seq(0), client_seq(700))  # only that should have been in it


def test_a_tail_that_the_queue_has_not_brought_is_fetched() -> None:
    with Shadowing() as t:
        read_until(t, Queue.IN, t.now)
        t >> Progress(1, client_seq(700), True) << confirmed(0, EDGE)
        t >> After(0.051)
        read_until(t, Queue.IN, None)
        t >> After(0.051) << Missing(1, client_seq(0), client_seq(700))


def test_what_has_come_after_a_wait_in_our_queue_does_not_make_the_tap_a_late_one() -> None:
    with Shadowing() as t:
        read_until(t, Queue.IN, t.now)
        t >> Progress(1, client_seq(700), True) << confirmed(0, EDGE)
        t >> After(0.5)
        t >> from_client(0, 700) << f"pass [.] 0:700 ack 0 wnd 500 {TS}" << confirmed(700, EDGE)
        assert t.side.repair.pace.patience_s < 0.003
        t >> replica(ack=700) << SILENT


def test_bytes_whose_acknowledgement_may_wait_in_our_queue_are_not_delivered_again() -> None:
    with Shadowing() as t:
        t >> from_client(0, 1000) << f"pass [.] 0:1000 ack 0 wnd 500 {TS}" << confirmed(1000, EDGE)
        read_until(t, Queue.OUT, t.now)
        for _ in range(20):
            t >> After(0.061)
        for _ in range(3):  # it said so before it was given anything
            t >> replica() << SILENT
        read_until(t, Queue.OUT, None)
        t >> After(0.061) << f"kernel [P.] 0:1000 ack 0 wnd 500 {TS}"
        t >> replica(ack=1000) << SILENT


def test_an_answer_that_may_wait_in_our_queue_is_waited_for() -> None:
    with asked() as t:
        read_until(t, Queue.OUT, t.now)
        assert not waits(t, 3 * PATIENCE_S)
        read_until(t, Queue.OUT, None)
        assert waits(t, 0.05)[0].startswith("kernel [P.] 8:108 ack 0")


def test_a_client_whose_acknowledgement_may_wait_in_our_queue_is_not_asked_for_it() -> None:
    with Shadowing() as t:
        t >> replica(0, 100) << SILENT
        read_until(t, Queue.IN, t.now)
        t >> After(0.6)
        t >> replica(0, 100) << SILENT
        read_until(t, Queue.IN, None)
        t >> replica(0, 100) << SILENT << AckAsked(1, server_seq(0))
