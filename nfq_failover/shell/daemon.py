"""The daemon: one loop that feeds a node with what happens, and carries out what it decides.

Order matters. On each wake-up the sync socket is read first and completely, so that news (a newer epoch, late
heartbeats) counts before packets are judged and before timers fire; then the answers of slow actions, then the queues,
then time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog

from nfq_failover.config import Config
from nfq_failover.core.events import (
    ApplyRules,
    CheckLink,
    CopiesLost,
    DatagramReceived,
    Effect,
    Event,
    Fence,
    FlowsGone,
    Inject,
    LinkChecked,
    Log,
    OperatorCommand,
    OwnAddress,
    PacketQueued,
    Profile,
    PublishHeartbeat,
    QueryFlows,
    Queue,
    SendDatagram,
    StoreEpoch,
    TimerFired,
    Verdict,
)
from nfq_failover.core.node import Node
from nfq_failover.errors import CommandError, InternalError
from nfq_failover.shell import flows
from nfq_failover.shell.control import ControlServer
from nfq_failover.shell.copies import InboundCopies
from nfq_failover.shell.epoch_store import EpochStore
from nfq_failover.shell.fence import RunningFence
from nfq_failover.shell.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.host import Host, link_up
from nfq_failover.shell.inject import Injector
from nfq_failover.shell.nfqueue import PacketQueue
from nfq_failover.shell.rules_keeper import RulesKeeper

BATCH = 64
MAX_WAIT_S = 0.05
UDP_RCVBUF = 16 << 20
ANNOUNCE_GAPS_S = (0.0, 0.02, 0.1, 0.5, 1.0, 2.0)
_SO_RCVBUFFORCE = 33

log = structlog.get_logger()


class Daemon:
    """Runs one node until it is told to stop. `run` undoes everything that it did to the host, on every way out."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._undo: list[Callable[[], object]] = []
        self._readers: dict[int, Callable[[], None]] = {}
        self._poll = select.epoll()
        self._fence: RunningFence | None = None
        self._announce_at: list[float] = []
        self._copies: InboundCopies | None = None
        self._stopping = False
        self._failures = 0

    # ------------------------------------------------------------------------------------ life

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start, serve until SIGTERM or SIGINT, undo. Raises `NfqFailoverError` if it can't start."""
        try:
            self._start()
            ready()
            self._loop()
        finally:
            for undo in reversed(self._undo):
                try:
                    undo()
                except Exception as error:  # every other thing must still be undone
                    log.error("cleaning up failed", step=getattr(undo, "__qualname__", str(undo)), error=str(error))
            self._poll.close()

    def _start(self) -> None:
        config = self.config
        config.state_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.epochs = EpochStore(config.state_dir / "epoch.json")
        self._undo.append(self.epochs.close)
        epoch, served = self.epochs.load()
        self.host = Host(
            config.service, config.interface, config.tap, config.tap_mac, config.state_dir / "address-owned"
        )
        self._undo.append(self.host.restore)
        self.host.prepare()
        self.rules = RulesKeeper(config, self._watch, self._unwatch)
        self._undo.append(self.rules.close)
        self.rules.silence()  # before the address exists
        self.queues = {
            Queue.OUT: PacketQueue(config.queue_out, Queue.OUT),
            Queue.IN: PacketQueue(config.queue_in, Queue.IN),
        }
        self._undo += [queue.close for queue in self.queues.values()]
        self.injector = Injector(config.mark)
        self._undo.append(self.injector.close)
        if config.manage_address:
            self.host.add_address()
            self._undo.append(self.host.remove_address)
        self.udp = self._sync_socket()
        self._undo.append(self.udp.close)
        self.heartbeats = HeartbeatProcess(config.settings.heartbeat_interval_ms, self.udp)
        self._undo.append(self.heartbeats.close)
        self.control = ControlServer(config.state_dir / "control.sock", self._control)
        self._undo.append(self.control.close)
        self.node = Node(config.settings, os.urandom, epoch, served, time.monotonic())
        self._watch(self.udp.fileno(), lambda: None)
        for queue in self.queues.values():
            self._watch(queue.fileno(), lambda: None)
        self._watch(self.epochs.fileno(), self._epochs_stored)
        self._watch(self.control.fileno(), self._control_connect)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _take_lock(self) -> None:
        lock = os.open(self.config.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._undo.append(lambda: os.close(lock))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"another daemon already uses {self.config.state_dir}: stop it first") from None

    def _sync_socket(self) -> socket.socket:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, UDP_RCVBUF)
            udp.setblocking(False)
            udp.bind(self.config.listen)
        except OSError as error:
            udp.close()
            host, port = self.config.listen
            raise CommandError(f"can't listen on {host}:{port} ({error.strerror}): check 'listen'") from None
        return udp

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        self._stopping = True

    # ------------------------------------------------------------------------------------ the loop

    def _watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._poll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._readers[fd]
        with contextlib.suppress(OSError):
            self._poll.unregister(fd)

    def _loop(self) -> None:
        node, clock = self.node, time.monotonic
        while True:
            self.heartbeats.progress()
            now = clock()
            due = node.poll_timeout()
            wait = min(max(due - now, 0.0), MAX_WAIT_S) if due is not None else MAX_WAIT_S
            ready = [fd for fd, _ in self._poll.poll(wait)]
            self._read_sync()
            for fd in ready:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
            self._read_packets()
            self._read_copies()
            now = clock()
            due = node.poll_timeout()
            if due is None or now >= due:
                self._feed(TimerFired(), now)
                self._periodic(now)
                self._carry_out()
            if self._stopping:
                self._feed(OperatorCommand("shutdown"), clock())
                self._carry_out()
                self.heartbeats.drain()
                return

    def _feed(self, event: Event, now: float) -> None:
        """Hand the node one event; whatever goes wrong in there must not end the loop."""
        try:
            self.node.handle(event, now)
        except Exception as error:  # our own bug: say so, drop the packet, go on
            self._failures += 1
            packet = event.packet.hex() if isinstance(event, PacketQueued) else ""
            log.error("internal error", error=repr(error), event=type(event).__name__, packet=packet[:400])
            log.debug("internal error", exc_info=True)
            if isinstance(event, PacketQueued):
                self.queues[event.queue].verdict(event.packet_id, False)

    def _read_sync(self) -> None:
        receive = self.udp.recvfrom
        count = 0
        while True:
            try:
                data, source = receive(2048)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error of an earlier datagram
                continue
            self._feed(DatagramReceived(source, data), time.monotonic())
            count += 1
            if count % BATCH == 0:
                self._carry_out()
        if count:
            self._carry_out()

    def _read_packets(self) -> None:
        for queue in self.queues.values():
            events = queue.read(BATCH)
            if not events:
                continue
            now = time.monotonic()
            for event in events:
                self._feed(event, now)
            self._carry_out()

    def _read_copies(self) -> None:
        copies = self._copies
        if copies is None:
            return
        now = time.monotonic()
        for event in copies.read(BATCH):
            self._feed(event, now)
        self._carry_out()

    def _periodic(self, now: float) -> None:
        while self._announce_at and self._announce_at[0] <= now:
            self._announce_at.pop(0)
            self.host.announce()
        if self._fence is not None and now >= self._fence.deadline:
            self._fence_ended()
        for event in self.rules.tick(now):
            self._feed(event, now)
        if self._copies is not None and (lost := self._copies.lost()):
            self._feed(CopiesLost(lost), now)
        if self.heartbeats.died():
            log.error("heartbeat sender died; started again")
            self.heartbeats.restart()
            self.node.republish()

    # ------------------------------------------------------------------------------------ effects

    def _carry_out(self) -> None:
        poll, queues = self.node.poll_effect, self.queues
        mark, inject = self.config.mark, self.injector.send
        while (effect := poll()) is not None:
            if isinstance(effect, Verdict):
                queues[effect.queue].verdict(effect.packet_id, effect.accept, effect.packet, mark)
            elif isinstance(effect, Inject):
                # What was decided before must be in effect first: an overtaken window or ACK would be taken back.
                for queue in queues.values():
                    queue.flush()
                inject(effect.packet)
            elif isinstance(effect, SendDatagram):
                with contextlib.suppress(OSError):  # lost datagrams are repeated
                    self.udp.sendto(effect.data, effect.destination)
            else:
                self._carry_out_rare(effect)
        for queue in queues.values():
            queue.flush()

    def _carry_out_rare(self, effect: Effect) -> None:
        if isinstance(effect, PublishHeartbeat):
            self.heartbeats.publish(effect.destination, effect.template)
        elif isinstance(effect, Log):
            getattr(log, effect.level)(effect.event, **effect.fields)
        elif isinstance(effect, CheckLink):
            self._feed(LinkChecked(*link_up(self.config.interface)), time.monotonic())
        elif isinstance(effect, Fence):
            self._start_fence(effect)
        elif isinstance(effect, StoreEpoch):
            self.epochs.store(effect.epoch, effect.role)
        elif isinstance(effect, OwnAddress):
            self._own_address(effect)
        elif isinstance(effect, ApplyRules):
            self._follow_profile(effect.profile)
            self.rules.apply(effect)
        elif isinstance(effect, QueryFlows):
            self._feed(FlowsGone(flows.gone(effect.flows)), time.monotonic())
        else:
            raise InternalError(f"unknown effect {effect}")

    def _own_address(self, effect: OwnAddress) -> None:
        self.host.be_heard(effect.own)
        now = time.monotonic()
        gaps = [ANNOUNCE_GAPS_S[min(i, len(ANNOUNCE_GAPS_S) - 1)] for i in range(effect.announce)]
        self._announce_at = [now + gap + (max(i - 5, 0)) * 2.0 for i, gap in enumerate(gaps)] if effect.own else []
        while self._announce_at and self._announce_at[0] <= now:
            self._announce_at.pop(0)
            self.host.announce()

    def _follow_profile(self, profile: Profile) -> None:
        """A protected primary keeps copies of what comes in."""
        if profile is Profile.PRIMARY and self._copies is None:
            config = self.config
            self._copies = InboundCopies(config.interface, config.settings.service, config.settings.ports)
            self._undo.append(self._copies.close)
            self._watch(self._copies.fileno(), lambda: None)
        elif profile is not Profile.PRIMARY and self._copies is not None:
            self._unwatch(self._copies.fileno())
            self._undo.remove(self._copies.close)
            self._copies.close()
            self._copies = None

    def _start_fence(self, effect: Fence) -> None:
        peer = next(p for p in self.config.settings.peers if p.name == effect.peer)
        try:
            self._fence = RunningFence(self.config.fence, peer, effect.deadline_ms)
        except OSError as error:
            from nfq_failover.core.events import FenceFinished

            self._feed(FenceFinished(peer.name, False, f"can't start: {error}"), time.monotonic())
            return
        self._watch(self._fence.fileno(), self._fence_ended)

    def _fence_ended(self) -> None:
        fence, self._fence = self._fence, None
        if fence is not None:
            self._unwatch(fence.fileno())
            self._feed(fence.finish(), time.monotonic())
            self._carry_out()

    def _epochs_stored(self) -> None:
        for event in self.epochs.finished():
            self._feed(event, time.monotonic())
        self._carry_out()

    # ------------------------------------------------------------------------------------ control

    def _control_connect(self) -> None:
        for fd in self.control.accept():
            self._watch(fd, lambda fd=fd: self._control_serve(fd))  # type: ignore[misc]

    def _control_serve(self, fd: int) -> None:
        reader = self._readers[fd]
        self._unwatch(fd)
        if self.control.serve(fd):
            self._watch(fd, reader)

    def _control(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        del request
        if command == "status":
            return self._status()
        if command == "claim":
            before = self.node.members.state
            self._feed(OperatorCommand("claim"), time.monotonic())
            self._carry_out()
            return {"before": before.label, "state": self.node.members.state.label}
        if command == "ping":
            return {"pong": True}
        return {"error": f"unknown command '{command}': status, claim or ping"}

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.node.status(time.monotonic())
        status["shell"] = {
            "queues": {q.name.lower(): {"dropped": queue.dropped()} for q, queue in self.queues.items()},
            "injected": self.injector.sent,
            "inject_failed": dict(self.injector.failed),
            "internal_errors": self._failures,
            "rules": self.rules.describe(),
        }
        return status
