"""A pair of which no client wants anything knows whether its tap works, whichever it is."""

from __future__ import annotations

from typing import Any

import pytest

from nfq_failover.lab import nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options, Store
from tests.support.lab_world import SERVER, eventually, lab

pytestmark = pytest.mark.netns


def status(pair: Lab, node: str) -> dict[str, Any]:
    return nodes.ask_daemon(Store(pair.name), node) or {"counters": {}, "concerns": [], "connections": []}


def came(pair: Lab) -> int:
    return int(status(pair, "b")["counters"].get("tap-probes-came", 0))


def concerns(pair: Lab, node: str) -> set[str]:
    return {each["code"] for each in status(pair, node)["concerns"]}


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_probes_come_by_the_tap_and_a_deaf_one_is_known_on_both_hosts(tap: str) -> None:
    with lab(Options(heartbeat_ms=200, tap=tap)) as pair:
        pair.serve(SERVER)
        assert eventually(lambda: came(pair) > 0, 20), status(pair, "b")
        assert "tap-silent" not in concerns(pair, "a") | concerns(pair, "b")
        for node in ("a", "b"):
            assert status(pair, node)["connections"] == []
            assert not status(pair, node)["counters"].get("own-packet-queued")
        if tap == "multicast":
            drop = ("-d", "10.77.0.100", "-p", "tcp", "--sport", "0", "-j", "DROP")
            pair.run("b", ["iptables", "-t", "raw", "-I", "PREROUTING", *drop])
            assert eventually(lambda: all("tap-silent" in concerns(pair, node) for node in ("a", "b")), 25)
            pair.run("b", ["iptables", "-t", "raw", "-D", "PREROUTING", *drop])
            assert eventually(lambda: not any("tap-silent" in concerns(pair, node) for node in ("a", "b")), 10)
