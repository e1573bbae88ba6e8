"""Every queue and table within its bound, after every input; and empty when nothing is left that they are for."""

from __future__ import annotations

from nfq_failover.core.gate.ack_gate import MAX_HELD
from nfq_failover.core.gate.digests import FLUSH_BYTES, KEEP_BYTES, KEEP_TOTAL
from nfq_failover.core.gate.opening import MAX_DIALLED, MAX_SYNS
from nfq_failover.core.injected import MAX_INJECTED
from nfq_failover.core.pair.session import MAX_OUTGOING, MAX_RETIRED
from nfq_failover.core.shadow.comparison import MAX_PENDING
from nfq_failover.core.shadow.opening import MAX_FORGOTTEN
from nfq_failover.core.tcp.heard import MAX_MARKS
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import MAX_UNSEEN
from nfq_failover.wire.segment import FlowKey

from .host import SimHost

EFFECTS_PER_FLOW, EFFECTS = 100, 100  # of one input: a takeover resends ten segments of each connection
COUNTERS = 200
EVERY = 8  # inputs between two looks at the connections


def check(host: SimHost, carried: int) -> None:
    """All bounds hold after an input that had `carried` effects."""
    node = host.node
    gate, shadow, out = node.gate, node.shadow, node.out
    flows, limit = len(gate.flows) + len(shadow.flows), host.settings.max_connections
    _within(host, "effects of one input", carried, EFFECTS + EFFECTS_PER_FLOW * flows)
    _within(host, "effects left", len(out.effects), 0)
    _within(host, "records left", len(out.records) + sum(len(link.lane) for link in node.links.all), 0)
    _within(host, "actions left", len(node.members.actions) + len(node.members.changes), 0)
    if host.inputs % EVERY:
        return
    _within(host, "counters", len(out.counters), COUNTERS)
    _within(host, "packets that may come back", len(out.injected), MAX_INJECTED)
    _within(host, "primary's table", len(gate.flows), limit)
    handed = len(gate.handovers.flows)
    _within(host, "connections handed over", handed, limit)
    _within(host, "primary's numbers", len(gate.numbers), len(gate.flows) + handed)
    _within(host, "backup's table", len(shadow.flows), limit)
    _within(host, "backup's numbers", len(shadow.numbers), len(shadow.flows))
    _within(host, "forgotten connections", len(shadow.openings.forgotten), MAX_FORGOTTEN)
    _within(host, "unconfirmed connections", len(shadow._unconfirmed), len(shadow.numbers))
    _within(host, "remembered SYNs", len(gate.opening._syns), MAX_SYNS)
    _within(host, "dialled connections", len(gate.opening._dialled), MAX_DIALLED)
    _within(host, "news for the backup", len(gate.news.waiting), 64 + limit)
    for link in node.links.all:
        _within(host, "handshake datagrams", len(link.session._outgoing), MAX_OUTGOING)
        _within(host, "retired sessions", len(link.session._retired), MAX_RETIRED)
    _timers(host, "primary's timers", gate.timers, len(gate.flows) + len(gate.news.waiting))
    _timers(host, "backup's timers", shadow.timers, len(shadow.flows))
    _timers(host, "recovery's timers", shadow.takeover.recovery.timers, len(shadow.numbers))
    digests = gate.digests
    _within(host, "digested streams", len(digests._streams), len(gate.flows) + handed)
    _within(host, "bytes kept for comparing", digests._kept_total, KEEP_TOTAL)
    _within(host, "count of kept bytes", digests._kept_total, sum(s.outbound_bytes for s in digests._streams.values()))
    _timers(host, "digests' timers", digests._timers, 1 + len(gate.flows) + handed)
    _timers(host, "comparisons' timers", shadow.divergence._timers, len(shadow.flows))
    _timers(host, "lengths' timers", shadow.lengths._timers, len(shadow.flows))
    _timers(host, "feeding's timers", shadow.feeding._timers, len(shadow.flows))
    _timers(host, "holding's timers", shadow.holding._timers, len(shadow.flows))
    for stream in digests._streams.values():
        _within(host, "bytes kept of a stream", stream.outbound_bytes, KEEP_BYTES + FLUSH_BYTES)
        _within(host, "digests that are repeated", len(stream.unseen), MAX_UNSEEN + 2)
    for gated in gate.flows.values():
        _within(host, "held acknowledgements", len(gated.acks.held_acks), MAX_HELD)
        _within(host, "retained bytes", gated.retained.inbound.size, gated.retained.inbound.limit)
    for each in shadow.flows.values():
        _within(host, "turns", len(each.inward.order.turns), MAX_MARKS)
        _within(host, "log", each.inward.inbound.size, host.settings.max_log_bytes)
        _within(host, "kept output", each.output.outbound.size, host.settings.max_unacked_bytes)
        inward = each.inward
        held = max(inward.inbound.end, inward.rcv_nxt)
        assert inward.held == held + (held == inward.fin_in), f"{host.name} holds {held}, and says {inward.held}"
        if each.output.compare is not None:
            _within(host, "digests that wait", len(each.output.compare.pending), MAX_PENDING)


def empty(host: SimHost) -> None:
    """All connections have ended long ago, but for those of which our TCP does not know: the client's RST was lost."""
    node = host.node
    known = {flow for flow in host.kernel.established() if _reset(host, flow)}
    for what, size in (
        ("primary's table", len(node.gate.flows.keys() - known)),
        ("primary's numbers", sum(gated.flow not in known for gated in node.gate.numbers.values())),
        ("news for the backup", len(node.gate.news.waiting)),
        ("backup's table", len(node.shadow.flows.keys() - known)),
        ("backup's numbers", sum(shadow.flow not in known for shadow in node.shadow.numbers.values())),
        ("unconfirmed connections", len(node.shadow._unconfirmed)),
    ):
        assert not size, f"{host.name}: {size} left in the {what}"


def _reset(host: SimHost, flow: FlowKey) -> bool:
    client = host.world.clients.get(flow)
    return client is None or client.reset or client.aborted


def _timers(host: SimHost, what: str, timers: TimerQueue[int], keys: int) -> None:
    _within(host, what, len(timers._when), keys + 1000)  # those of ended connections are left to run out
    _within(host, f"heap of the {what}", len(timers._heap), 64 * (len(timers._when) + 16))


def _within(host: SimHost, what: str, size: int, bound: int) -> None:
    assert size <= bound, f"{host.name}: {what}: {size}, beyond the bound of {bound}"
