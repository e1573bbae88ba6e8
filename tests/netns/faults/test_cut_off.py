"""A host that can't talk to the other one holds it against nobody, whatever it is that has been taken from it."""

from __future__ import annotations

import time

import pytest

from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.fault_world import CALM_MS, DETECTION_S, FaultWorld, talk
from tests.support.lab_world import eventually
from tests.support.shared_lab import each_world, shared_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OPTIONS = Options(rate="100mbit", heartbeat_ms=CALM_MS)
OUTAGE_S = DETECTION_S + 2 * CALM_MS / 1000  # noticed as silence, and shorter than the time to act


shared = shared_lab(OPTIONS)
world = each_world()


def on(world: FaultWorld, node: str, *words: str) -> None:
    netns.tool(list(words), None, namespace(world.lab.name, node))


@pytest.mark.parametrize("what", ["address", "route"])
def test_a_backup_that_loses_what_it_needs_leaves_the_primary_alone(world: FaultWorld, what: str) -> None:
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    own = TWO_HOSTS.address(backup)
    lines, epoch = len(world.log(backup)), world.epoch()
    break_it, mend_it = {
        "address": (("addr", "del", f"{own}/24", "dev", "eth0"), ("addr", "add", f"{own}/24", "dev", "eth0")),
        "route": (("route", "del", "10.77.0.0/24"), ("route", "add", "10.77.0.0/24", "dev", "eth0", "src", own)),
    }[what]
    with talk(world) as living:
        living.exchange()
        on(world, backup, "ip", *break_it)
        time.sleep(OUTAGE_S)
        assert world.comes(backup, lines, "own-address-missing" if what == "address" else "route-missing")
        on(world, backup, "ip", *mend_it)
        assert eventually(lambda: world.states() == {primary: "protected", backup: "shadowing"}), world.states()
        living.exchange()
        time.sleep(DETECTION_S)
        assert world.protects(living.connection), "the outage was shorter than the time to act"
    assert not world.said(backup, lines, "after=fencing") and world.epoch() == epoch


def test_a_backup_whose_datagrams_are_dropped_here_says_so_and_does_not_act(world: FaultWorld) -> None:
    """It hears the primary all the time; then the primary's daemon restarts, and can't be answered."""
    primary = world.lab.resolve("primary")
    backup = TWO_HOSTS.other(primary)
    lines = len(world.log(backup))
    rule = ("OUTPUT", "-p", "udp", "--dport", "7766", "-j", "DROP")
    on(world, backup, "iptables", "-I", *rule)
    try:
        assert world.comes(backup, lines, "sends-fail")
        assert world.ask(backup)["state"] in ("unprotected", "refused")
        time.sleep(2 * DETECTION_S)
        assert not world.said(backup, lines, "after=fencing")
        assert world.states()[primary] is not None
    finally:
        on(world, backup, "iptables", "-D", *rule)
    world.becomes(**{primary: "protected", backup: "shadowing"})
