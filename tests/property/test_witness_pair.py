"""Two memberships, a witness and no fence: at most one of the two hosts is heard, at any moment.

The hosts' clocks run at different rates. Cuts, pauses, restarts and crashes come at any moment, questions and answers
of the witness are lost, delayed for seconds and repeated, and the witness restarts (with what it has stored).
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.pair.witness import Grant, decide
from tests.property.test_membership_pair import (
    Cut,
    MembershipPair,
    PairedHost,
    Pause,
    cuts,
    hosts,
    lengths,
    moments,
    pauses,
    seeds,
)


@dataclass(frozen=True)
class Away:
    """The witness can't be reached by `host` in [begin, end)."""

    host: str
    begin: float
    end: float


class WitnessedPair(MembershipPair):
    """`rates`: how fast the hosts' clocks run. `wild`: what the network does to the witness's datagrams."""

    def __init__(
        self,
        seed: int,
        cuts: list[Cut],
        pauses: list[Pause],
        away: list[Away],
        rates: tuple[float, float] = (1.0, 1.0),
        wild: bool = False,
        **changes: Any,
    ) -> None:
        self.rates = dict(zip("ab", rates, strict=True))
        self.away, self.wild = away, wild
        self.grant: Grant | None = None
        self.answers = changes.pop("answers", True)  # or all answers are lost
        super().__init__(seed, cuts, pauses, **{"has_fence": False, "has_witness": True, **changes})

    def local(self, side: PairedHost) -> float:
        return 50.0 + (self.now - 50.0) * self.rates[side.name]

    def _ask(self, side: PairedHost, low: int, high: int) -> None:
        for _ in range(self.random.choice((1, 1, 2, 3)) if self.wild else 1):
            slow = self.wild and self.random.random() < 0.3
            arrival = self.now + (self.random.uniform(0, 3) if slow else self.random.uniform(0.0002, 0.004))
            self._at(arrival, "decide", side, (low, high))

    def run(self, until: float) -> None:
        """A question on its way, and a fence, also reach their aim when the host is off or paused."""
        while self.events and self.events[0][0] <= until:
            if self.events[0][2] == "decide":
                self.now, _, _, side, question = heappop(self.events)
                self._decide(side, *question)
            elif self.events[0][2] == "die":
                self.now, _, _, side, _ = heappop(self.events)
                self.off.add(side.name)
            else:
                super().run(self.events[0][0])

    def _decide(self, side: PairedHost, low: int, high: int) -> None:
        if any(a.host == side.name and a.begin <= self.now < a.end for a in self.away):
            return
        answer = decide(self.grant, side.name, low, high)
        if answer is not None:
            self.grant = answer
        if not self.answers or (self.wild and self.random.random() < 0.2):
            return
        arrival = self.now + self.random.uniform(0.0002, 0.004)
        self._at(arrival, "answer", side, ("witnessed", (high, answer is not None, "")))

    def restart(self, name: str) -> None:
        if name not in self.off:
            super().restart(name)

    def audible(self, side: PairedHost) -> bool:
        """Whether a packet of it could leave at this moment."""
        members: Membership = side.members
        serves = members.role is Role.PRIMARY and members.state is not State.DOUBT
        return serves and side.name not in self.off and self.local(side) <= members.lease_until

    def _check(self) -> None:
        super()._check()
        heard = [side.name for side in self.sides.values() if self.audible(side)]
        assert len(heard) < 2, f"both are heard at {self.now}: {[s.members.reason for s in self.sides.values()]}"


rates = st.tuples(st.floats(0.98, 1.02), st.floats(0.98, 1.02))
aways = st.lists(st.builds(lambda h, b, n: Away(h, b, b + n), hosts, moments, lengths), max_size=3)
restarts = st.lists(st.tuples(moments, hosts), max_size=2).map(sorted)


@settings(max_examples=80, deadline=None)
@given(
    seeds,
    cuts,
    pauses,
    aways,
    rates,
    st.booleans(),
    st.booleans(),
    restarts,
    st.one_of(st.none(), st.tuples(moments, hosts)),
)
def test_at_most_one_host_is_heard(
    seed: int,
    cuts: list[Cut],
    pauses: list[Pause],
    away: list[Away],
    rates: tuple[float, float],
    wild: bool,
    has_fence: bool,
    restarts: list[tuple[float, str]],
    crash: tuple[float, str] | None,
) -> None:
    pair = WitnessedPair(seed, cuts, pauses, away, rates, wild, has_fence=has_fence, fence_works=0.5)
    pair.run(52.0)
    assert pair.sides["a"].members.state is State.PROTECTED
    incidents: list[tuple[float, str, str]] = [(when, "restart", host) for when, host in restarts]
    if crash is not None:
        incidents.append((crash[0], "crash", crash[1]))
    for when, what, host in sorted(incidents):
        pair.run(when)
        if what == "restart":
            pair.restart(host)
        else:
            pair.off.add(host)
    pair.run(62.0)


