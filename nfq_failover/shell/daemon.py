"""The daemon: one loop that feeds a node with what happens, and carries out what it decides.

Order matters. On each wake-up the sync socket is read first and completely, so that news (a newer epoch, late
heartbeats) counts before packets are judged and before timers fire; then the answers of slow actions, then the queues,
then time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from nfq_failover.config import Config
from nfq_failover.core.events import (
    ApplyRules,
    AskWitness,
    CheckLink,
    CopiesLost,
    Effect,
    Event,
    Fence,
    FlowsGone,
    FlowsListed,
    FrameCopied,
    Inject,
    ListFlows,
    Log,
    OperatorCommand,
    OwnAddress,
    PacketQueued,
    Profile,
    PublishHeartbeat,
    QueryFlows,
    Queue,
    SaveCheckpoint,
    SendDatagram,
    StoreEpoch,
    TimerFired,
    Verdict,
)
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import State
from nfq_failover.core.shadow.checkpoint import CheckpointWriter
from nfq_failover.errors import InternalError
from nfq_failover.shell.control import ControlServer
from nfq_failover.shell.fencing.second_opinion import SecondOpinion
from nfq_failover.shell.firewall.keeper import RulesKeeper
from nfq_failover.shell.host.connections import FlowList, FlowQueries
from nfq_failover.shell.host.health import HealthChecks
from nfq_failover.shell.packets.copies import InboundCopies
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.peer.reader import SyncReader
from nfq_failover.shell.peer.socket import open_sync
from nfq_failover.shell.privileged.client import RemoteFences, RemoteRules
from nfq_failover.shell.privileged.rights import describe
from nfq_failover.shell.start import Ground
from nfq_failover.shell.state.epoch import EpochStore

BATCH = 64
MAX_WAIT_S = 0.05
OVERRUN_EVERY_S = 1.0
ALARM_SPACING_S = 0.1
EXIT_NO_MEMORY = 71  # EX_OSERR of sysexits.h
_NO_MEMORY = b"nfq-failover: no memory: the daemon ends here, as if it had been killed\n"

log = structlog.get_logger()


class Daemon:
    """Runs one node until it is told to stop.

    `run` undoes everything that it did to the host, on every way out but one: a host that serves with nobody to hand
    over to goes on serving without its daemon (the rules let its own connections pass), until the daemon is back. Only
    `leave` (or SIGINT) ends that.
    """

    def __init__(self, config: Config, ground: Ground) -> None:
        self.config = config
        self.ground = ground
        self._undo = ground.undo
        self._readers: dict[int, Callable[[], None]] = {}
        self._poll = select.epoll()
        self._fresh: set[int] = set()
        self.queues: dict[Queue, PacketQueue] = {}
        self._copies: InboundCopies | None = None
        self._copies_due = False
        self._flows = FlowQueries()
        self._list = FlowList(config.settings.service, config.settings.serves)
        self._undo.append(self._list.close)
        self._stopping = False
        self._for_good = False
        self._stay = False  # leave the host as it is: it serves
        self._failures = 0
        self._next_alarm = 0.0
        self._next_overrun = 0.0
        self._broken = False
        self.manager = ground.manager
        self._said: State | None = None

    # ------------------------------------------------------------------------------------ life

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start, serve until SIGTERM, SIGINT or SIGHUP, undo. Raises `NfqFailoverError` if it can't start."""
        with contextlib.suppress(ValueError, OSError):  # no standard error
            faulthandler.enable()  # systemd's watchdog ends a hanging daemon by SIGABRT: say where it hung
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        try:
            self._start()
            ready()
            self.manager.ready()
            try:
                self._loop()
            except MemoryError:
                self._out_of_memory()
        except BaseException:
            self._stay = self._stay or self._serves_alone()
            raise
        finally:
            self.manager.stopping()
            for undo in reversed(self._undo):
                try:
                    undo()
                except Exception as error:  # every other thing must still be undone
                    log.error("cleaning up failed", step=getattr(undo, "__qualname__", str(undo)), error=str(error))
            self._poll.close()

    def _start(self) -> None:
        config, ground = self.config, self.ground
        for warning in ground.warnings():
            log.warning(warning)
        self.epochs = EpochStore(ground.file("epoch.json"))
        self._undo.append(self.epochs.close)
        epoch, served = self.epochs.load()
        self._flows.check()
        self.store = ground.store
        # IN first, at each reading: what the client has acknowledged need not be sent to it again.
        for queue, number in ((Queue.IN, config.queue_in), (Queue.OUT, config.queue_out)):
            self.queues[queue] = PacketQueue(
                number,
                queue,
                max_len=config.limits.queue_max_packets,
                rcvbuf=config.limits.queue_buffer_bytes,
                counters=ground.counters,
            )
            self._undo.append(self.queues[queue].close)
        self.injector = Injector(config.mark)
        self._undo.append(self.injector.close)
        self.host = ground.host(config)
        earlier = self.store.load(self.host.lived)
        # A host that served alone, and has the address yet, goes on: the rules are in force, its packets wait for us.
        resuming = earlier is not None and earlier.allows(epoch, served) and self.host.has_address()
        if earlier is not None and not resuming:
            earlier = replace(earlier, serving=False)
        self._stay = resuming
        self._undo.append(lambda: self.host.restore(self._stay))
        self.host.prepare(silent=not resuming)
        self.rules = RulesKeeper(RemoteRules(ground.helper), self._watch, self._unwatch)
        self._undo.append(lambda: self.rules.close(self._stay))
        if not resuming:
            self.rules.silence()  # before the address exists
        if config.manage_address:
            self._undo.append(self._remove_address)
            self.host.add_address()
        sockets = ground.sync or open_sync(config.listen, config.limits.sync_buffer_bytes)
        self.udp = sockets.records
        self._undo.append(sockets.close)
        self.heartbeats = HeartbeatProcess(config.settings.heartbeat_interval_ms, self.udp, ground.helper.start_sender)
        self._undo.append(self.heartbeats.close)
        self.fences = RemoteFences(ground.helper, config.settings.peers, self._watch, self._unwatch, self._answer)
        self.opinions = SecondOpinion(config, self._watch, self._feed, self._answer)
        self._undo += [self.fences.close, self.opinions.close]
        self.health = HealthChecks(config.health, config.service, self._watch, self._unwatch, self._answer)
        self._undo.append(self.health.close)
        self.control = ControlServer(ground.file("control.sock"), self._control, ground.may_ask())
        self._undo.append(self.control.close)
        checkpoint = CheckpointWriter(self.store.life)
        self.node = Node(config.settings, os.urandom, epoch, served, time.monotonic(), checkpoint, earlier)
        self.sync = SyncReader(sockets, self.node, self._feed)
        self._stay = False
        for each in sockets.both:
            self._watch(each.fileno(), lambda: None)
        for bound in self.queues.values():
            self._watch(bound.fileno(), lambda: None)
        self._watch(ground.helper.fileno(), ground.helped)
        self._watch(self.epochs.fileno(), self._epochs_stored)
        self._watch(self.control.fileno(), self.control.serve)
        self._carry_out()  # a host that goes on does so before it answers anybody

    def _stop(self, number: int, frame: object) -> None:
        del frame
        self._stopping = True
        self._for_good = self._for_good or number == signal.SIGINT

    def _serves_alone(self) -> bool:
        """Whether this host serves with nobody to hand over to; also when something has gone wrong."""
        node: Node | None = getattr(self, "node", None)
        if node is None or self._for_good:
            return False
        return node.members.serves_alone(time.monotonic())

    def _remove_address(self) -> None:
        if not self._stay:
            self.host.remove_address()

    # ------------------------------------------------------------------------------------ the loop

    def _watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._fresh.add(fd)
        self._poll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._readers[fd]
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)

    def _loop(self) -> None:
        node, clock = self.node, time.monotonic
        while True:
            now = clock()
            if not self._broken:
                self.heartbeats.progress()
                self.manager.alive(now)
            due = node.poll_timeout()
            wait = min(max(due - now, 0.0), MAX_WAIT_S) if due is not None else MAX_WAIT_S
            if self._copies_due:
                wait = 0.0
            self._fresh.clear()
            ready = [fd for fd, _ in self._poll.poll(wait)]
            all_read = self.sync.read(self._carry_out)
            for fd in ready:
                reader = self._readers.get(fd)
                if reader is not None and fd not in self._fresh:  # else its number has a new owner since the poll
                    reader()
            for queue in self.queues.values():
                if queue.fileno() in ready:
                    self._read_packets(queue)
            if self._copies_due or node.wants_copies:
                self._read_copies()
            now = clock()
            due = node.poll_timeout()
            if (due is None or now >= due) and (all_read or self.sync.overdue(now)):
                self._tick(now)
            if self._stopping:
                if self._serves_alone():
                    self._stay = True
                    log.warning("the daemon ends, and this host goes on serving without it; 'leave' ends that, too")
                    return
                self._feed(OperatorCommand("shutdown"), clock())
                self._carry_out()
                self.heartbeats.drain()
                return

    def _tick(self, now: float) -> None:
        """Let time pass. A node that can't do even that makes no progress, and its heartbeats must say so."""
        failures = self._failures
        self._feed(TimerFired(), now)
        self._carry_out()
        self._copies_due = True
        self._periodic(now)
        members = self.node.members
        if members.state is not self._said:
            self._said = members.state
            self.manager.status(f"{members.role.name.lower()}, {members.state.label}, epoch {members.epoch}")
        self._carry_out()
        self._broken = self._failures != failures

    def _feed(self, event: Event, now: float) -> None:
        """Hand the node one event; whatever goes wrong in there must not end the loop."""
        try:
            self.node.handle(event, now)
        except MemoryError:
            self._out_of_memory()
        except Exception as error:  # our own bug: say so, drop the packet, go on
            packet = event.packet if isinstance(event, PacketQueued | FrameCopied) else b""
            if isinstance(event, PacketQueued):
                # The first verdict counts: one that the node gave before it failed comes later, and is refused.
                self.queues[event.queue].verdict(event.packet_id, False)
            self._alarm(error, type(event).__name__, packet)

    def _out_of_memory(self) -> None:
        """Whatever was under way is half done, and nothing of it may go out: as good as killed. A protected host is
        succeeded by its backup, an unprotected one goes on by its rules, and the next daemon by its record."""
        os.write(2, _NO_MEMORY)
        os._exit(EXIT_NO_MEMORY)

    def _answer(self, event: Event) -> None:
        """Hand the node the outcome of something slow, and do at once what follows from it."""
        self._feed(event, time.monotonic())
        self._carry_out()

    def _alarm(self, error: Exception, during: str, packet: bytes | bytearray = b"") -> None:
        """Our own bug has shown itself. Every one is counted, not every one of a flood is written."""
        self._failures += 1
        now = time.monotonic()
        if now < self._next_alarm:
            return
        self._next_alarm = now + ALARM_SPACING_S
        frames = reversed(traceback.extract_tb(error.__traceback__)[-4:])
        log.error(
            "internal error",
            error=repr(error),
            during=during,
            count=self._failures,
            where=" < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames),
            packet=packet[:200].hex(),
        )

    def _read_packets(self, queue: PacketQueue) -> None:
        events = queue.read(BATCH)
        now = time.monotonic()
        if self.host.announcer.waiting and events and queue is self.queues[Queue.IN]:
            self.host.heard(now)
        for event in events:
            self._feed(event, now)
        self._carry_out()

    def _read_copies(self) -> None:
        """Copies wake nobody: they are needed only for what the tap lost, and wait in their socket until a tick."""
        copies = self._copies
        if copies is None:
            self._copies_due = False
            return
        now = time.monotonic()
        events = copies.read(BATCH)
        for event in events:
            self._feed(event, now)
        self._carry_out()
        self._copies_due = len(events) == BATCH

    def _periodic(self, now: float) -> None:
        self.host.tick(now)
        self.fences.tick(now)
        self.opinions.tick(now)
        self.health.tick(now)
        for event in self.rules.tick(now):
            self._feed(event, now)
        try:
            if gone := self._flows.step():
                self._feed(FlowsGone(gone), now)
            if (flows := self._list.step()) is not None:
                self._feed(FlowsListed(flows), now)
        except OSError as error:  # no memory at this moment: the node asks again
            log.error("the kernel can't be asked for its connections", error=str(error))
        if self._copies is not None and (lost := self._copies.lost()):
            self._feed(CopiesLost(lost), now)
        if now >= self._next_overrun:
            self._next_overrun = now + OVERRUN_EVERY_S
            if (datagrams := self.sync.lost()) is not None:
                self._feed(datagrams, now)
            for queue in self.queues.values():
                overrun = queue.overrun()
                if overrun is not None:
                    self._feed(overrun, now)
        if self.heartbeats.died():
            log.error("heartbeat sender died; started again")
            self.heartbeats.restart()
            self.node.republish()

    # ------------------------------------------------------------------------------------ effects

    def _carry_out(self) -> None:
        for _ in range(BATCH):
            try:
                self._drain()
                break
            except OSError:
                raise  # a queue that does not work any more: silence, and the peer takes over
            except MemoryError:
                self._out_of_memory()
            except Exception as error:  # our own bug: the next effect may be right
                self._alarm(error, "effects")
        for queue in self.queues.values():
            queue.flush()

    def _drain(self) -> None:
        poll, queues = self.node.poll_effect, self.queues
        mark, inject = self.config.mark, self.injector.send
        while (effect := poll()) is not None:
            if isinstance(effect, Verdict):
                try:
                    queues[effect.queue].verdict(effect.packet_id, effect.accept, effect.packet, mark)
                except InternalError:
                    queues[effect.queue].verdict(effect.packet_id, False)
                    raise
            elif isinstance(effect, Inject):
                # What was decided before must be in effect first: an overtaken window or ACK would be taken back.
                for queue in queues.values():
                    queue.flush()
                inject(effect.packet)
            elif isinstance(effect, SendDatagram):
                with contextlib.suppress(OSError):  # lost datagrams are repeated
                    self.udp.sendto(effect.data, effect.destination)
            else:
                try:
                    self._carry_out_rare(effect)
                except OSError as error:  # the interface is gone, for instance
                    log.error("could not be done", effect=repr(effect), error=str(error))

    def _carry_out_rare(self, effect: Effect) -> None:
        if isinstance(effect, PublishHeartbeat):
            self.heartbeats.publish(effect.destination, effect.template)
        elif isinstance(effect, Log):
            getattr(log, effect.level)(effect.event, **effect.fields)
        elif isinstance(effect, CheckLink | AskWitness):
            self.opinions.seek(effect)
        elif isinstance(effect, Fence):
            self.fences.start(effect)
        elif isinstance(effect, SaveCheckpoint):
            self.store.write(effect.writes)
        elif isinstance(effect, StoreEpoch):
            self.epochs.store(effect.epoch, effect.role)
        elif isinstance(effect, OwnAddress):
            self.host.own_address(effect.own, effect.announce, time.monotonic())
        elif isinstance(effect, ApplyRules):
            self._follow_profile(effect.profile)
            self.rules.apply(effect)
        elif isinstance(effect, QueryFlows):
            self._flows.ask(effect.flows)
        elif isinstance(effect, ListFlows):
            self._list.start()
        else:
            raise InternalError(f"unknown effect {effect}")

    def _follow_profile(self, profile: Profile) -> None:
        """A protected primary keeps copies of what comes in."""
        if profile is Profile.PRIMARY and self._copies is None:
            config = self.config
            self._copies = InboundCopies(config.interface, config.settings.service, config.settings.ports)
            self._undo.append(self._copies.close)
        elif profile is not Profile.PRIMARY and self._copies is not None:
            self._undo.remove(self._copies.close)
            self._copies.close()
            self._copies = None

    def _epochs_stored(self) -> None:
        for event in self.epochs.finished():
            self._answer(event)

    # ------------------------------------------------------------------------------------ control

    def _control(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        del request
        if command == "status":
            return self._status()
        if command == "claim":
            before = self.node.members.state
            self._answer(OperatorCommand("claim"))
            return {"before": before.label, "state": self.node.members.state.label}
        if command == "leave":
            self._stopping = self._for_good = True
            return {"state": self.node.members.state.label}
        if command == "ping":
            return {"pong": True}
        return {"error": f"unknown command '{command}': status, claim, leave or ping"}

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.node.status(time.monotonic()).as_dict()
        status["shell"] = {
            "queues": {q.name.lower(): queue.gauge() for q, queue in self.queues.items()},
            "sync_socket": self.sync.gauge(),
            "injected": self.injector.sent,
            "inject_failed": dict(self.injector.failed),
            "internal_errors": self._failures,
            "rules": self.rules.describe(),
            "privileges": describe(),
            "announcements": self.host.announcer.describe(),
        }
        return status
