"""A backup that takes less than the primary is told, though no replica is late and nothing is lost."""

from __future__ import annotations

from nfq_failover.core.concerns import Concern, Concerns, Weight
from nfq_failover.core.gate.brake import BRAKED_S, CODE, LASTING_S, LEAST_BYTES, Brake
from tests.support.gate import TS, Digesting
from tests.support.transcript import After, confirmed, server


class Braking:
    """A brake, second by second."""

    def __init__(self) -> None:
        self.concerns = Concerns(lambda *_, **__: None)
        self.brake = Brake(self)  # type: ignore[arg-type]
        self.now = 100.0

    def seconds(self, count: int, size: int = 2 << 20, wait_s: float = 0.02) -> None:
        """Seconds in each of which clients send so much, and wait so long for each acknowledgement."""
        for _ in range(count):
            for _ in range(8):
                self.brake.confirmed(size // 8, wait_s)
            self.now += 1.0
            self.brake.look(self.now)

    @property
    def found(self) -> list[Concern]:
        return self.concerns.own


def test_backup_that_is_the_brake_is_told_and_degrades_the_pair_if_that_lasts() -> None:
    t = Braking()
    t.seconds(1)
    assert [(each.code, each.weight) for each in t.found] == [(CODE, Weight.WARNING)]
    assert "20 ms later" in t.found[0].what and "(17 Mbit/s)" in t.found[0].what and "link" in t.found[0].cure
    t.seconds(int(LASTING_S))
    assert [each.weight for each in t.found] == [Weight.DEGRADED]
    t.seconds(5, wait_s=0.0004)
    assert t.found == [] and not t.brake.calming


def test_backup_that_keeps_up_or_clients_that_send_little_are_no_concern() -> None:
    t = Braking()
    t.seconds(20, size=100 << 20, wait_s=BRAKED_S * 0.9)
    t.seconds(20, size=LEAST_BYTES // 10, wait_s=1.0)
    assert t.found == []


def test_wait_of_many_bytes_weighs_more_than_that_of_few() -> None:
    t = Braking()
    t.brake.confirmed(100, 5.0)
    t.seconds(1, wait_s=0.001)
    assert t.found == [] and 0.001 < t.brake.wait_s < 0.0014


def test_it_is_over_when_nobody_protects_any_more() -> None:
    t = Braking()
    t.seconds(1)
    t.brake.clear(t.now)
    assert t.found == [] and t.brake.wait_s == 0.0


def test_wait_is_that_of_the_acknowledgement_that_was_held() -> None:
    with Digesting() as t:
        for at in range(0, 3000, 1000):
            t >> server(100, ack=at + 1000, wnd=10_000, ts=TS) << "drop ack-held"
        t >> After(0.002)
        t.effects.clear()
        t >> confirmed(3000, 43_000)
        t.effects.clear()
        t >> After(2.0)
        t.effects.clear()
        assert abs(t.side.pace.brake.wait_s - 0.002) < 1e-6
