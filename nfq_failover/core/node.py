"""One host of the service: composes links, membership and the two sides of the connections, and decides on packets.

The contract of the loop is one input, then drain, then arm one timer: `handle(event, now)`, then `poll_effect()` until
it returns None, then `poll_timeout()`; a node is changed by nothing else. It does no I/O, reads no clock and draws no
randomness: `rng` is handed in.
"""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.core import restart
from nfq_failover.core.actions import Actions
from nfq_failover.core.application import Application
from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.core.events import (
    ClockRead,
    CopiesLost,
    DatagramReceived,
    DatagramsLost,
    Effect,
    EpochStored,
    Event,
    FenceFinished,
    FlowsGone,
    FlowsListed,
    FrameCopied,
    HealthChecked,
    HostChecked,
    HostFacts,
    LinkChecked,
    LinkKnown,
    ListenersSeen,
    OperatorCommand,
    PacketQueued,
    PacketsWait,
    Profile,
    Queue,
    QueueOverrun,
    ReachChecked,
    RulesApplied,
    RulesLost,
    SaveCheckpoint,
    SettingsChanged,
    StrangerHeard,
    TimerFired,
    Undelivered,
    WitnessAnswered,
)
from nfq_failover.core.gate.table import GateTable
from nfq_failover.core.history import History
from nfq_failover.core.leftovers import LeftoverSweep
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.overruns import Overruns
from nfq_failover.core.pair.agreement import Agreement, facts_of
from nfq_failover.core.pair.inquiry import Answering
from nfq_failover.core.pair.link import Link, Links
from nfq_failover.core.pair.membership import Membership
from nfq_failover.core.pair.roles import Role, State
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.pair.told import Telling
from nfq_failover.core.presence import Presence
from nfq_failover.core.rules import Rules
from nfq_failover.core.settings import Settings
from nfq_failover.core.setup import Setup
from nfq_failover.core.shadow import path_mtu
from nfq_failover.core.shadow.checkpoint import Checkpoint, CheckpointWriter
from nfq_failover.core.shadow.table import ShadowTable
from nfq_failover.core.status import Status, status_of
from nfq_failover.core.tap_probe import TapProbe
from nfq_failover.core.timers import Ticks
from nfq_failover.errors import MalformedSegment
from nfq_failover.wire.datagram import is_question
from nfq_failover.wire.icmp import is_icmp
from nfq_failover.wire.records import ProbeAsked, Record, Towards
from nfq_failover.wire.segment import Segment

_SHADOWING = frozenset((State.SHADOWING, State.CHECKING, State.ASKING, State.FENCING))
_SERVING = frozenset((State.UNPROTECTED, State.ARMING, State.PROTECTED, State.BACKUP_LOST))
_NEVER_ACTS = Concern(
    "never-acts",
    Weight.UNPROTECTED,
    "this host has neither a fence nor a witness: it takes over from a primary that yields, and not from one that dies",
    "configure 'fence' or [witness]: docs/operate/fencing.md",
    Part.BACKUP,
)
_RESUMABLE = frozenset((State.UNPROTECTED, State.ARMING))  # serving, and no connection was protected yet


