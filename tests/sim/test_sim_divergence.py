"""Servers that do not answer the same: the client gets one server's bytes or a reset, never a mixture of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import pytest

from nfq_failover.core.shadow import divergence
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.connection import ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.output import Output
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.records import DIGEST_BLOCK
from nfq_failover.wire.segment import FlowKey, Segment

from .apps import Client
from .checks import Checks
from .generate import KINDS, from_seed
from .host import SimHost
from .network import Quality
from .scenario import DOWNLOAD, ECHO, Connection, HostPlan, Incident, Scenario
from .tcp import Tcp
from .tcp_send import SEND_BUFFER
from .world import SimWorld

Twist = Callable[[int, bytes], bytes]
CRASHES = range(1, 11)
KNOWN_S = 0.05  # a digest, the question about it and the answer have crossed the sync channel by then
DATE = range(2, 8)


def date(offset: int, data: bytes) -> bytes:
    """Six bytes differ, then all agrees again."""
    return bytes(byte ^ 0x55 if offset + i in DATE else byte for i, byte in enumerate(data))


def _digits() -> frozenset[int]:
    """One to three bytes here and there, far enough from each other."""
    starts = ((40 + 4000 * k + (k * k * 311) % 3900, 1 + k % 3) for k in range(20))
    return frozenset(start + i for start, length in starts for i in range(length))


DIGITS = _digits()


def digits(offset: int, data: bytes) -> bytes:
    """As digits of a clock: they differ at many places, and it ends each time."""
    return bytes(byte ^ 1 if offset + i in DIGITS else byte for i, byte in enumerate(data))


def noise(offset: int, data: bytes) -> bytes:
    """Every byte differs."""
    del offset
    return bytes(byte ^ 0x55 for byte in data)


def late_noise(offset: int, data: bytes) -> bytes:
    """Every byte differs, from some place on."""
    return bytes(byte ^ 0x55 if offset + i >= 300 else byte for i, byte in enumerate(data))


def longer(offset: int, data: bytes) -> bytes:
    """Three bytes more."""
    return data[: 200 - offset] + b"xyz" + data[200 - offset :] if offset <= 200 < offset + len(data) else data


class TwistedChecks(Checks):
    """What the packets say is up to the end of the run; here is noted when the first different byte was sent."""

    def __init__(self, world: SimWorld) -> None:
        super().__init__(world)
        self.first: dict[Client, float] = {}
        self.sent: dict[Client, list[tuple[int, float]]] = {}  # how far, when
        self.first_death = inf

    def emitted(self, host: SimHost, packet: bytes) -> None:
        if is_icmp(bytearray(packet)):
            error = IcmpError(bytearray(packet))
            self._one_host(host, (error.src, error.sport, error.dst, error.dport), "an ICMP error")
            return
        seg = Segment(bytearray(packet))
        assert seg.checksum_ok()
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        self._one_host(host, flow, seg)
        client = self.world.clients.get(flow)
        if client is not None and seg.payload_len:
            offset = client.tcp.theirs.offset(seg.seq)
            sent = self.sent.setdefault(client, [])
            if not sent or offset + seg.payload_len > sent[-1][0]:
                sent.append((offset + seg.payload_len, self.world.clock.now))
            if offset + seg.payload_len > self.world.place:  # type: ignore[attr-defined]
                self.first.setdefault(client, self.world.clock.now)

    def died(self, host: SimHost) -> None:
        super().died(host)
        self.first_death = min(self.first_death, self.world.clock.now)

    def promise(self, primary: SimHost) -> None:
        del primary

    def final(self) -> None:
        """`Twisted.judge` does it."""


class Twisted(SimWorld):
    """A world whose server `b` is twisted. `place`: the first byte that differs."""

    def __init__(self, scenario: Scenario, twist: Twist) -> None:
        self.twist = twist
        super().__init__(scenario)
        self.place = next(i for i in range(1000) if twist(0, bytes(1000))[i])
        self.checks = TwistedChecks(self)
        twisted = self.hosts[1]
        plain = twisted.accepted

        def accepted(tcp: Tcp) -> None:
            write, at = tcp.write, [0]

            def twisted_write(data: bytes) -> int:
                data = data[: max(SEND_BUFFER - len(tcp.sent) - 3, 0)]
                made = twist(at[0], data)
                assert write(made) in (len(made), 0)  # 0: it is over
                at[0] += len(data)
                return len(data)

            tcp.write = twisted_write  # type: ignore[method-assign]
            plain(tcp)

        twisted.accepted = accepted  # type: ignore[method-assign]

    def judge(self) -> Counter[str]:
        """What each client has got; a mixture is an error, unless nobody could know."""
        found: Counter[str] = Counter()
        for flow, client in [*self.past, *self.clients.items()]:
            if client.aborted:
                continue
            found[self._one(flow, client)] += 1
        return found

    def _one(self, flow: FlowKey, client: Client) -> str:
        got = bytes(client.got)
        one, other = client.expected, self.twist(0, client.expected)
        assert client.ending or client.reset, f"port {flow[1]} hangs: {client.tcp.state}, {len(got)} of {len(one)}"
        if one.startswith(got) or other.startswith(got):
            return "whole" if len(got) >= len(one) else "cut"
        if self.twist is date and got[DATE.stop :] == one[DATE.stop : len(got)]:
            for stream in (one, other):
                if stream.startswith(got[: DATE.stop]):
                    return "whole" if len(got) == len(one) else "cut"
        if self.twist is digits:
            return self._digits(flow, client)
        crash = max(self.crashes.values(), default=0.0)
        since = crash - self.checks.first[client]  # type: ignore[attr-defined]
        assert since < KNOWN_S, f"port {flow[1]}: a mixture, though the first difference was sent {since:.3f} s before"
        return "mixture"

    def _digits(self, flow: FlowKey, client: Client) -> str:
        """Each difference is one server's, and after the first one of the replica's there is none of the primary's."""
        got, one, found, at = bytes(client.got), client.expected, "changed" if self.sound(client) else "cut", 0
        other = digits(0, one)
        replicas = False
        while at < len(got):
            stop = at + 1
            while at in DIGITS and stop in DIGITS and stop < len(got):
                stop += 1
            primarys = got[at:stop] == one[at:stop]
            assert primarys or stop > at + 1 or got[at] == other[at], f"port {flow[1]}: byte {at} is of neither server"
            whole = primarys or got[at:stop] == other[at:stop]
            if at in DIGITS and (not whole or (primarys and replicas)):
                sent = self.checks.sent[client]  # type: ignore[attr-defined]
                died = self.checks.first_death  # type: ignore[attr-defined]
                since = died - next(time for end, time in sent if end > at)
                assert since < KNOWN_S, f"port {flow[1]}: torn at {at}, though that was sent {since:.3f} s before"
                found = "mixture"
            replicas = replicas or (at in DIGITS and not primarys)
            at = stop
        return found

    @staticmethod
    def sound(client: Client) -> bool:
        """Whether the client has got everything."""
        return len(client.got) == len(client.expected)


