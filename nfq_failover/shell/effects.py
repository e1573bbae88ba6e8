"""Carries out what a node has decided, each effect by the part of the shell that it is for."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from nfq_failover.core.events import (
    ApplyRules,
    AskWitness,
    CheckLink,
    Effect,
    Event,
    Fence,
    Inject,
    ListFlows,
    Log,
    OwnAddress,
    PublishHeartbeat,
    QueryFlows,
    SaveCheckpoint,
    SendDatagram,
    SendProbe,
    StoreEpoch,
    TellClients,
    Verdict,
)
from nfq_failover.core.node import Node
from nfq_failover.errors import InternalError
from nfq_failover.shell.fencing.second_opinion import SecondOpinion
from nfq_failover.shell.firewall.keeper import RulesKeeper
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.connections import FlowList, FlowQueries
from nfq_failover.shell.host.tap_probe import TapProbes
from nfq_failover.shell.packets.outlet import Outlet
from nfq_failover.shell.packets.primary_copies import PrimaryCopies
from nfq_failover.shell.peer.delivery import Delivery
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.privileged.client import RemoteFences
from nfq_failover.shell.state.checkpoint import CheckpointStore
from nfq_failover.shell.state.epoch import EpochStore
from nfq_failover.shell.trouble import Alarms, out_of_memory

ROUNDS = 64  # after so many bugs in a row the rest waits for the next input

log = structlog.get_logger()


class Effects:
    """Drains a node. The service's parts are handed in; `feed(event, now)` hands the node an answer that is known at
    once."""

    def __init__(
        self,
        node: Node,
        feed: Callable[[Event, float], None],
        alarms: Alarms,
        outlet: Outlet,
        delivery: Delivery,
        heartbeats: HeartbeatProcess,
        second_opinion: SecondOpinion,
        fences: RemoteFences,
        checkpoints: CheckpointStore,
        epochs: EpochStore,
        address: ServiceAddress,
        rules: RulesKeeper,
        copies: PrimaryCopies,
        flow_queries: FlowQueries,
        flow_list: FlowList,
        probes: TapProbes,
    ) -> None:
        self._node = node
        self._feed = feed
        self._alarms = alarms
        self._outlet = outlet
        self._delivery = delivery
        self._heartbeats = heartbeats
        self._second_opinion = second_opinion
        self._fences = fences
        self._checkpoints = checkpoints
        self._epochs = epochs
        self._address = address
        self._rules = rules
        self._copies = copies
        self._flow_queries = flow_queries
        self._flow_list = flow_list
        self._probes = probes

    def carry_out(self) -> None:
        """Do what the node has decided by now; for most of it the kernel is asked at the end, once."""
        for _ in range(ROUNDS):
            try:
                self._drain()
                break
            except OSError:
                raise  # a queue that no longer works: silence, and the peer takes over
            except MemoryError:
                out_of_memory()
            except Exception as error:  # our own bug: the next effect may be right
                self._alarms.report(error, "effects")
        self._outlet.flush()

    def _drain(self) -> None:
        poll, outlet = self._node.poll_effect, self._outlet
        # Ends: what is done adds no effect, but for a link check that is known already: one each.
        while (effect := poll()) is not None:
            if isinstance(effect, Verdict):
                outlet.verdict(effect)
            elif isinstance(effect, Inject):
                outlet.inject(effect)
            elif isinstance(effect, SendDatagram):
                self._delivery.send(effect.data, effect.destination)
            else:
                try:
                    self._carry_out_rare(effect)
                except OSError as error:  # the interface is gone, for instance
                    log.error("could not be done", effect=repr(effect), error=str(error))

    def _carry_out_rare(self, effect: Effect) -> None:
        if isinstance(effect, PublishHeartbeat):
            self._heartbeats.publish(effect.destination, effect.template)
        elif isinstance(effect, Log):
            getattr(log, effect.level)(effect.event, **effect.fields)
        elif isinstance(effect, CheckLink | AskWitness):
            if (known := self._second_opinion.seek(effect)) is not None:
                self._feed(known, time.monotonic())
        elif isinstance(effect, Fence):
            self._fences.start(effect)
        elif isinstance(effect, SaveCheckpoint):
            self._checkpoints.write(effect.writes)
        elif isinstance(effect, StoreEpoch):
            self._epochs.store(effect.epoch, effect.role)
        elif isinstance(effect, OwnAddress):
            self._address.own_address(effect.own, effect.announce, time.monotonic())
        elif isinstance(effect, TellClients):
            self._address.neighbourhood.tell(effect.clients, time.monotonic())
        elif isinstance(effect, ApplyRules):
            self._copies.follow(effect.profile)
            self._rules.apply(effect)
        elif isinstance(effect, SendProbe):
            self._probes.send(effect)
        elif isinstance(effect, QueryFlows):
            self._flow_queries.ask(effect.flows)
        elif isinstance(effect, ListFlows):
            self._flow_list.start()
        else:
            raise InternalError(f"unknown effect {effect}")
