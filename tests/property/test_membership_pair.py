"""Two memberships on lossy, delayed, cut links: when may the primary release, and how many hosts claim the service?

The property behind invariant 1 (no byte acknowledged that the survivor lacks): whenever the primary has let unconfirmed
acknowledgements go, a backup that takes over later must know that its shadows are not valid any more. It must hold for
any moment and direction of a cut, and for any pause of either host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.peer import PeerView
from nfq_failover.core.pair.roles import Do, Role, State
from nfq_failover.wire.heartbeat import HeartbeatBody
from tests.support import configured

INTERVAL_S = 0.05
TICK_S = 0.025


@dataclass(frozen=True)
class Cut:
    """Heartbeats from `sender` are lost in [begin, end)."""

    sender: str
    begin: float
    end: float


@dataclass(frozen=True)
class Pause:
    """`host` does nothing at all (`hung`: its heartbeat process goes on) in [begin, end)."""

    host: str
    begin: float
    end: float
    hung: bool = False


@dataclass(frozen=True)
class Stranded:
    """`host` can neither send nor hear in [begin, end); its shell notices both a little later."""

    host: str
    begin: float
    end: float


@dataclass
class PairedHost:
    """One host."""

    name: str
    peer: PeerView
    members: Membership
    echo_ms: int = 0
    last_sent_ms: int = 0
    progress_at: float = 0.0
    shadows: int = 0  # which collection of shadows this host has; another one after each loss
    relies_on: int = -1  # which one the primary protects with
    released_at: float | None = None
    inbox: list[tuple[HeartbeatBody, int]] = field(default_factory=list)
    template: dict[str, Any] = field(default_factory=dict)


class MembershipPair:
    """The two hosts in virtual time. A fence works with probability `fence` and takes up to its deadline."""

    def __init__(self, seed: int, cuts: list[Cut], pauses: list[Pause], **changes: Any) -> None:
        self.random = Random(seed)
        self.now = 50.0
        self.cuts, self.pauses = cuts, pauses
        self.events: list[tuple[float, int, str, PairedHost, Any]] = []
        self.serial = 0
        self.off: set[str] = set()
        self.takeovers: list[tuple[float, str, bool]] = []
        self.fence_works = changes.pop("fence_works", True)
        boot = changes.pop("boot", {"a": 50.0, "b": 50.0})
        self.quick = changes.pop("quick", False)  # fence and disk answer at once
        self.delay = changes.pop("delay", 0.002)
        self.stranded: list[Stranded] = changes.pop("stranded", [])
        self.sides: dict[str, PairedHost] = {}
        for name, other in (("a", "b"), ("b", "a")):
            values: dict[str, Any] = {
                "has_fence": True,
                "fence_deadline_ms": 500,
                "loop_stall_ms": 300,
                "prefer_primary": name == "a",
                **changes,
            }
            conf = configured.settings(name=name, peers=(configured.peer(other),), **values)
            peer = PeerView(conf, other, boot[name])
            self.sides[name] = PairedHost(name, peer, Membership(conf, peer, 0, False, boot[name]))
            peer.monitor.reset(boot[name])
            self._publish(self.sides[name])
            self._at(boot[name] + self.random.random() * INTERVAL_S, "beat", self.sides[name])
            self._at(boot[name] + self.random.random() * TICK_S, "tick", self.sides[name])
        for each in self.stranded:
            for when, soon in ((each.begin, each.end - each.begin), (each.end, INTERVAL_S)):
                self._at(when + self.random.uniform(0, min(INTERVAL_S, soon)), "look", self.sides[each.host])

    def local(self, side: PairedHost) -> float:
        """What the host's clock shows."""
        del side
        return self.now

    def _at(self, when: float, what: str, side: PairedHost, more: Any = None) -> None:
        self.serial += 1
        heappush(self.events, (when, self.serial, what, side, more))

    def _paused(self, side: PairedHost, heartbeat: bool = False) -> float:
        for pause in self.pauses:
            if pause.host == side.name and pause.begin <= self.now < pause.end and not (heartbeat and pause.hung):
                return pause.end
        return 0.0

    def _cut_off(self, side: PairedHost) -> bool:
        return any(each.host == side.name and each.begin <= self.now < each.end for each in self.stranded)

    def run(self, until: float) -> None:
        """Let the pair live."""
        while self.events and self.events[0][0] <= until:
            self.now, _, what, side, more = heappop(self.events)
            if side.name in self.off:
                continue
            if until_end := self._paused(side, heartbeat=what == "beat"):
                self._at(until_end, what, side, more)
            else:
                if what != "beat":
                    side.progress_at = self.now
                    self._lease(side)
                getattr(self, f"_{what}")(side, more)
                self._carry_out(side)

    def restart(self, name: str) -> None:
        """The host's daemon starts anew (a new session, as the handshake would bring it about)."""
        side, other = self.sides[name], self.sides["b" if name == "a" else "a"]
        members = side.members
        now = self.local(side)
        side.peer = PeerView(members.settings, other.name, now)
        side.members = Membership(members.settings, side.peer, members.stored_epoch, members.served, now)
        side.peer.monitor.reset(now)
        side.echo_ms = 0
        self._publish(side)
        other.members.session_started()
        other.peer.monitor.reset(self.local(other))
        other.echo_ms = 0
        self._carry_out(other)

    # ------------------------------------------------------------------------------------ events

    def _publish(self, side: PairedHost) -> None:
        members = side.members
        side.template = {
            "role": int(members.role),
            "state": int(members.state),
            "flags": members.candidate.flags(),
            "stored_epoch": members.stored_epoch,
            "generation": members.generation,
            "echo_ms": side.echo_ms,
            "release_after_ms": members.settings.release_after_ms,
            "pact": members.pact.high,
            "lease_ms": members.settings.lease_ms,
            "epoch": members.epoch,
        }

    def _beat(self, side: PairedHost, _: Any) -> None:
        self._at(self.now + INTERVAL_S, "beat", side)
        lost = any(cut.sender == side.name and cut.begin <= self.now < cut.end for cut in self.cuts)
        if lost or self._cut_off(side):
            return
        fields = dict(side.template)
        epoch = fields.pop("epoch")
        age = int((self.now - side.progress_at) * 1000)
        body = HeartbeatBody(**fields, loop_age_ms=age, sent_ms=int(self.local(side) * 1000))
        other = self.sides["b" if side.name == "a" else "a"]
        arrival = self.now + self.random.uniform(0.1, 1) * self.delay
        self._at(arrival, "arrive", other, (body, epoch, side.shadows))

    def _arrive(self, side: PairedHost, more: tuple[HeartbeatBody, int, int]) -> None:
        body, epoch, shadows = more
        if body.sent_ms <= side.last_sent_ms or self._cut_off(side):
            return
        side.last_sent_ms = body.sent_ms
        now = self.local(side)
        side.peer.heard(body, epoch, now)
        if body.loop_age_ms < side.members.settings.loop_stall_ms:
            side.echo_ms = body.sent_ms
        side.members.heard(now)
        if Do.PROTECT in side.members.actions:
            side.relies_on = shadows
        if side.members.state in (State.PROTECTED, State.BACKUP_LOST):
            assert shadows == side.relies_on, "called protected by a backup that has lost its shadows"

    def _tick(self, side: PairedHost, _: Any) -> None:
        self._at(self.now + TICK_S * self.random.uniform(0.9, 1.2), "tick", side)
        side.members.tick(self.local(side))

    def _look(self, side: PairedHost, _: Any) -> None:
        cut_off = self._cut_off(side)
        side.members.reached(not cut_off, "cut off" if cut_off else "", self.local(side))

    def _answer(self, side: PairedHost, more: tuple[str, Any]) -> None:
        name, value = more
        getattr(side.members, name)(*value)

    # ------------------------------------------------------------------------------------ actions

    def _carry_out(self, side: PairedHost) -> None:
        members = side.members
        while members.actions:
            action = members.actions.popleft()
            if action is Do.CHECK_LINK:
                self._at(self.now + 0.001, "answer", side, ("link_checked", (not self._cut_off(side), "")))
            elif action is Do.FENCE:
                known = [each for each in self.stranded if each.begin + INTERVAL_S <= self.now]
                ended = [each.end for each in known if each.host == side.name]
                able_s = self.now - max(ended, default=0.0)
                assert able_s >= side.members.settings.detection_ms / 1000, f"{side.name} was cut off {able_s} s ago"
                other = self.sides["b" if side.name == "a" else "a"]
                takes = 0.001 if self.quick else self.random.uniform(0, members.settings.fence_deadline_ms / 1000)
                works = self.random.random() < self.fence_works
                if works:
                    self._at(self.now + takes * 0.9, "die", other)
                self._at(self.now + takes, "answer", side, ("fenced", (works, "")))
            elif action is Do.STORE:
                takes = 0.001 if self.quick else self.random.choice((0.001, 0.001, 0.02, 0.6))
                self._at(self.now + takes, "answer", side, ("epoch_stored", (members.epoch, True, "")))
            elif action in (Do.SHADOW, Do.INVALIDATE):
                side.shadows += 1
            elif action is Do.ARM:
                side.released_at = None  # a new generation begins: the backup starts it with nothing
                self._at(self.now + 0.02, "answer", side, ("rules_applied", ()))
            elif action is Do.RELEASE:  # a host that falls silent forgets its connections, and lets nothing go
                side.released_at = self.now
            elif action is Do.TAKE_OVER:
                self.takeovers.append((self.now, side.name, members.may_continue(self.local(side))))
            elif action is Do.ASK:
                self._ask(side, members.pact.low, members.pact.high)
        self._publish(side)
        self._check()

    def _lease(self, side: PairedHost) -> None:
        if self.local(side) > side.members.lease_until:
            side.members.expire(self.local(side))

    def _ask(self, side: PairedHost, low: int, high: int) -> None:
        raise AssertionError("there is no witness")

    def _die(self, side: PairedHost, _: Any) -> None:
        self.off.add(side.name)

    def _check(self) -> None:
        serving = [s for s in self.sides.values() if s.members.role is Role.PRIMARY and s.name not in self.off]
        assert len({s.members.epoch for s in serving}) == len(serving), "two hosts serve in one epoch"
        for at, name, valid in self.takeovers:
            other = self.sides["b" if name == "a" else "a"]
            released = other.released_at
            assert not (valid and released is not None and released < at), (
                f"{name} continues at {at}, but {other.name} has released at {released}"
            )


