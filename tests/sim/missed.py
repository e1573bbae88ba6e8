"""What the replicas' applications have missed of their clients: no more than they may, and all of it is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nfq_failover.core.events import OperatorCommand
from nfq_failover.core.gate.connection import AWAITED, GIVEN_UP
from nfq_failover.core.mishaps import Mishap
from nfq_failover.wire.segment import FlowKey

from .host import SimHost

if TYPE_CHECKING:
    from .world import SimWorld

JUDGED = ("outrun", "replica-hangs")
"""Kinds in which both hosts live, and one is only slow."""


def declare_whole(world: SimWorld) -> None:
    """An operator has seen to the replica's application, if it has missed input. Programs that were started just before
    that, on one host or on both, are part of what is said on either."""
    if world.scenario.limits.slow_backup == "drop":
        _said(world)
    seed, hosts = world.scenario.seed, world.hosts
    started = [host for bit, host in enumerate(hosts) if seed >> bit & 1]
    for host in started:
        host.application.replace()
    says = hosts[(seed >> 2) % len(hosts)] if started else None
    for host in world.hosts:
        assert not host.node.shadow.wholeness.missed or _may_miss(world), (
            f"{host.name} was only slow, and has missed input: {_why(world)}"
        )
        if host is says or host.node.gate.missed.reason or host.node.shadow.wholeness.missed:
            host.feed(OperatorCommand("replica-is-whole"))
        host.application.remembers()


def _may_miss(world: SimWorld) -> bool:
    """Whether an application may miss what clients have sent. One that is only late may not, since it comes on in
    time, and its host or the primary has it all; unless the table had no room, or its replica was to be given up, or
    the port was used again before it had come on: the primary keeps nothing for the earlier connection."""
    scenario = world.scenario
    if scenario.kind not in JUDGED or scenario.limits.max_connections:
        return True
    again = {plan.port for plan in scenario.connections if plan.again is not None}
    first = [each for _, each in _missed(world) if "has missed" not in each.reason]
    reasons = AWAITED | {"replaced by a new connection"}
    return bool(first) and all(
        (each.reason == GIVEN_UP and scenario.limits.slow_backup == "drop")
        or (each.reason in reasons and each.flow is not None and each.flow[1] in again)
        for each in first
    )


def _missed(world: SimWorld) -> Iterator[tuple[SimHost, Mishap]]:
    for host in world.hosts:
        for each in host.node.out.mishaps.latest():
            if each.what.startswith("input missed"):
                yield host, each


def _why(world: SimWorld) -> list[str]:
    return [f"{host.name}: {each.what}: {each.reason} ({each.count}, {each.flow})" for host, each in _missed(world)]


def _said(world: SimWorld) -> None:
    """Replicas are given up: with a warning for each, and nothing is called whole that lacks input."""
    for host in world.hosts:
        warned = sum(log.level == "warning" and log.fields.get("reason") == GIVEN_UP for _, log in host.logs)
        dropped = host.node.out.counters["pace-dropped"]
        assert warned >= dropped, f"{host.name} has given up {dropped} replicas, and has warned of {warned}"
    owner = world.owner
    if world.scenario.kind in JUDGED and owner is not None and not owner.node.gate.missed.reason:
        for other in world.others(owner):
            lacking = list(_lacking(world, owner, other))
            assert not lacking, (
                f"{other.name}'s application lacks what {owner.name}'s has, and nobody says so: {lacking}"
            )


def _lacking(world: SimWorld, owner: SimHost, other: SimHost) -> Iterator[tuple[FlowKey, int, int]]:
    """Connections that have ended, of whose client the one's application has read more than the other's."""
    for flow, apps in owner.apps.items():
        client = world.clients.get(flow)
        if client is None or not client.over or client.aborted:
            continue
        read, *_ = [bytes(app.read) for app in reversed(apps)]
        theirs = [bytes(app.read) for app in other.apps.get(flow, ())]
        if read not in theirs:
            yield flow, len(read), max((len(each) for each in theirs if read.startswith(each)), default=0)
