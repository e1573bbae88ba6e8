"""What a node shows of itself: one typed value, and the JSON object that the control socket makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address

from nfq_failover import __version__
from nfq_failover.core import bounds
from nfq_failover.core.concerns import Concerns, Weight
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.history import History
from nfq_failover.core.mishaps import Mishaps
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.health import HealthStatus
from nfq_failover.core.pair.link import Link, Links
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.monitor import HeartbeatStatistics
from nfq_failover.core.pair.pact import PactStatus
from nfq_failover.core.pair.roles import State
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.shadow.takeover import LATE
from nfq_failover.wire.segment import FlowKey

DIFFERS = "the two servers' output differs, and the difference has not ended: a takeover now would reset it"
FED = " (its replica goes on getting what the client sends)"
_CLAIMING = frozenset((State.PROTECTED, State.SHADOWING))


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection. Its ends are `address:port`; `reason` says why it is as it is.

    `lag_bytes`: taken by this host's TCP (primary) or logged (backup), and not confirmed. `lag_out_bytes`: sent by the
    primary's server, and not by the replica, for all that this host knows; `lag_ms`: how late the replica was when it
    was last looked at (primary). `slowed`: what the server sends waits for the replica.
    """

    client: str
    server: str
    protected: bool
    reason: str
    logged_bytes: int = 0
    confirmed_bytes: int = 0
    lag_bytes: int = 0
    differences: int = 0
    lag_out_bytes: int = 0
    lag_ms: int = 0
    slowed: bool = False

    def as_dict(self) -> dict[str, object]:
        """The JSON object. There may be 20,000 of them, so this is written out."""
        return {
            "client": self.client,
            "server": self.server,
            "protected": self.protected,
            "reason": self.reason,
            "logged_bytes": self.logged_bytes,
            "confirmed_bytes": self.confirmed_bytes,
            "lag_bytes": self.lag_bytes,
            "differences": self.differences,
            "lag_out_bytes": self.lag_out_bytes,
            "lag_ms": self.lag_ms,
            "slowed": self.slowed,
        }


@dataclass(frozen=True, slots=True)
class ConcernStatus:
    """One thing that is not as it should be. `host`: the peer that says so of itself, empty for this host."""

    code: str
    weight: str
    what: str
    cure: str
    host: str
    for_s: float


@dataclass(frozen=True, slots=True)
class MishapStatus:
    """What went wrong lately, `count` times for this reason, and at last `ago_s` seconds ago with this client."""

    what: str
    reason: str
    client: str
    count: int
    ago_s: float


@dataclass(frozen=True, slots=True)
class HappeningStatus:
    """What this host was from `ago_s` seconds ago on, until the next one."""

    role: str
    state: str
    epoch: int
    reason: str
    ago_s: float


@dataclass(frozen=True, slots=True)
class TakeoverStatus:
    """The last takeover of this host: `connections` went on, `reset` did not. `phases`: (what had been reached, how
    many milliseconds after the peer was heard for the last time) in the order of time."""

    epoch: int
    connections: int
    reset: int
    phases: list[tuple[str, float | None]]
    ago_s: float


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of both hosts; empty: not told."""

    own: str
    peer: str


@dataclass(frozen=True, slots=True)
class PaceStatus:
    """How far the replicas are behind, all together: how late the latest was when they were last looked at, how many
    connections are slowed, and how many were let go and are not back. `wait_ms`: how late the clients' bytes of the
    last seconds were acknowledged on average, because of the backup. `fetched_percent`: of the clients' bytes in the
    last seconds, what this host had to fetch from the primary."""

    worst_ms: int
    slowed: int
    let_go: int
    wait_ms: float
    fetched_percent: float


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The sync channel to one peer. `session`: there is one; `lost`: no living heartbeat for the detection time.
    `said`: the state that the peer has said last, empty for none."""

    name: str
    address: str
    session: bool
    lost: bool
    said: str
    heartbeat: HeartbeatStatistics