moments = st.integers(0, 4000).map(lambda ms: 52.0 + ms / 1000)
lengths = st.one_of(st.integers(10, 900), st.integers(500, 4000), st.just(10**6)).map(lambda ms: ms / 1000)
hosts = st.sampled_from("ab")
cuts = st.lists(st.builds(lambda s, b, n: Cut(s, b, b + n), hosts, moments, lengths), max_size=3)
pauses = st.lists(
    st.builds(lambda h, b, n, hung: Pause(h, b, b + min(n, 5.0), hung), hosts, moments, lengths, st.booleans()),
    max_size=2,
)
seeds = st.integers(0, 10**6)


@settings(max_examples=100, deadline=None)
@given(seeds, cuts, pauses, st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_what_was_released_is_never_continued(
    seed: int, cuts: list[Cut], pauses: list[Pause], fence_works: float, has_fence: bool
) -> None:
    pair = MembershipPair(seed, cuts, pauses, fence_works=fence_works, has_fence=has_fence)
    pair.run(52.0)
    assert pair.sides["a"].members.state is State.PROTECTED
    pair.run(62.0)


outages = st.lists(st.builds(lambda h, b, n: Stranded(h, b, b + n), hosts, moments, lengths), max_size=3)


@settings(max_examples=150, deadline=None)
@given(seeds, outages, cuts, pauses, st.sampled_from([0.0, 1.0]), st.sampled_from([0, 200]))
def test_host_that_is_cut_off_holds_it_against_nobody(
    seed: int, stranded: list[Stranded], cuts: list[Cut], pauses: list[Pause], fence_works: float, fence_delay_ms: int
) -> None:
    more = {"fence_works": fence_works, "fence_delay_ms": fence_delay_ms}
    pair = MembershipPair(seed, cuts, pauses, stranded=stranded, **more)
    pair.run(62.0)


@settings(max_examples=100, deadline=None)
@given(seeds, st.builds(lambda b, n: Stranded("b", b, b + n), moments, st.integers(10, 700).map(lambda ms: ms / 1000)))
def test_outage_of_the_backup_costs_nothing(seed: int, outage: Stranded) -> None:
    """It is shorter than the time to act: the same shadows protect the same connections afterwards."""
    pair = MembershipPair(seed, [], [], stranded=[outage])
    pair.run(outage.begin)
    shadows = pair.sides["b"].shadows
    pair.run(outage.end + 1.0)
    assert pair.sides["a"].members.state is State.PROTECTED and pair.sides["b"].members.state is State.SHADOWING
    assert pair.sides["b"].shadows == shadows and not pair.off


STALL_S = 0.3
RELEASE_S = 0.15 + 0.5 + STALL_S + 0.15  # detection, fence deadline, a hung loop's delay, margin


def milliseconds(low: int, high: int) -> st.SearchStrategy[float]:
    return st.integers(low, high).map(lambda ms: ms / 1000)


@settings(max_examples=100, deadline=None)
@given(seeds, st.sampled_from(["a", "b", "ab"]), moments, milliseconds(0, 1000))
def test_crash_at_any_moment_after_the_cut(seed: int, senders: str, begin: float, crash_after: float) -> None:
    pair = MembershipPair(seed, [Cut(s, begin, 10**6) for s in senders], [], quick=True)
    pair.run(begin + crash_after)
    pair.off.add("a")
    pair.run(begin + 5)


@settings(max_examples=100, deadline=None)
@given(seeds, moments, milliseconds(-20, 60))
def test_crash_right_after_the_release_leaves_nothing_valid_behind(seed: int, begin: float, after: float) -> None:
    """The primary no longer hears its backup, which hears it well, and crashes as it has just let go."""
    pair = MembershipPair(seed, [Cut("b", begin, 10**6)], [], quick=True)
    pair.run(begin + RELEASE_S + after)
    pair.off.add("a")
    pair.run(begin + 5)
    assert pair.takeovers, "the backup notices the crash and takes over"


@settings(max_examples=100, deadline=None)
@given(seeds, moments, milliseconds(-40, 30))
def test_backup_that_hung_and_wakes_up_continues_nothing_that_was_released(
    seed: int, begin: float, after: float
) -> None:
    """The backup's packet loop hangs while its heartbeats go on; the primary lets go, and crashes as the loop wakes."""
    wake = begin + STALL_S + RELEASE_S + after
    pair = MembershipPair(seed, [], [Pause("b", begin, wake, hung=True)], quick=True)
    pair.run(wake - 0.01)
    pair.off.add("a")
    pair.run(wake + 5)
    assert pair.takeovers


@settings(max_examples=100, deadline=None)
@given(seeds, moments, milliseconds(0, 300))
def test_refusal_that_the_primary_has_heard_of_ends_the_shadows(seed: int, begin: float, restart_after: float) -> None:
    """The backup hears nothing and its fence fails; the primary hears that and lets go; then its daemon restarts."""
    pair = MembershipPair(seed, [Cut("a", begin, begin + 0.35)], [], fence_works=0.0, quick=True)
    pair.run(begin + 0.2 + restart_after)
    pair.restart("a")
    pair.run(begin + 5)


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(0, 5000), st.integers(0, 5000), cuts, st.booleans(), st.booleans())
def test_hosts_that_boot_together_elect_exactly_one(
    seed: int, boot_a: int, boot_b: int, cuts: list[Cut], same: bool, has_fence: bool
) -> None:
    early = [Cut(cut.sender, cut.begin - 4, min(cut.end - 4, 55.0)) for cut in cuts]
    boot = {"a": 50 + boot_a / 1000, "b": 50 + boot_b / 1000}
    more = {"prefer_primary": False} if same else {}
    pair = MembershipPair(seed, early, [], boot=boot, has_fence=has_fence, **more)
    pair.run(60.0)
    living = [s.members.state.name for s in pair.sides.values() if s.name not in pair.off]
    assert sorted(living) in (["PROTECTED", "SHADOWING"], ["UNPROTECTED"]), "one was fenced, or both are there"
    if not early:
        assert pair.sides["a"].members.role is Role.PRIMARY and not pair.takeovers


@settings(max_examples=30, deadline=None)
@given(seeds, hosts)
def test_host_that_boots_alone_waits(seed: int, alone: str) -> None:
    pair = MembershipPair(seed, [], [])
    pair.off.add("b" if alone == "a" else "a")
    pair.run(90.0)
    assert pair.sides[alone].members.state is State.WAITING
