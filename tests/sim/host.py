"""A server host: model kernel, firewall rules, and a shell that carries the effects of a real `Node`.

The host loses power, or its daemon is killed, at any time, also between two effects of one input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.events import (
    ApplyRules,
    AskWitness,
    CheckLink,
    ClockRead,
    DatagramReceived,
    Effect,
    EpochStored,
    Event,
    Fence,
    FlowsGone,
    FlowsListed,
    HostFacts,
    Inject,
    LinkChecked,
    ListenersSeen,
    ListFlows,
    Log,
    OwnAddress,
    PacketQueued,
    Profile,
    PublishHeartbeat,
    QueryFlows,
    ReachChecked,
    RulesApplied,
    SaveCheckpoint,
    SendDatagram,
    SendProbe,
    SettingsChanged,
    StoreEpoch,
    TellClients,
    TimerFired,
    Verdict,
)
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import State
from nfq_failover.core.ports import Ports, union
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.checkpoint import LIFE_BYTES, CheckpointWriter, read_checkpoint
from nfq_failover.wire.heartbeat import HeartbeatTemplate
from nfq_failover.wire.segment import FlowKey
from nfq_failover.wire.tap_probe import tap_probe

from .application import Application
from .apps import Server
from .channel import Channel
from .clock import HostClock
from .kernel import Kernel
from .packets import STEP_S, Packets
from .scenario import ADDED, DOWNLOAD, ECHO, PUSH, TURNS, UPLOAD, HostPlan
from .tcp import Personality, Tcp

if TYPE_CHECKING:
    from .world import SimWorld

CARD_PACKETS = 100
LOOK_S = 0.05  # between two looks at what is needed to talk to others
WANTED_LOOK_S = 0.03
BUSY_S, BUSY_TIMERS = 0.01, 500
OVERDUE = 4  # times in a row that a deadline may still have passed when the timers have been fired
NOBODY = bytes((192, 0, 2, 1))  # who sends probes of the tap, for all that the model looks at


@dataclass
class Death:
    """What is to strike at the `left`th effect of a name from now on."""

    strike: Callable[[], None]
    effect: str
    left: int
    before: bool

    def due(self, effect: str, before: bool) -> bool:
        """Whether it strikes now: right before, or right after, this effect is carried out."""
        if before != self.before or self.effect not in ("any", effect):
            return False
        self.left -= 1
        return self.left == 0


class SimHost:
    """One of the servers, through its lives. `up`: it has power; `running`: its daemon runs."""

    def __init__(
        self, world: SimWorld, settings: Settings, who: Callable[[], Personality], plan: HostPlan, random: Random
    ) -> None:
        self.world, self.settings, self.clock, self.plan, self.random = world, settings, world.clock, plan, random
        self.name = settings.name
        self._who = who
        self.epoch, self.served = 0, False
        self.up = self.running = self.owns = False
        self.diverted: Ports = ()  # by the rules in force
        self.life = self.run = 0
        self.jumped = 0.0
        self._pending = self._fired = self._overdue = 0
        self._fired_since = 0.0
        self.awake = self.heard = 0.0  # when the daemon last did anything, and last heard another one
        self.paused_until = self.hung_until = self.unplugged_until = 0.0
        self.stranded_until = self.mute_until = self.cut_off_at = self.cut_off_until = 0.0
        self.apps: dict[FlowKey, list[Server]] = {}
        self.packets, self.channel = Packets(self), Channel(self)
        self.application = Application(self)
        self.logs: list[tuple[float, Log]] = []
        self.deaths: list[Death] = []
        self.node: Node
        self.ticks: HostClock
        self.restarts: list[tuple[State, State]] = []  # of the daemon: before and after
        self.effects = self.inputs = 0  # in all lives

    def boot(self, listen_after: float = 0.0) -> None:
        """Start with what is on disk; the application comes up a little later."""
        self.up = True
        self.life += 1
        self.apps = {}
        self.application.boot()
        origin = self.plan.uptime if self.life == 1 else self.random.uniform(1, 60)
        self.ticks = HostClock(self.clock, self.plan.rate, origin)
        self.saved, self.boot_id = bytearray(), self.random.randbytes(LIFE_BYTES)
        self.kernel = Kernel(self.clock, self._who(), self.packets.stack_output, self.random, self.ticks)
        self.kernel.drop = self.plan.kernel_drop if not self.world.healed else 0.0
        self.clock.after(listen_after, self._listen, self.life)
        self.start()

    def start(self) -> None:
        """Start the daemon: silent, with what is on disk; or going on, as an earlier one's record on this boot has it
        (see `Daemon._start`)."""
        found = read_checkpoint(bytes(self.saved), self.boot_id) if self.saved else None
        resumes = found is not None and found.allows(self.epoch, self.served) and self.owns
        if found is not None and not resumes:
            found = replace(found, serving=False)
        if not resumes:
            self.profile, self.inherited = Profile.BACKUP, frozenset[FlowKey]()
            self.diverted = self.settings.ports
        self._first_ports = self.settings.ports
        self.running, self.owns = True, resumes
        self.run += 1
        self.copying = self._looking = False
        checkpoint = CheckpointWriter(self.boot_id)
        old: Node | None = self.node if self.saved else None
        randbytes, now = self.random.randbytes, self.ticks.now
        self.node = Node(self.settings, randbytes, self.epoch, self.served, now, checkpoint, found)
        if old is not None:
            self.restarts.append((old.members.state, self.node.members.state))
            self.world.checks.restarted(self, old, resumes)
        self.packets.restart()
        self.channel.restart()
        self.progress = self.ticks.now
        self._timer_at = self._rules_at = 0.0
        self.feed(HostFacts(self._facts()))
        self.feed(ClockRead(1e9 + self.clock.now - self.ticks.now))
        self.feed(TimerFired())
        if self.speechless:
            self._look(self.life)
        self.feed(ListenersSeen(self.application.sockets))
        self.channel.beat(self.run)
        if self.settings.health_checked:
            self.application.watch(self.run)

    @property
    def replica_knows(self) -> bool:
        """Whether the application is a replica that has missed nothing, and has been sent something."""
        shadows = self.running and self.node.members.state is State.SHADOWING
        read = any(server.read for servers in self.apps.values() for server in servers)
        return shadows and read and not self.node.shadow.wholeness.missed

    @property
    def serves(self) -> bool:
        """Whether it is this host that clients hear."""
        return self.world.owner is self

    @property
    def ports(self) -> tuple[int, ...]:
        """Where the application listens."""
        return (ECHO, DOWNLOAD, UPLOAD, TURNS, *(() if self.plan.deaf else (PUSH,)))

    def reload(self) -> None:
        """The operator adds a port to the configuration, and has the daemon read it; one that starts later reads it,
        too."""
        settings = replace(self.settings, ports=union(self.settings.ports, ((ADDED, ADDED),)))
        if self.running:
            self.feed(SettingsChanged(settings))
        else:
            self.settings.adopt(settings)

    def _facts(self) -> tuple[tuple[str, str], ...]:
        plan = self.plan
        return (
            ("tap", self.world.tap),
            ("witness", "a witness" if self.settings.has_witness else "none"),
            ("mtu", str(plan.mtu)),
            ("timestamps", str(int(plan.timestamps))),
            ("sack", str(int(plan.sack))),
            ("window-scaling", str(int(plan.scaling))),
        )

    def _listen(self, life: int) -> None:
        if life == self.life:
            self.application.listen()

    def accepted(self, tcp: Tcp) -> None:
        """The application gets a connection."""
        odd = self.world.odd((*tcp.remote, *tcp.local), self)
        app = Server(self.clock, tcp, self.plan, self.random, self.application, odd)
        self.application.broken.discard((*tcp.remote, *tcp.local))
        self.apps.setdefault((*tcp.remote, *tcp.local), []).append(app)

    def application_failed(self, how: str, alone: FlowKey | None = None) -> None:
        """The application fails now, or only the process of one connection."""
        self.world.checks.application_failed(self, how, alone)

    def crash(self) -> None:
        """The host loses power."""
        self.kill()
        self.up = self.owns = False
        self.life += 1
        self.kernel.die()

    def kill(self) -> None:
        """The daemon and its heartbeats die; kernel, application and rules stay as they are."""
        self.running = False
        self.run += 1
        self.packets.drop()
        self.deaths.clear()

    def jump(self, seconds: float) -> None:
        """The clock jumps forward."""
        self.ticks.jump(seconds)
        self.jumped += seconds
        self._timer_at = 0.0
        if self.running:
            self._schedule()

    @property
    def resumable(self) -> bool:
        """Whether a daemon that is killed now may go on after its restart."""
        return self.node.members.state in (State.UNPROTECTED, State.ARMING)

    @property
    def audible(self) -> bool:
        """Whether the host may be heard: it has power and the address, and its lease has not ended."""
        if not self.up or not self.owns:
            return False
        if not self.world.scenario.witness:
            return True
        if not self.running:  # it may still answer for the address, but its rules let nothing out
            return self.profile is Profile.ALONE
        members = self.node.members
        return members.state is not State.DOUBT and self.ticks.now <= members.lease_until

    @property
    def unplugged(self) -> bool:
        """Whether the network card has no link."""
        return self.clock.now < self.unplugged_until

    @property
    def deaf(self) -> bool:
        """Whether no datagram reaches the daemon: there is no link, or the host's own address is gone."""
        return self.unplugged or self.clock.now < self.stranded_until

    @property
    def speechless(self) -> bool:
        """Whether no datagram leaves the host, which its daemon can see."""
        return self.deaf or self.clock.now < self.mute_until

    def cut_off(self) -> None:
        """Something that the daemon needs to talk to others is gone for a while; it notices both the loss and the
        return at one of its next looks."""
        now = self.cut_off_at = self.clock.now
        self.cut_off_until = max(self.unplugged_until, self.stranded_until, self.mute_until)
        soon = min(LOOK_S, self.cut_off_until - now)  # a datagram that could not be sent is remembered until the look
        self.clock.at(now + self.random.uniform(0, soon), self._look, self.life)
        self.clock.at(self.cut_off_until + self.random.uniform(1e-6, LOOK_S), self._look, self.life)

    def _look(self, life: int) -> None:
        if life == self.life and self.up and self.running:
            wrong = Concern("own-address-missing", Weight.UNPROTECTED, "cut off") if self.speechless else None
            self.tell(0.0, ReachChecked(wrong))

    def hears(self) -> bool:
        """Whether the network card takes a packet: while the host is paused, only as many as it has room for."""
        if self.clock.now >= self.paused_until:
            self._pending = 0
        else:
            self._pending += 1
        return not self.unplugged and self._pending <= CARD_PACKETS

    def later(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        """This life of the host calls something later; while the host is paused, time does not pass for it."""
        self.clock.after(seconds, self._alive, self.life, call, arguments)

    def tell(self, seconds: float, event: Event) -> None:
        """The daemon that runs now gets an event later."""
        self.later(seconds, self._told, self.run, event)

    def _told(self, run: int, event: Event) -> None:
        if run == self.run:
            self.feed(event)

    def _alive(self, life: int, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if life != self.life or not self.up:
            return
        if self.clock.now < self.paused_until:
            self.clock.at(self.paused_until + 1e-6, self._alive, life, call, arguments)
        else:
            call(*arguments)

    def _list_flows(self, run: int, flows: list[FlowKey]) -> None:
        if run == self.run:
            self.tell(0.0, FlowsListed(flows, self.packets.latest))

    # ------------------------------------------------------------------------------------ the node

    def feed(self, event: Event) -> None:
        """The node gets an input; its effects are carried out, and its timer is set."""
        if not self.running:
            return
        if self.clock.now < self.hung_until:
            self.clock.at(self.hung_until + 1e-6, self._alive, self.life, self._told, (self.run, event))
            return
        now = self.progress = self.ticks.now
        self.inputs += 1
        self.awake = self.clock.now
        if isinstance(event, DatagramReceived):
            self.heard = self.awake
        if isinstance(event, PacketQueued):
            self.packets.read(event)
        self.node.handle(event, now)
        run, carried = self.run, 0
        while (effect := self.node.poll_effect()) is not None:
            if self._dies(effect, True):
                return
            self._carry(effect)
            carried += 1
            if self._dies(effect, False) or run != self.run:
                return
        self.effects += carried
        if self.packets.waiting:
            raise AssertionError(f"no verdict for {self.packets.waiting} after {event}")
        self.world.checks.carried_out(self, carried)
        if isinstance(event, TimerFired):
            self._overdue = self._overdue + 1 if self.node.poll_timeout() <= now else 0
            assert self._overdue < OVERDUE, f"{self.name}: a deadline stays in the past in {self.node.members.state}"
        self._schedule()
        if self.node.wants_look and not self._looking:
            self._looking = True
            self.later(WANTED_LOOK_S, self._look_at_listeners, self.run)

    def _look_at_listeners(self, run: int) -> None:
        """The daemon looks at them."""
        if run == self.run:
            self._looking = False
            self.application.look()

    def _dies(self, effect: Effect, before: bool) -> bool:
        for death in self.deaths:
            if death.due(type(effect).__name__, before):
                death.strike()
                return True
        return False

    def _schedule(self) -> None:
        due = self.node.poll_timeout()
        if due is None:
            return
        when = max(self.ticks.when(due), self.clock.now) + 1e-6
        if not self._timer_at or when < self._timer_at:
            self._timer_at = when
            self.later(when - self.clock.now, self._timer, when)

    def _timer(self, armed: float) -> None:
        if armed == self._timer_at:
            self._timer_at = 0.0
            self._fired = self._fired + 1 if self.clock.now - self._fired_since < BUSY_S else 0
            if not self._fired:
                self._fired_since = self.clock.now
            assert self._fired < BUSY_TIMERS, f"{self.name}: a timer that fires for ever in {self.node.members.state}"
            self.feed(TimerFired())

    def _carry(self, effect: Effect) -> None:
        if isinstance(effect, Verdict):
            self.packets.verdict(effect)
        elif isinstance(effect, Inject):
            if effect.inward:
                self.later(STEP_S / 2, self.kernel.input, bytes(effect.packet))
            else:
                self.packets.inject(bytearray(effect.packet))
        elif isinstance(effect, SendDatagram):
            self.channel.send(effect.destination[0], effect.data)
        elif isinstance(effect, PublishHeartbeat):
            self.channel.publish(effect.destination[0], HeartbeatTemplate.decode(effect.template))
        else:
            self._carry_rare(effect)

    def _carry_rare(self, effect: Effect) -> None:
        random = self.random
        if isinstance(effect, CheckLink):
            self.tell(0.0002, LinkChecked(not self.speechless, "cut off" if self.speechless else ""))
        elif isinstance(effect, Fence):
            self.world.fence(self, effect)
        elif isinstance(effect, AskWitness):
            self.world.witness.ask(self, effect)
        elif isinstance(effect, StoreEpoch):
            self.later(random.choice((0.0003, 0.002)), self._stored, effect, self.run)
        elif isinstance(effect, ApplyRules):
            self.copying = effect.profile is Profile.PRIMARY
            self._rules_at = max(self._rules_at, self.clock.now) + random.uniform(0.004, 0.03)  # one after the other
            self.later(self._rules_at - self.clock.now, self._apply, effect, self.run)
        elif isinstance(effect, OwnAddress):
            self.owns = effect.own
            if effect.own:
                if self.world.split_brain and self.world.owner not in (None, self):
                    self.world.checks.excuse_all("two hosts talk to the client, as the configuration has it")
                self.world.checks.owns(self)
                self.later(0.0003, self.world.announce, self, self.run)
        elif isinstance(effect, TellClients):
            taken_over = {flow[0] for flow in self.node.shadow.flows}
            assert self.owns and set(effect.clients) == taken_over, "clients are told by the host that serves them"
        elif isinstance(effect, SendProbe):
            settings = self.node.settings
            probe = tap_probe(NOBODY, (settings.service, settings.ports[0][0]), effect.token)
            self.world.probe(self, bytes(probe), effect.hardware)
        elif isinstance(effect, QueryFlows):
            self.tell(0.0, FlowsGone([flow for flow in effect.flows if not self.kernel.knows(flow)]))
        elif isinstance(effect, SaveCheckpoint):
            for at, data in effect.writes:
                self.saved.extend(bytes(max(at + len(data) - len(self.saved), 0)))
                self.saved[at : at + len(data)] = data
        elif isinstance(effect, ListFlows):
            self.later(0.001, self._list_flows, self.run, self.kernel.established())
        elif isinstance(effect, Log):
            self.logs.append((self.clock.now, effect))
            self.world.checks.logged(self, effect)
            if effect.fields.get("after") == "yielded":
                self.world.checks.yielded(self)
            if str(effect.fields.get("reason")).startswith("the witness has let the peer act"):
                self.world.checks.denied(self)
        else:
            raise AssertionError(f"an effect that nobody carries out: {effect}")

    def _stored(self, effect: StoreEpoch, run: int) -> None:
        """The epoch is on disk; the daemon hears of it a little later."""
        if run == self.run:
            self.epoch, self.served = effect.epoch, effect.role == "primary"
            self.tell(self.random.choice((0.0002, 0.001)), EpochStored(effect.epoch, True))

    def _apply(self, effect: ApplyRules, run: int) -> None:
        if run == self.run:
            self.profile, self.inherited = effect.profile, frozenset(effect.inherited)
            self.diverted = self._first_ports if effect.ports is None else effect.ports
            self.world.checks.diverts(self)
            self.feed(RulesApplied(effect.profile, True, ports=effect.ports))
