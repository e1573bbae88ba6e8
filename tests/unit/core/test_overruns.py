"""A queue that overruns is a concern until some seconds after the last packet that was lost."""

from __future__ import annotations

from nfq_failover.core.concerns import Weight
from nfq_failover.core.events import Queue, QueueOverrun
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.overruns import LASTS_S, Overruns


def test_overrun_is_told_for_as_long_as_it_lasts() -> None:
    out = Outbox()
    overruns = Overruns(out)
    for second in range(4):
        overruns.found(QueueOverrun(Queue.IN, 100), 50.0 + second)
    (concern,) = out.concerns.own
    assert (concern.code, concern.weight) == ("queue-overrun-in", Weight.DEGRADED)
    assert "from clients" in concern.what and "400 were lost within 4 s" in concern.what
    overruns.on_timer(53.0 + LASTS_S - 0.1)
    assert out.concerns.own
    overruns.on_timer(53.0 + LASTS_S)
    assert not out.concerns.own
    assert out.counters["queue-overrun-in"] == 400


def test_each_queue_has_its_own_concern_and_begins_to_count_anew() -> None:
    out = Outbox()
    overruns = Overruns(out)
    overruns.found(QueueOverrun(Queue.OUT, 7), 0.0)
    overruns.found(QueueOverrun(Queue.IN, 1), 8.0)
    assert [each.code for each in out.concerns.own] == ["queue-overrun-out", "queue-overrun-in"]
    overruns.on_timer(LASTS_S)
    assert [each.code for each in out.concerns.own] == ["queue-overrun-in"]
    overruns.found(QueueOverrun(Queue.OUT, 2), 12.0)
    assert "2 were lost within 1 s" in next(each.what for each in out.concerns.own if each.code == "queue-overrun-out")