def with_policy(world: SimWorld, policy: str) -> SimWorld:
    """The same world with another policy."""
    for host in world.hosts:
        host.settings = replace(host.settings, divergence=policy)
    return world


def runs(twist: Twist, seeds: range, kinds: tuple[str, ...], policy: str = "default") -> Counter[str]:
    """Seeds of some kinds, with paths that lose nothing."""
    found: Counter[str] = Counter()
    for scenario in (from_seed(seed, kind) for kind in kinds for seed in seeds):
        seed = scenario.seed
        calm = replace(
            scenario,
            quality={path: Quality(quality.delay, quality.jitter) for path, quality in scenario.quality.items()}
            | {"sync": Quality(0.0002, 0.00002)},
            hosts={name: replace(plan, app_delay=0.0, listen_after=0.0) for name, plan in scenario.hosts.items()},
        )
        world = Twisted(calm, twist)
        with_policy(world, policy)
        try:
            world.run()
            found += world.judge()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {twist.__name__}: {error}") from error
        for host in world.hosts:
            if host.up:
                found.update({f"count {name}": n for name, n in host.node.out.counters.items()})
    return found


@pytest.mark.parametrize("twist", [date, noise, late_noise, longer])
def test_no_mixture_after_a_crash(twist: Twist) -> None:
    found = runs(twist, CRASHES, ("crash-primary",))
    assert found["whole"] and found["count difference"]
    if twist is date:
        assert found["whole"] > 3 * found["cut"], found  # it does no harm but at the very place


@pytest.mark.parametrize("twist", [date, noise, longer])
def test_without_a_crash_every_client_gets_all_of_one_stream(twist: Twist) -> None:
    found = runs(twist, range(22, 30), ("none",))
    assert not found["mixture"] and not found["cut"], found
    assert found["count difference"]
    assert bool(found["count diverged"]) is (twist is not date), found


@pytest.mark.parametrize("twist", [date, noise, late_noise, longer])
def test_strict_leaves_no_gap(twist: Twist) -> None:
    found = runs(twist, range(1, 6), ("crash-primary", "none"), "strict")
    assert not found["mixture"] and found["whole"], found
    assert found["count difference"]


