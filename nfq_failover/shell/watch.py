"""What a service's host is looked at for, again and again: whether a takeover would find what it needs here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from nfq_failover.config import Config
from nfq_failover.core.events import Event, Queue
from nfq_failover.core.node import Node
from nfq_failover.shell.fencing.second_opinion import SecondOpinion
from nfq_failover.shell.firewall.keeper import RulesKeeper
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.made_up import MadeUpClients
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.peer.heartbeat_process import HeartbeatProcess
from nfq_failover.shell.privileged.client import RemoteRules
from nfq_failover.shell.selfcheck.address import AddressCheck
from nfq_failover.shell.selfcheck.checks import Check, SelfChecks
from nfq_failover.shell.selfcheck.configuration import file_wrong
from nfq_failover.shell.selfcheck.conflict import ConflictCheck
from nfq_failover.shell.selfcheck.disk import StateDisk
from nfq_failover.shell.selfcheck.facts import HostFactsReader
from nfq_failover.shell.selfcheck.foreign_rules import ForeignRules, Hint, TakenMark
from nfq_failover.shell.selfcheck.parts import Found, HeartbeatsGo
from nfq_failover.shell.selfcheck.ready import path_check, ready_checks
from nfq_failover.shell.selfcheck.routes import RoutesCheck
from nfq_failover.shell.selfcheck.wall_clock import WallClockReader
from nfq_failover.shell.start import PreparedService
from nfq_failover.shell.state.epoch import EpochStore
from nfq_failover.shell.undo import Undo


class HostWatch:
    """The self-checks of a service's host, its facts, and its wall clock. `path` must see what the queue of what comes
    in has read, while it expects something."""

    def __init__(
        self,
        own: PreparedService,
        node: Node,
        undo: Undo,
        queues: Mapping[Queue, PacketQueue],
        address: ServiceAddress,
        rules: RulesKeeper,
        epochs: EpochStore,
        heartbeats: HeartbeatProcess,
        second_opinion: SecondOpinion,
    ) -> None:
        """Prepare to look; what is opened is given back by `undo`."""
        config, settings = own.config, own.config.settings
        self._config = config
        peer, *_ = settings.peers
        self._node = node
        self._facts = HostFactsReader(config)
        self._clock = WallClockReader()
        self._routes = undo.closing(RoutesCheck(config, lambda: node.shadow.flows))
        self._foreign_rules = ForeignRules(RemoteRules(own.helper).start_look)
        self.path = path_check(
            *(config, own.probe, queues, rules, self._foreign_rules),
            lambda: self._config.settings.ports,
            lambda: (*node.shadow.flows, *node.gate.flows),
            self._doubt_path,
            undo.closing(MadeUpClients(config.interface, settings.service, ip_address(peer.address).packed)),
        )
        out = queues[Queue.OUT]
        checks: list[Check] = [
            AddressCheck(address),
            ConflictCheck(address.neighbourhood, config.service),
            self._routes,
            self._foreign_rules,
            self.path,
            TakenMark(config.mark, lambda: out.marked),
            *ready_checks(config, own.helper, queues.values(), lambda: self._hears(peer.name)),
            StateDisk(epochs, own.directory, str(config.state_dir), lambda: len(node.shadow.flows)),
            HeartbeatsGo(heartbeats.silent_s, settings.heartbeat_interval_ms),
            Found("rules", rules.concerns),
            Found("witness", second_opinion.concerns),
            Found("checkpoint", own.store.concerns),
            Found("configuration", lambda _: file_wrong(self._config)),
        ]
        self._checks = SelfChecks(checks)

    def facts(self, now: float) -> Iterator[Event]:
        """How the host is set up, and its wall clock: what has changed of that."""
        if (clock := self._clock.tick(now)) is not None:
            yield clock
        if (facts := self._facts.tick(now)) is not None:
            yield facts

    def tick(self, now: float) -> Iterator[Event]:
        """All that has changed."""
        yield from self.facts(now)
        if (checked := self._checks.tick(now)) is not None:
            yield checked

    def follow(self, config: Config) -> None:
        """Go on with another configuration."""
        self._config = config
        self._routes.follow(config)
        self._facts.follow(config)
        self._checks.look_again("fence")

    def rules_changed(self) -> None:
        """Somebody has changed the host's rules."""
        self._checks.look_again("foreign-rules")
        self._checks.look_again("path")

    def _doubt_path(self) -> tuple[Hint, ...]:
        """Something is dropped: look at the rules once more, and return what is known of them."""
        self._checks.look_again("foreign-rules")
        return self._foreign_rules.hints or ()

    def _hears(self, peer: str) -> bool:
        return not self._node.links.by_name[peer].view.lost(time.monotonic())
