"""A server host: model kernel, firewall rules, and a shell that carries the effects of a real `Node`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from nfq_failover.constants import ACK, FIN, RST, SYN
from nfq_failover.core.events import (
    ApplyRules,
    CheckLink,
    DatagramReceived,
    Effect,
    EpochStored,
    Event,
    Fence,
    FlowsGone,
    FrameCopied,
    Inject,
    LinkChecked,
    Log,
    OwnAddress,
    PacketQueued,
    Profile,
    PublishHeartbeat,
    QueryFlows,
    Queue,
    RulesApplied,
    SendDatagram,
    StoreEpoch,
    TimerFired,
    Verdict,
)
from nfq_failover.core.heartbeat import HeartbeatTemplate
from nfq_failover.core.node import Node
from nfq_failover.core.settings import Settings
from nfq_failover.wire.segment import FlowKey, Segment

from .apps import Server
from .kernel import Kernel, cut_super_segment
from .scenario import DOWNLOAD, ECHO, UPLOAD
from .tcp import MTU, Personality, Tcp

if TYPE_CHECKING:
    from .world import World

STEP_S = 0.00002  # from the stack to the queue


class Host:
    """One of the two servers, through its lives."""

    def __init__(self, world: World, settings: Settings, who: Callable[[], Personality], app_delay: float) -> None:
        self.world, self.settings, self.clock = world, settings, world.clock
        self.name = settings.name
        self._who, self.app_delay = who, app_delay
        self.epoch, self.served = 0, False
        self.up = False
        self.life = 0
        self.paused_until = 0.0
        self.hung_until = 0.0
        self.apps: dict[FlowKey, list[Server]] = {}
        self.logs: list[tuple[float, Log]] = []

    def boot(self, listen_after: float = 0.0) -> None:
        """Start with what is on disk; the application comes up a little later."""
        self.up = True
        self.life += 1
        self.apps = {}
        self.profile, self.inherited = Profile.BACKUP, frozenset[FlowKey]()
        self.copying = False
        self.kernel = Kernel(self.clock, self._who(), self._stack_output)
        self.kernel.drop = self.world.scenario.kernel_drop[self.name]
        self.clock.after(listen_after, self._listen, self.life)
        self.node = Node(self.settings, self.clock.random.randbytes, self.epoch, self.served, self.clock.now)
        self._ids = count(1)
        self._waiting: dict[tuple[Queue, int], bool] = {}
        self._beat_counter = int(self.clock.now * 1_000_000)
        self._template: HeartbeatTemplate | None = None
        self._progress = self.clock.now
        self._timer_at = 0.0
        self.feed(TimerFired())
        self._beat(self.life)

    def _listen(self, life: int) -> None:
        if life == self.life:
            for port in (ECHO, DOWNLOAD, UPLOAD):
                self.kernel.listeners[port] = self._accepted

    def _accepted(self, tcp: Tcp) -> None:
        app = Server(self.clock, tcp, self.app_delay)
        self.apps.setdefault((*tcp.remote, *tcp.local), []).append(app)

    def crash(self) -> None:
        """Power loss."""
        self.up = False
        self.life += 1
        self.kernel.die()

    def later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        """Something that this life of the host does later; while the host is paused, time does not pass for it."""
        self.clock.after(seconds, self._alive, self.life, call, arguments)

    def _alive(self, life: int, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if life != self.life or not self.up:
            return
        if self.clock.now < self.paused_until:
            self.clock.at(self.paused_until + 1e-6, self._alive, life, call, arguments)
        else:
            call(*arguments)

    # ------------------------------------------------------------------------------------ packets

    def wire_input(self, packet: bytes) -> None:
        """A packet of the client for the service address has come in by the network card."""
        self.later(0.0, self._from_wire, packet)

    def _from_wire(self, packet: bytes) -> None:
        seg = Segment(bytearray(packet))
        if self.profile is Profile.PRIMARY and self.world.tap == "clone":
            self.world.clone(self, packet)
        flow = (seg.src, seg.sport, seg.dst, seg.dport)
        syn = seg.flags & (SYN | ACK | RST | FIN) == SYN
        if self.copying and (seg.payload_len or seg.flags & FIN):
            self.later(self.clock.random.random() * 0.004, self.feed, FrameCopied(bytearray(packet)))
        if self.profile is Profile.BACKUP or flow in self.inherited or syn:
            self._queue(Queue.IN, bytearray(packet), False)
        else:
            self.kernel.input(packet)

    def _stack_output(self, packet: bytearray, gso: bool) -> None:
        self.later(STEP_S, self._queue, Queue.OUT, packet, gso)

    def _queue(self, queue: Queue, packet: bytearray, gso: bool) -> None:
        self.feed(PacketQueued(queue, next(self._ids), packet, checksum_pending=gso, gso=gso))

    def _to_wire(self, packet: bytearray) -> None:
        pieces = cut_super_segment(packet) if len(packet) > MTU else [packet]
        for piece in pieces:
            self.world.outward(self, bytes(piece))

    # ------------------------------------------------------------------------------------ the node

    def feed(self, event: Event) -> None:
        """One input, then the effects, then one timer."""
        now = self.clock.now
        if now < self.hung_until:
            self.clock.at(self.hung_until + 1e-6, self._alive, self.life, self.feed, (event,))
            return
        self._progress = now
        if isinstance(event, PacketQueued):
            self._waiting[event.queue, event.packet_id] = event.queue is Queue.IN
            self._packets = {(event.queue, event.packet_id): event.packet}
        self.node.handle(event, now)
        while (effect := self.node.poll_effect()) is not None:
            self._carry(effect)
        if self._waiting:
            raise AssertionError(f"no verdict for {self._waiting} after {event}")
        self._schedule()

    def _schedule(self) -> None:
        due = self.node.poll_timeout()
        if due is not None and (not self._timer_at or due < self._timer_at):
            self._timer_at = max(due, self.clock.now) + 1e-6
            self.later(self._timer_at - self.clock.now, self._timer, self._timer_at)

    def _timer(self, armed: float) -> None:
        if armed == self._timer_at:
            self._timer_at = 0.0
            self.feed(TimerFired())

    def _carry(self, effect: Effect) -> None:
        random = self.clock.random
        if isinstance(effect, Verdict):
            self._verdict(effect)
        elif isinstance(effect, Inject):
            if effect.inward:
                self.later(STEP_S / 2, self.kernel.input, bytes(effect.packet))
            else:
                self._to_wire(bytearray(effect.packet))
        elif isinstance(effect, SendDatagram):
            self.world.sync(self, effect.data)
        elif isinstance(effect, PublishHeartbeat):
            self._publish(HeartbeatTemplate.decode(effect.template))
        elif isinstance(effect, CheckLink):
            self.later(0.0002, self.feed, LinkChecked(True, "up"))
        elif isinstance(effect, Fence):
            self.world.fence(self, effect)
        elif isinstance(effect, StoreEpoch):
            self.later(random.choice((0.0005, 0.003)), self._stored, effect)
        elif isinstance(effect, ApplyRules):
            self.copying = effect.profile is Profile.PRIMARY
            self.later(random.uniform(0.004, 0.03), self._apply, effect)
        elif isinstance(effect, OwnAddress):
            if effect.own:
                if self.world.split_brain and self.world.owner not in (None, self):
                    self.world.checks.excuse_all("two hosts talk to the client, as the configuration has it")
                self.later(0.0003, self.world.announce, self)
        elif isinstance(effect, QueryFlows):
            gone = [flow for flow in effect.flows if not self.kernel.knows(flow)]
            self.later(0.0, self.feed, FlowsGone(gone))
        elif isinstance(effect, Log):
            self.logs.append((self.clock.now, effect))

    def _verdict(self, verdict: Verdict) -> None:
        key = (verdict.queue, verdict.packet_id)
        if key not in self._waiting:
            raise AssertionError(f"a second verdict: {verdict}")
        inward = self._waiting.pop(key)
        if not verdict.accept:
            return
        packet = verdict.packet if verdict.packet is not None else self._packets[key]
        if inward:
            self.later(0.0, self.kernel.input, bytes(packet))
        else:
            self._to_wire(packet)

    def _stored(self, effect: StoreEpoch) -> None:
        self.epoch, self.served = effect.epoch, effect.role == "primary"
        self.feed(EpochStored(effect.epoch, True))

    def _apply(self, effect: ApplyRules) -> None:
        self.profile, self.inherited = effect.profile, frozenset(effect.inherited)
        self.feed(RulesApplied(effect.profile, True))

    # ------------------------------------------------------------------------------------ the sync channel

    def datagram(self, data: bytes) -> None:
        """A datagram has come in."""
        self.later(0.0, self.feed, DatagramReceived(("peer", 7766), data))

    def _publish(self, template: HeartbeatTemplate) -> None:
        old, self._template = self._template, template
        if old is None or (old.session, old.body.state, old.body.generation) != (
            template.session,
            template.body.state,
            template.body.generation,
        ):
            self._send_heartbeat()

    def _beat(self, life: int) -> None:
        """The heartbeat process: it goes on when the packet loop hangs, and stops when the host does."""
        if life != self.life:
            return
        wait = self.settings.heartbeat_interval_ms / 1000
        if self.clock.now < self.paused_until:
            wait = self.paused_until - self.clock.now + 1e-6
        else:
            self._send_heartbeat()
        self.clock.after(wait, self._beat, life)

    def _send_heartbeat(self) -> None:
        if self._template is not None:
            self._beat_counter += 1
            now = self.clock.now
            age = int((now - self._progress) * 1000)
            self.world.sync(self, self._template.datagram(self._beat_counter, int(now * 1000), age))