@pytest.mark.parametrize("policy", ["default", "strict", "off"])
def test_servers_that_agree_lose_nothing_and_never_differ(policy: str) -> None:
    """Each policy has a third of the kinds; the other tests of the simulator have all of them with the default."""
    compared = 0
    for seed in range(("default", "strict", "off").index(policy), len(KINDS), 3):
        if KINDS[seed].startswith("lopsided"):
            continue  # their servers answer differently
        world = with_policy(SimWorld(from_seed(seed)), policy)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        for host in world.hosts:
            counters = host.node.out.counters if host.up else Counter[str]()
            assert not counters["difference"] and not counters["diverged"], seed
            shadows = host.node.shadow.flows.values() if host.up else ()
            compared += sum(c.output.compare.compared for c in shadows if c.output.compare is not None)
    assert (compared > 30_000) is (policy != "off")


def test_strict_does_not_stop_at_a_part_of_a_block() -> None:
    """In these runs a replica's congestion window has stopped it there: then only the client can make it go on."""
    for seed, kind in ((117, "hang"), (132, "none"), (133, "crash-primary")):
        world = with_policy(SimWorld(from_seed(seed, kind)), "strict")
        world.run()
        for host in world.hosts:
            assert not host.up or not host.node.out.counters["strict-given-up"], seed


def crash_in_the_middle(seed: int, late_s: float | None = None) -> tuple[Counter[str], Counter[str]]:
    """Three transfers to a client that loses some of it; the primary dies amid them. Returns what the clients have got,
    and the survivor's counters. `late_s`: how late its replicas are at most; then the clients lose more."""
    dice = Random(seed)
    plans = [Connection(0.0, 40_000 + n, dice.choice((ECHO, DOWNLOAD)), dice.randrange(1 << 30)) for n in range(3)]
    scenario = Scenario(
        seed,
        "healing",
        connections=tuple(plans),
        incidents=(Incident(dice.uniform(0.01, 0.06), "crash", "primary"),),
        quality={
            "client": Quality(0.004, 0.001, loss=0.1 if late_s else 0.05),
            "tap": Quality(),
            "sync": Quality(0.0002, 0.00002),
        },
        super_segment=dice.choice((1, 4)),
        sack=bool(dice.getrandbits(1)) or late_s is not None,
        hosts={"a": HostPlan(app_delay=0.0), "b": HostPlan(boot=0.1, app_delay=late_s or dice.choice((0.0, 0.02)))},
    )
    world = Twisted(scenario, digits)
    try:
        world.run()
        return world.judge(), world.hosts[1].node.out.counters
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def test_client_sees_the_primarys_bytes_and_then_the_replicas() -> None:
    """Where they differ, and the client lacks them at the crash, it gets the primary's."""
    got, counters = Counter[str](), Counter[str]()
    for seed in range(60):
        one, counts = crash_in_the_middle(seed)
        got += one
        counters += counts
    assert got["changed"] > 4 * (got["cut"] + got["mixture"]), got
    assert counters["difference-healed"] > 50, counters


def crashes_of_late_replicas() -> Counter[str]:
    """The primary's bytes are only known by their hashes when the replicas come to where they differ."""
    return sum((crash_in_the_middle(seed, 0.06)[0] for seed in range(60)), Counter[str]())


def test_client_of_a_late_replica_has_all_of_a_difference_from_one_server() -> None:
    got = crashes_of_late_replicas()
    assert not got["mixture"] and got["changed"] > 20 and got["whole"] + got["changed"] > 20 * got["cut"], got


def test_check_finds_clients_that_were_not_asked_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "hear", lambda _, compare, *__: bool(compare.doubts))
    assert crashes_of_late_replicas()["mixture"]


def _block_before(self: Output, start: int, data: bytes) -> bool:
    return _heal(self, start - DIGEST_BLOCK, data)


def _byte_before(self: Output, start: int, data: bytes) -> bool:
    return _heal(self, start - 1, data)


_heal = Output.heal


@pytest.mark.parametrize("sabotage", [_block_before, _byte_before])
def test_check_finds_healed_bytes_at_the_wrong_place(
    sabotage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "heal", sabotage)
    with pytest.raises(AssertionError, match=r"of neither server|torn at"):
        for seed in range(60):
            crash_in_the_middle(seed)


def _blind(self: Comparison, start: int, end: int, hashes: tuple[int, ...], marks: object) -> bool:
    return True


def _careless(self: Divergence, connection: ShadowConnection, now: float) -> str:
    connection.output.stop_comparing()
    return ""


@pytest.mark.parametrize("sabotage", ["blind", "careless"])
def test_check_finds_a_core_that_does_not_compare(sabotage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sabotage == "blind":
        monkeypatch.setattr(Comparison, "add", _blind)
    else:
        monkeypatch.setattr(Divergence, "at_takeover", _careless)
        monkeypatch.setattr(Divergence, "_diverged", lambda *_: None)
    assert any(_finds(seed) for seed in range(300, 340))


def _finds(seed: int) -> bool:
    try:
        runs(noise, range(seed, seed + 1), ("crash-primary",))
    except AssertionError as error:
        return "a mixture, though" in str(error)
    return False