class Node:
    """A host. `stored_epoch` and `served` come from the epoch store ((0, False) on the first start).

    `protector` is the link to the host that protects this host's connections, `shadowed` the link to the host whose
    connections this one shadows; in a pair both are the same. The membership is that of a pair, with the protector.
    """

    def __init__(
        self,
        settings: Settings,
        rng: Callable[[int], bytes],
        stored_epoch: int,
        served: bool,
        now: float,
        checkpoint: CheckpointWriter | None = None,
        earlier: Checkpoint | None = None,
    ) -> None:
        """`checkpoint`: writes what the daemon's next life will be told, None to tell it nothing. `earlier`: what an
        earlier life on this boot has left."""
        self.settings = settings
        self.out = Outbox()
        self.history = History()
        self.links = Links(settings, rng, self.out, now)
        self.protector, self.shadowed = self.links.protector, self.links.shadowed
        self.sharing = Sharing(settings)
        self.members = Membership(settings, self.protector.view, stored_epoch, served, now)
        self.gate = GateTable(settings, self.out.towards(self.protector.lane), served or stored_epoch == 0)
        self.shadow = ShadowTable(settings, self.out.towards(self.shadowed.lane), checkpoint)
        self.overruns = Overruns(self.out)
        self.sweep = LeftoverSweep(self.out, self.gate, self.shadow, self.sharing)
        self.rules = Rules(self.out, self.gate, self.shadow, self.sharing, restarts=checkpoint is not None)
        self.telling = Telling(self.out.concerns, facts_of(settings, self.sharing))
        self.agreement = Agreement(settings, self.protector.peer.name, self.protector.told, self.out)
        self.agreement.set_own(self.telling.facts)
        self.application = Application()
        self.presence = Presence(
            *(settings, self.out, self.application, self.protector.told, self.telling),
            *(self.members, self.gate, self.shadow),
        )
        if not settings.may_act:
            self.out.concerns.raised("settings", _NEVER_ACTS, now)
        self.setup = Setup(
            *(settings, self.out, self.sharing, self.telling, self.agreement, self.protector),
            *(self.members, self.gate, self.shadow, self.rules),
        )
        self.actions = Actions(
            *(settings, self.out, self.members, self.links, self.history),
            *(self.gate, self.shadow, self.rules, self.application, checkpoint),
        )
        self._tap_probe = TapProbe(settings, self.out, self.members, self.shadowed, self.shadow.repair.tap, rng)
        self._answering = Answering(settings, self.telling, self.out)
        tick_s = min(settings.heartbeat_interval_ms, 50) / 2000
        self._ticks = Ticks(tick_s, settings.detection_ms / 1000, now)
        self.checkpoint = checkpoint
        if earlier is not None:
            restart.restore(earlier, self.members, self.gate, self.shadow, served, now)
            self.actions.carry_out(now)
        self._save_checkpoint()

    # ------------------------------------------------------------------------------------ the three calls

    def handle(self, event: Event, now: float) -> None:
        """Take one input."""
        try:
            self._handle(event, now)
        finally:
            self._save_checkpoint()

    def _handle(self, event: Event, now: float) -> None:
        if now > self.members.lease_until:
            self.members.expire(now)
            self.actions.carry_out(now)
        if isinstance(event, PacketQueued):
            if self._ticks.paused(now):
                self._timer(now)  # this host was paused: doubt comes before the first packet
            self._packet(event, now)
        elif isinstance(event, DatagramReceived):
            self._datagram(event, now)
        elif isinstance(event, TimerFired):
            if self.tick_due(now):
                self._timer(now)
            else:
                self.links.on_timer(now)
                self._connection_timers(now)
        elif isinstance(event, PacketsWait):
            self.shadow.backlog.found(event)
        elif isinstance(event, FrameCopied):
            if self.members.role is Role.PRIMARY:
                self.gate.copied(event, now)
        else:
            self._answer(event, now)
        if self.members.actions or self.members.changes or isinstance(event, HealthChecked):
            self.actions.carry_out(now)  # and publish: the health is in the heartbeat

    def poll_effect(self) -> Effect | None:
        """Take out the next thing to do; None when there is nothing more before the next input."""
        effects = self.out.effects
        if not effects:
            self.shadow.flush()
            for link in self.links.all:
                if link.lane:
                    link.seal(self.members.epoch)
        return effects.popleft() if effects else None

    def poll_timeout(self) -> float:
        """When to send `TimerFired` at the latest."""
        earliest = min(self._ticks.due_at, self.links.poll_timeout())
        due = self.shadow.poll_timeout()
        if due is not None and due < earliest:
            earliest = due
        if self.members.state is not State.DOUBT:  # in doubt nothing of it is done, however long it has been due
            due = self.gate.poll_timeout()
            if due is not None and due < earliest:
                earliest = due
        return earliest

    def tick_due(self, now: float) -> bool:
        """Whether `TimerFired` is a tick at this time, at which everything is looked at; between two ticks it is for
        connections and links alone."""
        return now >= self._ticks.due_at

    @property
    def wants_copies(self) -> bool:
        """Whether copies of inbound packets (`FrameCopied`) should be read at once; otherwise they can wait."""
        return self.gate.copies.wanted

    @property
    def wants_look(self) -> bool:
        """Whether the application's sockets should be looked at at once (`ListenersSeen`)."""
        return self.shadow.wholeness.wants_look or self.gate.missed.wants_look or self.application.unsettled

    @property
    def clients(self) -> tuple[bytes, ...]:
        """The addresses of all clients whose connections this host knows; each once."""
        return tuple({flow[0]: None for table in (self.gate.flows, self.shadow.flows) for flow in table})

    # ------------------------------------------------------------------------------------ packets

    def _packet(self, event: PacketQueued, now: float) -> None:
        out = self.out
        if event.queue is Queue.IN and is_icmp(event.packet):
            path_mtu.judge(event, self.shadow.flows, self.members.state in _SERVING, out)
            return
        try:
            seg = Segment(event.packet)
        except MalformedSegment as error:
            # Our rules queue the service's TCP alone, and nothing of that is to be let through untranslated.
            out.drop(event.queue, event.packet_id, f"malformed-{error.reason}")
            return
        if self.members.state is State.DOUBT:
            out.drop(event.queue, event.packet_id, "in-doubt")  # of a connection taken over earlier, too
        elif event.queue is Queue.IN:
            self._inbound(event, seg, now)
        elif event.checksum_pending:  # our TCP leaves its checksums to the card; what we build has one
            self._outbound(event, seg, now)
        elif out.injected.knows(event.packet):
            self._own_packet(event, seg, now)
        elif not event.gso and not seg.checksum_ok():  # a super-segment that another program has changed has none yet
            out.drop(event.queue, event.packet_id, "bad-checksum")  # it is not our TCP's: a probe, or a forgery
        else:
            self._outbound(event, seg, now)

    def _own_packet(self, event: PacketQueued, seg: Segment, now: float) -> None:
        """Let a packet go on that the daemon has sent; what has waited before it in the queue may be newer. A SYN-ACK
        that our TCP repeats looks like it, but for what was changed in the one that was sent."""
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        gated, shadow = self.gate.flows.get(flow), self.shadow.flows.get(flow)
        if seg.flags & SYN and gated is not None and self.gate.opening.repeats(event, seg, gated):
            return
        self.out.counters["own-packet-queued"] += 1
        self.out.injected.returned(now)
        renewed = False
        if seg.flags & (SYN | RST | ACK) == ACK:
            if shadow is not None:
                renewed = shadow.map is not None and shadow.resending.renew(shadow.map, seg)
            elif gated is not None:
                renewed = gated.acks.renew(seg)
        if renewed:
            seg.seal()
        self.out.accept(event.queue, event.packet_id, seg.buf if renewed else None)

    def _inbound(self, event: PacketQueued, seg: Segment, now: float) -> None:
        connection = self.shadow.flows.get((seg.src, seg.sport, seg.dst, seg.dport))
        anew = seg.flags & (SYN | ACK | RST) == SYN
        if connection is not None and not (anew and self.shadow.gives_way(connection, seg)):
            self.shadow.segments.inbound(event, seg, connection, now)
            if self.checkpoint is not None and connection.heard:
                self.checkpoint.review(connection)
        elif self.members.state not in _SERVING:
            self.out.drop(event.queue, event.packet_id, "not-serving")
            if not seg.sport:
                self._tap_probe.came(seg, now)
            if self.shadow.strays.flows:
                self.shadow.strays.heard((seg.src, seg.sport, seg.dst, seg.dport), seg)
        elif seg.flags & SYN and not seg.flags & RST:
            self.shadow.resets.forget((seg.src, seg.sport, seg.dst, seg.dport))
            self.gate.segments.inbound_syn(event, seg)  # from the port of one that was taken over, too
        else:
            self.out.accept(event.queue, event.packet_id)

    def _outbound(self, event: PacketQueued, seg: Segment, now: float) -> None:
        connection = self.shadow.flows.get((seg.dst, seg.dport, seg.src, seg.sport))
        if connection is not None and self.shadow.segments.outbound(event, seg, connection, now):
            if self.checkpoint is not None and connection.heard:
                self.checkpoint.review(connection)
            return
        if self.members.state not in _SERVING:
            self.out.drop(event.queue, event.packet_id, "not-serving")
            if self.members.role is Role.BACKUP:
                self.out.reset_unknown(seg)
            return
        if not (self.shadow.resets.size and self.sweep.speaks(event, seg)):
            self.gate.segments.outbound(event, seg, now)

    # ------------------------------------------------------------------------------------ the sync channel

    def _datagram(self, event: DatagramReceived, now: float) -> None:
        found = self.links.receive(event.source, event.data, now)
        if found is None:
            return
        link, received = found
        paired = link.view is self.members.peer
        if received.session_started:
            if paired:
                self.members.session_started()
                self.agreement.session_started(now)
                self.setup.follow_agreement(now)
            if link is self.shadowed:
                self.shadow.handovers.peer_restarted()
            self.telling.soon()
            self.links.publish(self.members)
        if received.heartbeat is not None:
            if paired:
                self.members.heard(now)
            self.links.publish(self.members)
        refused = ""
        if self._ticks.paused(now):
            # This host was paused. The records were waiting, and news of a takeover may wait behind them: nothing may
            # leave because of them. What matters will be repeated.
            refused = "record-after-pause"
        elif received.epoch < self.members.epoch:
            refused = "record-of-old-epoch"  # held back on the way, or overtaken
        for record in received.records:
            if record.towards is Towards.HOST:
                if isinstance(record, ProbeAsked):
                    self._tap_probe.asked(record, now)
                link.told.take(record, now)  # it is true of the host in any epoch and state
                self.setup.review(now)
            elif refused:
                self.out.counters[refused] += 1
            else:
                self._record(link, record, now)
        link.send_handshake()

    def _record(self, link: Link, record: Record, now: float) -> None:
        if self.members.state is State.DOUBT:
            return  # nothing may leave, nor any held acknowledgement: what matters will be repeated
        if self.members.role is Role.PRIMARY:
            if link is self.protector:
                self.gate.take(record, now)
                if self.gate.findings:
                    self._judge(now)  # what follows in the datagram must not leave once this host yields
        elif self.members.state in _SHADOWING and link is self.shadowed:
            self.shadow.take(record, now)

    def _judge(self, now: float) -> None:
        """Act on what was found of our application. If nothing can be done now, the backup's next answer finds it."""
        # Ends: each turn takes one out; what it leads to finds nothing more.
        while self.gate.findings:
            found = self.gate.findings.popleft()
            if not found.alone:
                self.members.application_failed(found.reason, now)
            elif self.members.backup_can_go_on(now):
                self.gate.hand_over(found.connection, found.reason, now)

    def republish(self) -> None:
        """Say our state once more, since the heartbeat sender has forgotten what to say."""
        self.links.republish(self.members)

    def count(self, counter: str) -> None:
        """Count something that was dealt with before it could become an event."""
        self.out.counters[counter] += 1

    # ------------------------------------------------------------------------------------ time and answers

    def _timer(self, now: float) -> None:
        self.out.injected.on_timer(self._ticks.paused(now), now)
        self._ticks.took(now)
        self.overruns.on_timer(now)
        self.links.on_timer(now)
        self.presence.on_timer(now)
        self.setup.review(now)
        self.members.tick(now)
        if self.members.actions:
            self.actions.carry_out(now)
        self._connection_timers(now)
        self.shadow.wholeness.review(now)
        if self.members.state is State.SHADOWING:
            self.shadow.wholeness.on_timer(now)
        self.shadow.handovers.on_timer(self.members.state is State.SHADOWING and not self.shadowed.view.lost(now), now)
        self.sweep.on_timer(self.checkpoint is not None and self.members.state in _SERVING, now)
        self._tap_probe.on_timer(now)
        self.rules.on_timer(self.members.role)
        self.links.tell(self.telling.due(now))
        self.actions.observe(now)

    def _connection_timers(self, now: float) -> None:
        """What is due of the connections: an owed ACK or a digest is so every few milliseconds."""
        if self.members.state is not State.DOUBT:
            self.gate.on_timer(now)
            self.shadow.on_timer(now)
        else:
            self.shadow.out.withhold(True)
            self.shadow.on_timer(now)
            self.shadow.out.withhold(False)

    def _answer(self, event: Event, now: float) -> None:
        members = self.members
        if isinstance(event, LinkChecked):
            members.link_checked(event.ok, event.detail)
        elif isinstance(event, ReachChecked):
            wrong = event.concern
            members.reached(wrong is None, "" if wrong is None else wrong.what, now)
            self.out.concerns.replace("reach", () if wrong is None else (wrong,), now)
        elif isinstance(event, FenceFinished):
            members.fenced(event.ok, event.detail)
        elif isinstance(event, WitnessAnswered):
            members.witnessed(event.number, event.granted, event.detail)
        elif isinstance(event, EpochStored):
            members.epoch_stored(event.epoch, event.ok, event.detail)
        elif isinstance(event, RulesApplied):
            self._rules_applied(event)
        elif isinstance(event, FlowsGone):
            self.gate.flows_gone(event.flows, now)
            self.gate.flows_ended(event.ended)
            self.shadow.flows_gone(event.flows, now)
        elif isinstance(event, FlowsListed):
            if self.sweep.listed(event.flows, event.queued) and members.role is Role.PRIMARY:
                self.rules.again(members.role)
        elif isinstance(event, HealthChecked):
            self.presence.checked(event, now)
        elif isinstance(event, CopiesLost):
            self.out.counters["copies-lost"] += event.count
            self.out.log("warning", "inbound copies lost", count=event.count)
        elif isinstance(event, DatagramsLost):
            self.out.counters["datagrams-lost"] += event.count
            self.out.log("error", "sync datagrams lost: the socket's buffer was full", count=event.count)
        elif isinstance(event, QueueOverrun):
            self.overruns.found(event, now)
        elif isinstance(event, RulesLost):
            self.out.counters["rules-lost"] += 1
            self.out.log("error", "firewall rules lost", detail=event.detail)
        elif isinstance(event, StrangerHeard) and is_question(event.data):
            self._answering.asked(event, now)
        elif isinstance(event, StrangerHeard | Undelivered):
            self.links.clue(event, now)
        elif isinstance(event, HostFacts):
            self.setup.host_is(event.facts)
        elif isinstance(event, ClockRead):
            self.telling.clock_is(event.ahead_s)
        elif isinstance(event, HostChecked):
            self.out.concerns.replace("host", event.concerns, now)
        elif isinstance(event, ListenersSeen):
            self.presence.seen(event, now)
        elif isinstance(event, LinkKnown):
            self.telling.on_link(event.hardware, event.neighbours)
        elif isinstance(event, OperatorCommand):
            self._operator(event, now)
        elif isinstance(event, SettingsChanged):
            self.setup.follow_settings(event.settings, now)

    def _operator(self, event: OperatorCommand, now: float) -> None:
        if event.name == "claim":
            self.out.log("warning", "operator", command="claim", result=self.members.claim())
        elif event.name == "replica-is-whole":
            self.out.log("warning", "operator", command=event.name)
            self.shadow.wholeness.said(now)
            if self.members.role is Role.PRIMARY:
                self.gate.missed.said(now)
        elif event.name == "shutdown" and self.members.state is not State.LEAVING:
            if self.members.role is not Role.PRIMARY:
                self.shadow.handovers.cut("this host leaves", now)
            self.members.stop()

    def _rules_applied(self, event: RulesApplied) -> None:
        if not event.ok:
            self.out.log("error", "firewall rules not applied", profile=event.profile.value, detail=event.detail)
            return
        if event.profile is Profile.PRIMARY:
            self.members.rules_applied()
        self.setup.rules_applied(event.ports)

    def _save_checkpoint(self) -> None:
        """Write down, before anything else is done, what the daemon's next life must know."""
        checkpoint, members = self.checkpoint, self.members
        if checkpoint is None:
            return
        checkpoint.note(members.state in _RESUMABLE, members.epoch, self.gate.opening.adopts_unknown)
        if checkpoint.writes:
            self.out.effects.appendleft(SaveCheckpoint(tuple(checkpoint.writes)))
            checkpoint.writes.clear()

    def status(self, now: float) -> Status:
        """What people and other programs are shown."""
        return status_of(
            *(self.settings.name, self.members, self.links, self.gate, self.shadow, self.history, self.out), now
        )