@dataclass(frozen=True, slots=True)
class Status:
    """A node at one moment. The names of the fields are the keys that operators read, in this order.

    `state` is what may be relied on: `degraded` or `unprotected`, with the reason, where the pair has found together
    (`membership`) and something is wrong that a takeover needs.
    """

    name: str
    alive: bool
    role: str
    state: str
    reason: str
    epoch: int
    generation: int
    witness: PactStatus | None
    peer: LinkStatus
    connections: list[ConnectionStatus]
    protected_connections: int
    pace: PaceStatus
    application: HealthStatus
    bounds: dict[str, dict[str, int]]
    counters: dict[str, int]
    membership: str
    concerns: list[ConcernStatus]
    mishaps: list[MishapStatus]
    versions: Versions
    happenings: list[HappeningStatus]
    takeover: TakeoverStatus | None

    def as_dict(self) -> dict[str, object]:
        """The JSON object."""
        return _members(self) | {
            "witness": None if self.witness is None else _members(self.witness),
            "pace": _members(self.pace),
            "peer": _members(self.peer) | {"heartbeat": _members(self.peer.heartbeat)},
            "connections": [connection.as_dict() for connection in self.connections],
            "application": _members(self.application),
            "concerns": [_members(each) for each in self.concerns],
            "mishaps": [_members(each) for each in self.mishaps],
            "versions": _members(self.versions),
            "happenings": [_members(each) for each in self.happenings],
            "takeover": None if self.takeover is None else _members(self.takeover),
        }


def _members(
    value: Status
    | PaceStatus
    | LinkStatus
    | HeartbeatStatistics
    | PactStatus
    | HealthStatus
    | ConcernStatus
    | MishapStatus
    | Versions
    | HappeningStatus
    | TakeoverStatus,
) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def end_names(flow: FlowKey) -> tuple[str, str]:
    """(client, server) as address:port."""
    client, client_port, server, server_port = flow
    return f"{ip_address(client)}:{client_port}", f"{ip_address(server)}:{server_port}"


def standing(members: Membership, concerns: Concerns) -> tuple[str, str]:
    """What may be relied on, and why it is no more than that."""
    worst = concerns.worst
    if worst is None or worst.concern.weight < Weight.DEGRADED or members.state not in _CLAIMING:
        return members.state.label, members.reason
    return worst.concern.weight.label, f"{worst.host}: {worst.concern.what}" if worst.host else worst.concern.what


def concerns_of(concerns: Concerns, now: float) -> list[ConcernStatus]:
    """All that is wrong here and, as far as it has told us, with the peer; the heaviest first."""
    return [
        ConcernStatus(
            each.concern.code,
            each.concern.weight.label,
            each.concern.what,
            each.concern.cure,
            each.host,
            round(now - each.since, 1),
        )
        for each in concerns.standing()
    ]


def mishaps_of(mishaps: Mishaps, now: float) -> list[MishapStatus]:
    """What went wrong lately, the latest first."""
    return [
        MishapStatus(
            each.what,
            each.reason,
            "" if each.flow is None else end_names(each.flow)[0],
            each.count,
            round(now - each.at, 1),
        )
        for each in mishaps.latest()
    ]


def happenings_of(history: History, now: float) -> list[HappeningStatus]:
    """What this host has been lately, the latest first; the first one is what it is."""
    return [
        HappeningStatus(each.role, each.state, each.epoch, each.reason, round(now - each.at, 1))
        for each in reversed(history.happenings)
    ]


def takeover_of(history: History, now: float) -> TakeoverStatus | None:
    """The last takeover of this host; None if there was none since its daemon's start."""
    took = history.takeover
    if took is None:
        return None
    phases = [(phase.reached, phase.after_ms) for phase in took.phases]
    return TakeoverStatus(took.epoch, took.going, took.reset, phases, round(now - took.at, 1))


def connections_of(
    gate: GateTable, shadow: ShadowTable, denied: str = "", hindered: Mapping[bytes, str] | None = None
) -> list[ConnectionStatus]:
    """All living connections of a host: those of its own service, those that it has handed over, those that it shadows.

    `denied`: why none of them is to be called protected; `hindered`: why those of a client are not.
    """
    rows = [*_gated(gate), *_handed_over(gate), *_shadowed(shadow)]
    if hindered:
        reasons = {str(ip_address(client)): reason for client, reason in hindered.items()}
        for number, row in enumerate(rows):
            reason = reasons.get(row.client.rpartition(":")[0]) if row.protected else None
            if reason is not None:
                rows[number] = replace(row, protected=False, reason=reason)
    if denied:
        rows = [replace(row, protected=False, reason=denied) if row.protected else row for row in rows]
    return rows


