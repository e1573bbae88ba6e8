"""The checks of what a takeover needs besides an address and its rules, put together for a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nfq_failover.config import Config
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.privileged import descriptors
from nfq_failover.shell.privileged.client import HelperClient
from nfq_failover.shell.selfcheck.checks import Check
from nfq_failover.shell.selfcheck.clock import ClockRate
from nfq_failover.shell.selfcheck.fence import FenceReady
from nfq_failover.shell.selfcheck.helper import Descriptors, HelperAlive
from nfq_failover.shell.selfcheck.parts import QueuesOurs


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
