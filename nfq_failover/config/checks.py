"""What settings must fit together, and what is allowed, but hardly meant."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from nfq_failover.config import schema
from nfq_failover.config.faults import Faults
from nfq_failover.config.model import Config
from nfq_failover.core.settings import Settings
from nfq_failover.errors import Fault

_Found = tuple[tuple[tuple[str, str], ...], str]


def check(config: Config, faults: Faults) -> None:
    """Note where settings contradict each other, as far as they are not wrong by themselves."""
    for concerned, what in (*_hosts(config), *_rest(config)):
        if faults.well(concerned):
            faults.add(*concerned[0], what)


def _top(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple(("", name) for name in names)


def _hosts(config: Config) -> Iterator[_Found]:
    """What is wrong: the settings that it is about, that of the error first, and the text."""
    own = config.listen[0]
    for peer in config.settings.peers:
        if peer.name == config.settings.name:
            both = (("peer", "name"), ("", "name"))
            yield both, f"the peer has our own name '{peer.name}': give each host its own"
        for address, whose in ((own, ("", "listen")), (peer.address, ("peer", "address"))):
            if config.service == address:
                what = f"'service' must be an address of its own, not a host's ({config.service})"
                yield (("", "service"), whose), what
        if peer.address == own:
            both = (("peer", "address"), ("", "listen"))
            yield both, f"the peer has our own address {own}: 'listen' is this host, [[peer]] the other"


def _rest(config: Config) -> Iterator[_Found]:
    settings = config.settings
    if config.tap == "multicast" and (config.tap_mac is None or not int(config.tap_mac[:2], 16) & 1):
        what = "tap = \"multicast\" needs 'tap_mac', a multicast MAC such as 01:00:5e:4d:00:64"
        yield _top("tap", "tap_mac"), what
    if settings.boot_alone == "fence" and not config.fence:
        yield _top("boot_alone", "fence"), "boot_alone = \"fence\" needs a 'fence' command"
    if settings.has_witness and settings.split_brain_accepted:
        what = 'a witness and split_brain = "accepted" contradict each other: leave one out'
        yield _top("split_brain"), what
    least = settings.detection_ms + 2 * settings.heartbeat_interval_ms
    if settings.has_witness and settings.lease_ms < least:
        concerned = (("witness", "lease_ms"), *_top("heartbeat_interval_ms", "heartbeat_count"))
        yield concerned, f"'lease_ms' must be at least {least} with these heartbeats"
    if config.queue_in == config.queue_out:
        yield _top("queue_out", "queue_in"), "'queue_in' and 'queue_out' must differ"
    if config.mark & (config.mark - 1):
        yield _top("mark"), f"'mark' must be a single bit, like {schema.find('mark').default:#x}"
    health = config.health
    if health is not None and health.port is None and not health.command:
        concerned = (("health", "connect"), ("health", "command"))
        yield concerned, "nothing would be checked: give a 'command', or set connect = true"


# ------------------------------------------------------------------------------------ what is allowed, but hardly meant


def doubts(config: Config) -> Iterator[Fault]:
    """What a configuration allows, but probably does not mean."""
    settings = config.settings
    if not config.fence and not config.witness and not settings.split_brain_accepted:
        what = "without 'fence' the backup never takes over by itself, unless split_brain = \"accepted\""
        yield Fault(what, setting="fence")
    if not config.fence and settings.split_brain_accepted:
        what = "split_brain is accepted without a fence: when the sync channel breaks, both hosts may serve"
        yield Fault(what, setting="split_brain")
    program = config.fence.command[0] if config.fence else ""
    if program and shutil.which(program) is None:
        what = f"the fence command {program} is not there or not executable: no takeover will succeed"
        yield Fault(what, setting="fence")
    if config.witness and not config.fence:
        what = "with a witness and no fence a host that is paused as a whole, with its clock, may be heard once more"
        yield Fault(what, table="witness")
    yield from _hasty(config.settings)
    if not config.privileges.drop:
        what = "[privileges] drop = false: the daemon keeps all of root's rights while it reads from the network"
        yield Fault(what, table="privileges", setting="drop")


def _hasty(settings: Settings) -> Iterator[Fault]:
    """Deadlines by which a replica is given up that its client is still to wait for."""
    patience_ms = settings.replica_patience_ms
    out_of_step, hole = ("divergence", "out_of_step_ms"), ("", "hole_deadline_ms")
    if not patience_ms:
        what = (
            "replica_patience_ms = 0 has clients wait for as long as it takes, but a replica that is"
            f" 'out_of_step_ms' = {settings.out_of_step_ms} late is given up"
        )
        yield Fault(what, table=out_of_step[0], setting=out_of_step[1])
        return
    for (table, setting), deadline_ms in ((out_of_step, settings.out_of_step_ms), (hole, settings.hole_deadline_ms)):
        if deadline_ms <= patience_ms:
            what = (
                f"'{setting}' = {deadline_ms} is not more than 'replica_patience_ms' = {patience_ms}: a connection"
                " whose replica is merely slow is called protected, and may be reset after a takeover"
            )
            yield Fault(what, table=table, setting=setting)


def advice(config: Config) -> list[str]:
    """The same, a sentence each."""
    return [fault.what for fault in doubts(config)]
