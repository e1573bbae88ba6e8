"""One service on this host: its node, and everything on the host that is there for it.

The daemon drives it, in the order that daemon.py explains. Whatever happens becomes an event for the node, and whatever
the node decides is carried out before anything else is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from nfq_failover.config.differences import Differences, with_keys
from nfq_failover.core import ports
from nfq_failover.core.events import (
    CopiesLost,
    Event,
    FlowsGone,
    FlowsListed,
    FrameCopied,
    HealthChecked,
    OperatorCommand,
    PacketQueued,
    Queue,
    SettingsChanged,
    TimerFired,
)
from nfq_failover.core.node import Node
from nfq_failover.core.shadow.checkpoint import CheckpointWriter
from nfq_failover.core.status import standing
from nfq_failover.shell.dump import dump
from nfq_failover.shell.effects import Effects
from nfq_failover.shell.fencing.second_opinion import SecondOpinion
from nfq_failover.shell.firewall.changes import RuleChanges
from nfq_failover.shell.firewall.keeper import RulesKeeper
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.arp_settings import ArpSettings
from nfq_failover.shell.host.connections import FlowList, FlowQueries
from nfq_failover.shell.host.health import HealthChecks
from nfq_failover.shell.host.hook import Hook
from nfq_failover.shell.host.listeners import Listening
from nfq_failover.shell.host.rtnetlink import Changes
from nfq_failover.shell.host.tap_probe import TapProbes
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.packets.outlet import Outlet
from nfq_failover.shell.packets.primary_copies import PrimaryCopies
from nfq_failover.shell.peer.delivery import Delivery
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.peer.reach import ReachWatch
from nfq_failover.shell.peer.reader import SyncReader
from nfq_failover.shell.peer.socket import open_sync
from nfq_failover.shell.privileged.client import RemoteFences, RemoteRules
from nfq_failover.shell.privileged.rights import describe
from nfq_failover.shell.reload import Reloads
from nfq_failover.shell.start import Prepared, PreparedService
from nfq_failover.shell.state.epoch import EpochStore
from nfq_failover.shell.trouble import Alarms, helper_gone, out_of_memory
from nfq_failover.shell.undo import Undo
from nfq_failover.shell.watch import HostWatch

BATCH = 64
OVERRUN_EVERY_S = 1.0

log = structlog.get_logger()


class Service:
    """A service from `open` to `close`, which undoes everything that was done to the host.

    With one exception: a host that serves with nobody to hand over to goes on serving without its daemon (the rules let
    its own connections pass) until the daemon is back.
    """

    def __init__(
        self, own: PreparedService, prepared: Prepared, loop: Loop, undo: Undo, follow_level: Callable[[str], None]
    ) -> None:
        """Use `open`: whoever hands `undo` in must run it if this fails."""
        self._follow_level = follow_level
        config, settings, helper = own.config, own.config.settings, own.helper
        self.name = config.service
        self._config, self._loop, self._undo, self._checkpoints = config, loop, undo, own.store
        self._helper = helper
        self._alarms = Alarms()
        self._broken = False  # the last tick has failed
        self._waited_at = time.monotonic()  # when the loop began to wait
        self._all_read = True
        self._due: float | None = None
        self._next_overrun = 0.0
        self._said: object = None
        self._epochs = undo.closing(EpochStore(own.file("epoch.json")))
        epoch, served = self._epochs.load()
        self._listening = Listening(settings.service, settings.serves)
        self._flow_queries = FlowQueries(config.interface, lambda: self._listening.interfaces)
        self._flow_queries.check()
        self._flow_list = undo.closing(FlowList(settings.service, settings.serves))
        self._queues = self._bind_queues(prepared.counters)
        self._copies = undo.closing(PrimaryCopies(config.interface, settings.service, settings.ports))
        self._injector = own.injector
        pause_s = settings.detection_ms / 1000
        self._outlet = Outlet(self._queues, self._injector.send, config.mark, pause_s)
        self._address = ServiceAddress(
            config.service,
            config.interface,
            config.tap,
            config.tap_mac,
            own.file("host.json"),
            ArpSettings(own.arp_record, config.instance, config.interface),
            helper.change_address,
            config.announce_refresh_ms / 1000,
            tuple((peer.address, config.peer_macs.get(peer.address)) for peer in settings.peers),
        )
        earlier = own.store.load(self._address.lived)
        # A host that served alone and still has the address goes on: the rules are in force, its packets wait for us.
        resuming = earlier is not None and earlier.allows(epoch, served) and self._address.has_address()
        if earlier is not None and not resuming:
            earlier = replace(earlier, serving=False)
        self._stay = resuming  # leave the host as it is at the end, since it serves
        undo.add(lambda: self._address.restore(self._stay))
        self._address.prepare(silent=not resuming)
        self._rules = RulesKeeper(RemoteRules(helper), loop, RuleChanges(), lambda: self._watch.rules_changed())
        undo.add(lambda: self._rules.close(self._stay))
        if not resuming:
            self._rules.silence()  # before the address exists
            self._address.refuse_if_taken()
        undo.add(self._remove_address)
        if config.manage_address:
            self._address.add_address()
        self._changes = undo.closing(Changes())
        sockets = undo.closing(own.sync or open_sync(config.listen, config.limits.sync_buffer_bytes))
        peers = [(peer.address, peer.port) for peer in settings.peers]
        self._delivery = undo.closing(Delivery(sockets.records, config.listen, peers))
        self._heartbeats = undo.closing(
            HeartbeatProcess(settings.heartbeat_interval_ms, sockets.for_heartbeats, helper.start_sender)
        )
        self._fences = undo.closing(RemoteFences(helper, settings.peers, loop, self))
        self._reach = undo.closing(ReachWatch(config, self._heartbeats, self._delivery))
        self._second_opinion = undo.closing(SecondOpinion(config, loop, self, self._reach.trouble))
        self._health = undo.closing(HealthChecks(config.health, config.service, loop, self))
        self._hook = undo.closing(Hook(config.notify, settings.name, config.service, loop))
        checkpoint = CheckpointWriter(own.store.life)
        self.node = Node(settings, os.urandom, epoch, served, time.monotonic(), checkpoint, earlier)
        probes = TapProbes(config.interface, config.listen[0], (settings.service, settings.ports[0][0]), config.tap_mac)
        self._effects = Effects(
            *(self.node, self._feed, self._alarms, self._outlet, self._delivery, self._heartbeats),
            *(self._second_opinion, self._fences, self._checkpoints, self._epochs, self._address),
            *(self._rules, self._copies, self._flow_queries, self._flow_list, probes),
        )
        self._watch = HostWatch(
            *(own, self.node, undo, self._queues, self._address, self._rules),
            *(self._epochs, self._heartbeats, self._second_opinion),
        )
        self._sync = SyncReader(sockets, self.node, self._feed)
        self._queue_fds = tuple((queue.fileno(), queue) for queue in self._queues.values())
        self._sync_fds = frozenset(each.fileno() for each in sockets.both)
        for fd in (*self._sync_fds, *(fd for fd, _ in self._queue_fds)):
            loop.watch(fd)  # read in their turn, below
        loop.watch(self._epochs.fileno(), self._epochs_stored)
        loop.watch(helper.fileno(), self._hear_helper)
        loop.watch(self._changes.fileno(), self._host_changed)
        self._reloads = undo.closing(Reloads(helper, loop, self._apply, lambda: self._rules.busy))
        self._stay = False

    @classmethod
    def open(cls, own: PreparedService, prepared: Prepared, loop: Loop, follow_level: Callable[[str], None]) -> Service:
        """Prepare the host, silently; `begin` lets the service act. It undoes all if it raises `NfqFailoverError`.

        `follow_level` is told what the configuration has for the log's level when that has changed.
        """
        undo = Undo()
        try:
            return cls(own, prepared, loop, undo, follow_level)
        except BaseException:
            undo.run()
            raise

    def _bind_queues(self, counters: int) -> dict[Queue, PacketQueue]:
        """IN first, at each reading: what the client has acknowledged need not be sent to it again."""
        config, limits, bound = self._config, self._config.limits, {}
        for queue, number in ((Queue.IN, config.queue_in), (Queue.OUT, config.queue_out)):
            bound[queue] = self._undo.closing(
                PacketQueue(
                    number,
                    queue,
                    max_len=limits.queue_max_packets,
                    rcvbuf=limits.queue_buffer_bytes,
                    counters=counters,
                    mark=config.mark if queue is Queue.OUT else 0,
                )
            )
        return bound

    def _host_changed(self) -> None:
        """Mend at once what can be mended, if somebody has changed an address or an interface of this host."""
        before = self._address.reopened
        try:
            if self._changes.read():
                self._address.changed(time.monotonic())
            if self._address.reopened != before:
                self._copies.reopen()
        except OSError as error:  # the self-check looks again
            log.error("can't follow a change of this host's addresses", error=str(error))

    # ------------------------------------------------------------------------------------ life

    def begin(self) -> None:
        """Do what the node has decided at its start: a host that goes on does so before it answers anybody."""
        now = time.monotonic()
        for fact in self._watch.facts(now):
            self._feed(fact, now)
        self._effects.carry_out()

    def end(self, for_good: bool) -> None:
        """Leave the service to the peer; unless this host serves alone, and is not told to end that (`for_good`)."""
        if not for_good and self._serves_alone():
            self._stay = True
            log.warning("the daemon ends, and this host goes on serving without it; 'leave' ends that, too")
            return
        self._feed(OperatorCommand("shutdown"), time.monotonic())
        self._effects.carry_out()
        self._heartbeats.drain()
        self._hook.finish(self.node.history)

    def fail(self, for_good: bool) -> None:
        """Something has gone wrong and the daemon ends: not even then does a host that serves alone stop serving."""
        self._stay = self._stay or (not for_good and self._serves_alone())

    def close(self) -> None:
        """Undo what was done to the host, or leave it serving. Can be repeated."""
        self._undo.run()

    def _serves_alone(self) -> bool:
        return self.node.members.serves_alone(time.monotonic())

    def _remove_address(self) -> None:
        if not self._stay:
            self._address.remove_address()

    # ------------------------------------------------------------------------------------ a wake-up, step by step

    def before_wait(self, now: float) -> bool:
        """Say how long the loop may wait, and that it makes progress. Returns whether it does."""
        self._waited_at = now
        if not self._broken:
            self._heartbeats.progress()
        self._loop.deadline(now if self._copies.due else self._due_at())
        return not self._broken

    def _due_at(self) -> float:
        """When the node's timers are due. The node is asked once after each input."""
        if self._due is None:
            self._due = self.node.poll_timeout()
        return self._due

    def read_sync(self, readable: list[int]) -> None:
        """Read what the peers have sent, if there is something; and always before the node's timers fire."""
        fds = self._sync_fds
        if not self._all_read or any(fd in fds for fd in readable) or time.monotonic() >= self._due_at():
            self._all_read = self._sync.read(self._effects.carry_out)

    def read_packets(self, readable: list[int]) -> None:
        """Have the node judge the packets in the queues that are readable; then read copies, if it is time."""
        feed = self._feed
        for fd, queue in self._queue_fds:
            if fd not in readable:
                self._note_progress(queue, self._waited_at)
                continue
            events = queue.read(BATCH)
            now = time.monotonic()
            if self._address.announcer.waiting and events and queue is self._queues[Queue.IN]:
                self._address.heard(now)
            if self._watch.path.expects:
                events = self._watch.path.sift(queue.queue, events)
            for event in events:
                feed(event, now)
            self._note_progress(queue)
            self._effects.carry_out()
        if self._copies.due or self.node.wants_copies:
            self._read_copies()

    def _note_progress(self, queue: PacketQueue, empty_at: float | None = None) -> None:
        if (waits := queue.look(empty_at)) is not None:
            self._feed(waits, time.monotonic())

    def _read_copies(self) -> None:
        now = time.monotonic()
        events = self._copies.read(BATCH)
        for event in events:
            self._feed(event, now)
        self._effects.carry_out()

    def let_time_pass(self) -> bool:
        """Fire the node's timers if they are due, once the peers' news is known. Returns whether the state is new."""
        now = time.monotonic()
        if now < self._due_at() or not (self._all_read or self._sync.overdue(now)):
            return False
        failures, tick = self._alarms.count, self.node.tick_due(now)
        self._feed(TimerFired(), now)
        self._effects.carry_out()
        if tick:
            self._copies.look()
            self._periodic(now)
            self._effects.carry_out()
        if tick or self._alarms.count != failures:
            self._broken = self._alarms.count != failures  # no progress without time: the heartbeats must say so
        before, self._said = self._said, self.node.members.state
        return before is not self._said

    def _look_at_listeners(self, now: float, wanted: bool) -> None:
        if (listening := self._listening.tick(now, wanted)) is not None:
            self._feed(listening, now)

    def _periodic(self, now: float) -> None:
        self._address.tick(now)
        self._fences.tick(now)
        if (reached := self._reach.tick(now, not self.node.members.peer.lost(now))) is not None:
            self._feed(reached, now)
        if (checked := self._second_opinion.tick(now)) is not None:
            self._feed(checked, now)
        self._health.tick(now)
        self._hook.tick(self.node.history, now)
        for found in self._watch.tick(now):
            self._feed(found, now)
        self._look_at_listeners(now, self.node.wants_look)
        for event in self._rules.tick(now):
            self._feed(event, now)
        try:
            gone, ended = self._flow_queries.step()
            if gone or ended:
                self._feed(FlowsGone(gone, ended), now)
            if (flows := self._flow_list.step()) is not None:
                self._feed(FlowsListed(flows, self._queues[Queue.OUT].last_id()), now)
        except OSError as error:  # no memory at this moment: the node asks again
            log.warning("the kernel can't be asked for its connections", error=str(error))
        for undelivered in self._delivery.tick():
            self._feed(undelivered, now)
        if lost := self._copies.lost():
            self._feed(CopiesLost(lost), now)
        if now >= self._next_overrun:
            self._next_overrun = now + OVERRUN_EVERY_S
            if (known := self._address.neighbourhood.follow(self.node.clients, self.node.links.told)) is not None:
                self._feed(known, now)
            if (datagrams := self._sync.lost()) is not None:
                self._feed(datagrams, now)
            for queue in self._queues.values():
                overrun = queue.overrun()
                if overrun is not None:
                    self._feed(overrun, now)
        if self._heartbeats.died():
            log.warning("heartbeat sender died; started again")
            self._heartbeats.restart()
            self.node.republish()

    # ------------------------------------------------------------------------------------ events

    def _feed(self, event: Event, now: float) -> None:
        """Hand the node one event; whatever goes wrong in there must not end the loop."""
        self._outlet.decides(now)
        self._due = None
        try:
            self.node.handle(event, now)
        except MemoryError:
            out_of_memory()
        except Exception as error:  # our own bug: say so, drop the packet, go on
            packet = event.packet if isinstance(event, PacketQueued | FrameCopied) else b""
            if isinstance(event, PacketQueued):
                # The first verdict counts: one that the node gave before it failed comes later, and is refused.
                self._queues[event.queue].verdict(event.packet_id, False)
            self._alarms.report(error, type(event).__name__, packet)

    def answer(self, event: Event) -> None:
        """Hand the node the outcome of something slow, and do at once what follows from it."""
        now = time.monotonic()
        if isinstance(event, HealthChecked) and event.ok and self.node.members.health.failed:
            self._look_at_listeners(now, True)  # it may be another program, and that comes before that it is well
        self._feed(event, now)
        self._effects.carry_out()

    def _epochs_stored(self) -> None:
        for event in self._epochs.finished():
            self.answer(event)

    def _hear_helper(self) -> None:
        """Take the helper's answers."""
        self._helper.serve()
        if self._helper.gone:
            helper_gone()

    # ------------------------------------------------------------------------------------ what operators ask

    @property
    def state(self) -> str:
        """The state of the pair, as this host sees it."""
        return self.node.members.state.label

    def summary(self) -> str:
        """Role, state and epoch, in a few words."""
        members = self.node.members
        state, _ = standing(members, self.node.out.concerns)
        return f"{members.role.name.lower()}, {state}, epoch {members.epoch}"

    def reload(self) -> int:
        """Begin to take over what has changed in the configuration. Returns the number to ask `reloaded` with."""
        return self._reloads.start()

    def reloaded(self, number: int) -> dict[str, Any]:
        """What has come of a reload, JSON-ready."""
        outcome = self._reloads.outcome(number)
        fresh = self.node.sharing.fresh
        if outcome.get("ok") and fresh:
            outcome["waiting"] = f"ports {ports.text(fresh)} are not protected until the other host has them, too"
        if outcome.get("ok"):
            outcome["problems"] = [concern.what for concern in self._rules.concerns(time.monotonic())]
        return outcome

    def _apply(self, changes: Differences) -> None:
        """Go on with another configuration."""
        before = self._config
        config = self._config = with_keys(changes.config, before)
        settings = config.settings
        if config.log_level != before.log_level:
            self._follow_level(config.log_level)
        self.answer(SettingsChanged(settings))
        self._copies.serve(settings.ports)
        self._second_opinion.follow(config)
        if config.health != before.health:
            self._health.follow(config.health)
        self._address.announcer.refresh(config.announce_refresh_ms / 1000)
        self._watch.follow(config)

    def replica_is_whole(self) -> dict[str, Any]:
        """Believe the operator that the replica's application is as the server's. Returns the state."""
        self.answer(OperatorCommand("replica-is-whole"))
        return {"state": self.state}

    def claim(self) -> dict[str, Any]:
        """Believe the operator that the peer is off, unless somebody answers. Returns the states before and after."""
        before = self.state
        if self.node.members.claimable and (why := self._address.refuse_claim()):
            return {"error": why}
        self.answer(OperatorCommand("claim"))
        return {"before": before, "state": self.state}

    def dump(self) -> None:
        """Write the status into the log."""
        dump(self.node.status(time.monotonic()))

    def status(self) -> dict[str, Any]:
        """The whole status, JSON-ready."""
        status: dict[str, Any] = self.node.status(time.monotonic()).as_dict()
        status["shell"] = {
            "queues": {q.name.lower(): queue.gauge() for q, queue in self._queues.items()},
            "sync_socket": self._sync.gauge(),
            "injected": self._injector.sent,
            "decided_late": self._outlet.late,
            "inject_failed": dict(self._injector.failed),
            "internal_errors": self._alarms.count,
            "rules": self._rules.describe(),
            "privileges": describe(),
            "announcements": self._address.announcer.describe() | self._address.neighbourhood.describe(),
        }
        return status
