"""Seeded schedules of loss, duplication, delays, restarts and recordings: the two ends always come together.

In the first phase the network does all of that at once, to the handshake as to the traffic. In the second it is
well-behaved, but for datagrams that are still on their way. Two promises: (safety) no record counts twice, none of an
earlier life counts after one of a later life; (liveness) soon after the last late datagram both ends are in one
session, hear each other, and stay there.
"""

from __future__ import annotations

import heapq
from random import Random

import pytest

from nfq_failover.core.pair.session import Session
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.records import Closed
from tests.support.session_pair import make, refusal

STEP_S = 0.005
CHAOS_S = 6.0
LATE_S = 3.0
CONVERGE_S = 0.4
CALM_S = 1.0
BEAT_S = 0.05
OTHER = {"a": "b", "b": "a"}


class SessionWorld:
    """Two hosts and the network between them."""

    def __init__(self, seed: int, recordings: bool) -> None:
        self.rng = Random(seed)
        self.recordings = recordings
        self.now = 0.0
        self.lives = {"a": 0, "b": 0}
        self.ends: dict[str, Session] = {}
        self.network: list[tuple[float, int, str, bytes]] = []
        self.recorded: dict[str, list[bytes]] = {"a": [], "b": []}
        self.number = 0
        self.life_of: dict[int, int] = {}  # of a record, by its number: the sender's life
        self.accepted: set[int] = set()
        self.latest_life = {"a": 0, "b": 0}
        self.heard_at = {"a": -1.0, "b": -1.0}
        self.starts = 0
        for name in OTHER:
            self.boot(name)

    def boot(self, name: str) -> None:
        self.lives[name] += 1
        self.ends[name] = make(name, OTHER[name], life=self.rng.getrandbits(60))

    def send(self, to: str, data: bytes) -> None:
        rng = self.rng
        delays = [rng.uniform(0.0001, 0.002)]
        if self.now < CHAOS_S:
            kind = rng.random()
            if kind < 0.3:
                delays = []
            elif kind < 0.45:
                delays.append(rng.uniform(0, LATE_S))
            elif kind < 0.65:
                delays = [rng.uniform(0, LATE_S)]
        self.recorded[to].append(data)
        for delay in delays:
            self.arrive(self.now + delay, to, data)

    def arrive(self, at: float, to: str, data: bytes) -> None:
        self.number += 1
        heapq.heappush(self.network, (at, self.number, to, data))

    def handshake(self, name: str) -> None:
        while (data := self.ends[name].poll_datagram()) is not None:
            self.send(OTHER[name], data)

    def deliver(self, name: str, data: bytes) -> None:
        try:
            received = self.ends[name].receive(data, self.now)
        except MalformedDatagram:
            received = None
        self.handshake(name)
        if received is None:
            return
        self.starts += received.session_started
        for record in received.records:
            assert isinstance(record, Closed)
            assert record.conn not in self.accepted, "a record counted twice"
            self.accepted.add(record.conn)
            life = self.life_of[record.conn]
            assert life >= self.latest_life[name], "a record of a life that was over"
            self.latest_life[name] = life
            self.heard_at[name] = self.now

    def mischief(self, name: str) -> None:
        if self.rng.random() < 0.002:
            self.boot(name)
        if self.recordings and self.recorded[name] and self.rng.random() < 0.03:
            self.arrive(self.now, name, self.rng.choice(self.recorded[name]))

    def run(self, until: float) -> None:
        while self.now < until:
            while self.network and self.network[0][0] <= self.now:
                _, _, name, data = heapq.heappop(self.network)
                self.deliver(name, data)
            for name, end in list(self.ends.items()):
                if self.now < CHAOS_S:
                    self.mischief(name)
                    end = self.ends[name]
                end.on_timer(self.now)
                self.handshake(name)
                if end.established and self.now % BEAT_S < STEP_S:
                    self.number += 1
                    self.life_of[self.number] = self.lives[name]
                    for data in end.seal([Closed(self.number)], 1):
                        self.send(OTHER[name], data)
            self.now += STEP_S


@pytest.mark.parametrize("recordings", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_they_come_together_and_stay(seed: int, recordings: bool) -> None:
    world = SessionWorld(seed, recordings)
    world.run(CHAOS_S / 2)
    world.boot(world.rng.choice("ab"))  # at least one restart in each schedule
    world.run(CHAOS_S + LATE_S + CONVERGE_S)
    a, b = world.ends["a"], world.ends["b"]
    assert a.established
    assert a.session_id == b.session_id
    session, starts = a.session_id, world.starts
    world.run(world.now + CALM_S)
    assert world.starts == starts
    assert a.session_id == b.session_id == session
    for name in OTHER:
        assert world.now - world.heard_at[name] < 3 * BEAT_S


@pytest.mark.parametrize("seed", range(10))
def test_recordings_alone_never_move_a_living_session(seed: int) -> None:
    """All that was ever sent, of many lives, again and again in any order, while two living ends talk."""
    world = SessionWorld(seed, recordings=True)
    world.run(CHAOS_S + LATE_S + CONVERGE_S)
    session = world.ends["a"].session_id
    assert session == world.ends["b"].session_id
    for _ in range(2000):
        name = world.rng.choice("ab")
        data = world.rng.choice(world.recorded[name])
        refusal(world.ends[name], data, world.now)
        while (answer := world.ends[name].poll_datagram()) is not None:
            refusal(world.ends[OTHER[name]], answer, world.now)
            while world.ends[OTHER[name]].poll_datagram() is not None:
                pass
    assert session == world.ends["a"].session_id == world.ends["b"].session_id
