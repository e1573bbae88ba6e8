"""The checks of what a takeover needs besides an address and its rules, put together for a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from nfq_failover.config import Config
from nfq_failover.core.events import Queue
from nfq_failover.core.ports import Ports
from nfq_failover.shell.firewall.keeper import RulesKeeper
from nfq_failover.shell.firewall.path import PathProbe, ProbeSender
from nfq_failover.shell.host.made_up import MadeUpClients
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.privileged import descriptors
from nfq_failover.shell.privileged.client import HelperClient
from nfq_failover.shell.selfcheck.checks import Check
from nfq_failover.shell.selfcheck.clock import ClockRate
from nfq_failover.shell.selfcheck.fence import FenceReady
from nfq_failover.shell.selfcheck.foreign_rules import ForeignRules, Hint
from nfq_failover.shell.selfcheck.helper import Descriptors, HelperAlive
from nfq_failover.shell.selfcheck.parts import QueuesOurs
from nfq_failover.shell.selfcheck.path import Circumstances, PathCheck
from nfq_failover.wire.segment import FlowKey


def ready_checks(
    config: Config, helper: HelperClient, queues: Iterable[PacketQueue], heard: Callable[[], bool]
) -> list[Check]:
    """Helper, fence, queues, descriptors, clock. `heard()`: the peer is there."""
    settings = config.settings
    tolerated = settings.detection_ms / (2 * settings.release_after_ms - settings.detection_ms)
    checks: list[Check] = [
        HelperAlive(helper),
        Descriptors(descriptors.left),
        QueuesOurs(queues),
        ClockRate(tolerated),
    ]
    if config.fence:
        peer, *_ = settings.peers
        checks.append(FenceReady(helper, peer.name, settings.fence_deadline_ms, heard))
    return checks


def path_check(
    config: Config,
    sender: ProbeSender,
    queues: Mapping[Queue, PacketQueue],
    rules: RulesKeeper,
    foreign: ForeignRules,
    ports: Callable[[], Ports],
    flows: Callable[[], Iterable[FlowKey]],
    doubt: Callable[[], Sequence[Hint]],
    clients: MadeUpClients,
) -> PathCheck:
    """Whether the host's own rules let the service's packets through. `ports`, `flows`, `doubt`, `clients` as of
    `PathCheck`."""
    service = config.settings.service
    tracked = config.conntrack != "notrack"
    come_in, go_out = queues[Queue.IN], queues[Queue.OUT]
    return PathCheck(
        PathProbe(
            *(service, sender),
            accept=lambda packet_id: come_in.verdict(packet_id, True),
            refuse=lambda packet_id: go_out.verdict(packet_id, False),
        ),
        ports,
        flows,
        clients,
        lambda: Circumstances(rules.in_force, sender.owned, foreign.guarded, tracked),
        lambda: come_in.gauge()["now"],
        doubt,
    )