@settings(max_examples=50, deadline=None)
@given(seeds, moments, rates, hosts)
def test_the_survivor_of_a_crash_serves_soon(seed: int, when: float, rates: tuple[float, float], crashed: str) -> None:
    pair = WitnessedPair(seed, [], [], [], rates)
    pair.run(when)
    pair.off.add(crashed)
    pair.run(when + 0.15 + 0.45 * 1.04 + 0.1 + 0.7)  # detection is part of the lease; the disk takes up to 0.6 s
    survivor = pair.sides["b" if crashed == "a" else "a"]
    assert survivor.members.state is State.UNPROTECTED
    if crashed == "a":
        assert [valid for _, _, valid in pair.takeovers] == [True]


@settings(max_examples=50, deadline=None)
@given(seeds, moments, rates, st.sampled_from(["a", "b", "ab"]), aways)
def test_after_a_cut_one_of_both_serves(
    seed: int, when: float, rates: tuple[float, float], senders: str, away: list[Away]
) -> None:
    """As long as the witness is reached again, and whoever was heard last."""
    away = [Away(a.host, a.begin, min(a.end, when + 3)) for a in away]
    pair = WitnessedPair(seed, [Cut(s, when, 10**6) for s in senders], [], away, rates)
    pair.run(when + 6)
    assert sum(pair.audible(side) for side in pair.sides.values()) == 1


@settings(max_examples=50, deadline=None)
@given(seeds, cuts, aways, rates)
def test_after_healing_the_pair_is_protected(
    seed: int, cuts: list[Cut], away: list[Away], rates: tuple[float, float]
) -> None:
    cuts = [Cut(c.sender, c.begin, min(c.end, 58.0)) for c in cuts]
    away = [Away(a.host, a.begin, min(a.end, 58.0)) for a in away]
    pair = WitnessedPair(seed, cuts, [], away, rates, wild=True)
    pair.run(70.0)
    assert sorted(s.members.state.name for s in pair.sides.values()) == ["PROTECTED", "SHADOWING"]


@settings(max_examples=30, deadline=None)
@given(seeds, moments)
def test_clocks_that_differ_by_two_percent_each_way(seed: int, when: float) -> None:
    """The primary can't reach the witness, its clock is slow, the backup's is fast, and the lease is long."""
    pair = WitnessedPair(
        seed, [Cut("a", when, 10**6)], [], [Away("a", 0, 10**6)], (0.98, 1.02), witness_lease_ms=4000, quick=True
    )
    pair.run(when + 8)
    assert pair.sides["b"].members.state is State.UNPROTECTED
    assert pair.sides["a"].members.role is not Role.PRIMARY, "it has heard that the other serves"


@settings(max_examples=30, deadline=None)
@given(seeds, moments, st.integers(560, 760).map(lambda ms: ms / 1000))
def test_a_backup_that_asks_does_not_vote_although_it_hears_the_primary_again(
    seed: int, when: float, back: float
) -> None:
    pair = WitnessedPair(
        seed, [Cut("a", when, when + back)], [], [Away("a", 0, 10**6)], witness_lease_ms=700, quick=True
    )
    pair.run(when + 4)


@settings(max_examples=80, deadline=None)
@given(seeds, moments, st.integers(0, 150).map(lambda ms: ms / 1000))
def test_backup_that_does_not_learn_of_the_new_pact(seed: int, when: float, after: float) -> None:
    """The primary asks in vain, is reunited with its backup and proposes anew, and is cut off at that moment."""
    back = when + 0.8
    cuts = [Cut("b", when, back), Cut("a", back + after, 10**6), Cut("b", back + after + 0.02, 10**6)]
    away = [Away("a", when, back + after + 1.5)]  # it asks again when the backup has taken over
    pair = WitnessedPair(seed, cuts, [], away, witness_lease_ms=1000, quick=True)
    pair.run(when + 6)
    assert sum(pair.audible(side) for side in pair.sides.values()) == 1


@settings(max_examples=30, deadline=None)
@given(seeds, moments, hosts)
def test_after_a_short_silence_in_which_the_witness_decided_the_survivor_of_a_crash_serves(
    seed: int, when: float, crashed: str
) -> None:
    pair = WitnessedPair(seed, [Cut("b", when, when + 0.8)], [], [], witness_lease_ms=1000, quick=True, answers=False)
    pair.run(when + 1.3)
    assert pair.grant is not None, "the primary has asked"
    assert pair.sides["a"].members.state is State.PROTECTED
    pair.answers = True
    pair.off.add(crashed)
    pair.run(when + 4.5)
    assert pair.sides["b" if crashed == "a" else "a"].members.state is State.UNPROTECTED


@settings(max_examples=30, deadline=None)
@given(seeds, moments, st.integers(0, 250).map(lambda ms: ms / 1000), st.booleans())
def test_primary_that_was_granted_the_right_and_restarts_before_its_backup_has_asked(
    seed: int, when: float, later: float, answers: bool
) -> None:
    """It hears its backup again at once. That says nothing of what it had let go before."""
    back = when + 0.7 + later
    pair = WitnessedPair(
        seed, [Cut("a", when, back), Cut("b", when, back)], [], [], witness_lease_ms=1000, quick=True, delay=0.02
    )
    pair.run(back)
    assert pair.sides["a"].released_at is not None
    pair.answers = answers
    pair.restart("a")
    pair.run(when + 6)
    pair.answers = True
    pair.run(when + 12)
    assert not any(valid for _, _, valid in pair.takeovers)
    assert sum(pair.audible(side) for side in pair.sides.values()) == 1