def protected_of(rows: list[ConnectionStatus], gate: GateTable) -> int:
    """How many connections of this host's own service are protected."""
    return sum(row.protected for row in rows[: sum(each.living for each in gate.flows.values())])


def _gated(gate: GateTable) -> Iterable[ConnectionStatus]:
    for connection in gate.flows.values():
        if not connection.living:
            continue
        protected, reason = connection.state is Gate.PROTECTED, connection.reason
        if connection.fed:
            reason += FED
        elif (protected or connection.awaited) and gate.digests.open(connection.conn):
            protected, reason = False, DIFFERS
        yield ConnectionStatus(
            *end_names(connection.flow),
            protected,
            reason,
            connection.retained.inbound.size,
            connection.acks.confirmed,
            max(connection.own.rcv_nxt - connection.acks.confirmed, 0) if connection.state is Gate.PROTECTED else 0,
            gate.digests.differences(connection.conn),
            connection.distance.bytes_out if protected else 0,
            round(connection.distance.latest_s * 1000) if protected else 0,
            connection.distance.slow,
        )


def _handed_over(gate: GateTable) -> Iterable[ConnectionStatus]:
    for flow, handed in gate.handovers.flows.items():
        yield ConnectionStatus(*end_names(flow), False, handed.reason)


def _shadowed(shadow: ShadowTable) -> Iterable[ConnectionStatus]:
    for connection in shadow.flows.values():
        if not connection.living:
            continue
        inward, compare, reason = connection.inward, connection.output.compare, connection.reason
        if connection.state is Shadow.ACTIVE:
            how = "handed over by the primary" if connection.handed else "taken over"
            reason = f"{how}: an open connection survives one failure"
        elif connection.state is Shadow.OPENING:
            reason = "opening"
        elif connection.state is Shadow.FED:
            reason += FED
        elif connection.state is Shadow.SHADOW and connection.late:
            reason = LATE
        elif connection.state is Shadow.SHADOW and compare is not None and not compare.in_step:
            reason = DIFFERS
        yield ConnectionStatus(
            *end_names(connection.flow),
            connection.state is Shadow.SHADOW and not reason,
            reason,
            inward.inbound.size,
            inward.held,
            max(inward.held - inward.rcv_nxt, 0),
            0 if compare is None else compare.differences,
        )


def pace_status(gate: GateTable, shadow: ShadowTable) -> PaceStatus:
    """The pace of all replicas, of this host's connections and of those that it shadows."""
    pace = gate.pace
    share = shadow.repair.tap.share
    wait_ms = round(pace.brake.wait_s * 1000, 1)
    return PaceStatus(round(pace.worst_s * 1000), pace.slowing.count, pace.let_go_count, wait_ms, round(100 * share, 1))


def link_status(link: Link, now: float) -> LinkStatus:
    """The sync channel to one peer."""
    peer, monitor = link.peer, link.view.monitor
    address = f"{peer.address}:{peer.port}"
    said = "" if link.view.state is None else link.view.state.label
    session = link.session.established
    return LinkStatus(peer.name, address, session, monitor.lost(now), said, monitor.statistics(now))


def status_of(
    name: str,
    members: Membership,
    links: Links,
    gate: GateTable,
    shadow: ShadowTable,
    history: History,
    out: Outbox,
    now: float,
) -> Status:
    """The status of the host `name`."""
    state, reason = standing(members, out.concerns)
    worst = out.concerns.worst
    denied = worst if worst is not None and worst.concern.weight is Weight.UNPROTECTED else None
    what = "" if denied is None else denied.concern.what
    connections = connections_of(gate, shadow, what, out.concerns.hindered())
    return Status(
        name=name,
        alive=True,
        role=members.role.name.lower(),
        state=state,
        reason=reason,
        membership=members.state.label,
        versions=Versions(__version__, (links.protector.told.facts or {}).get("version", "")),
        happenings=happenings_of(history, now),
        takeover=takeover_of(history, now),
        concerns=concerns_of(out.concerns, now),
        mishaps=mishaps_of(out.mishaps, now),
        epoch=members.epoch,
        generation=members.generation,
        witness=members.pact.status(),
        peer=link_status(links.protector, now),
        connections=connections,
        protected_connections=protected_of(connections, gate),
        pace=pace_status(gate, shadow),
        application=members.health.status(),
        bounds=bounds.gauges(gate, shadow, [link.session for link in links.all], out.counters),
        counters=dict(sorted(out.counters.items())),
    )
