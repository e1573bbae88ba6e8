"""The doctor on real hosts: of a pair that is well, of one host without its daemon, and of what is wrong there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options, Store
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.daemon_world import DaemonWorld, daemon_world
from tests.support.lab_world import SERVER, connect, eventually, lab

pytestmark = pytest.mark.netns


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as made:
        yield made


def findings(examined: dict[str, Any]) -> dict[str, str]:
    """Code and weight of all that was found."""
    return {each["code"]: each["weight"] for result in examined["results"] for each in result["findings"]}


def seen(examined: dict[str, Any]) -> dict[str, str]:
    return {result["subject"]: result["seen"] for result in examined["results"]}


def examine(pair: Lab, node: str) -> dict[str, Any]:
    config = Store(pair.name).directory / node / "config.toml"
    done = pair.run(node, [sys.executable, "-m", "nfq_failover", "doctor", "--json", "--config", str(config)])
    examined: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == examined["exit"], done.stderr
    return examined


def test_a_pair_that_is_well_and_a_host_whose_daemon_is_off() -> None:
    with lab(Options(heartbeat_ms=200)) as pair:
        pair.serve(SERVER)
        with connect(pair):
            assert eventually(lambda: [row["protected"] for row in pair.status()["connections"]] == [True])
            for node in TWO_HOSTS.hosts:
                examined = examine(pair, node)
                assert not {"degraded", "unprotected"} & set(findings(examined).values()), examined
                assert examined["exit"] == 0  # whatever it advises
                assert seen(examined)["connections"] == "all 1 are protected"
        os.kill(pair.daemon_pid("b"), signal.SIGTERM)

        def traces() -> tuple[str, list[str]]:
            rules = pair.run("b", ["iptables-save"]).stdout.splitlines()
            return pair.run("b", ["ip", "-o", "address"]).stdout, [line for line in rules if "NFQF" in line]

        assert eventually(lambda: not traces()[1])
        before = traces()
        examined = examine(pair, "b")
        assert not {"degraded", "unprotected"} & set(findings(examined).values()), examined
        assert seen(examined)["peer"] == "a answers at 10.77.0.2:7766, with our key"
        assert seen(examined)["address"] == "a answers for 10.77.0.100: it serves"
        assert seen(examined)["settings"] == "b and a are set up alike"
        assert seen(examined)["clocks"].startswith("that of a is ")
        assert traces() == before
        assert pair.status()["nodes"]["a"]["role"] == "primary"
        examined = examine(pair, "a")  # beside its daemon, which hears nobody
        assert findings(examined)["settings-unchecked"] == "warning"
        assert examined["exit"] == 1


def test_what_is_wrong_with_a_host_is_found_before_its_daemon_is_started(world: DaemonWorld) -> None:
    def found() -> tuple[dict[str, str], int]:
        argv = world.server.argv(sys.executable, "-m", "nfq_failover", "doctor", "--json", "--config", str(config))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        return findings(json.loads(done.stdout)), done.returncode

    config = world.config(check_targets=["10.77.0.1"], fence=["/no/such/program"])
    world.client.run("ip", "address", "add", "10.77.0.100/24", "dev", "eth0")
    world.client.run("ip", "address", "add", "10.77.0.3/24", "dev", "eth0")
    before = world.snapshot()
    codes, code = found()
    # The client's host has both addresses: whoever answers for the service is the peer, for all that can be seen.
    assert {"peer-unheard", "fence-fails"} <= codes.keys()
    assert "address-conflict" not in codes and "targets-silent" not in codes
    assert code == 1
    assert world.snapshot() == before

    world.client.run("ip", "address", "del", "10.77.0.3/24", "dev", "eth0")
    world.server.run("ip", "neighbour", "flush", "all")
    assert found()[0]["address-conflict"] == "warning"

    world.client.run("ip", "address", "del", "10.77.0.100/24", "dev", "eth0")
    world.server.run("ip", "address", "add", "10.77.0.100/24", "dev", "eth0")
    world.server.run("iptables", "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "1")
    codes, _ = found()
    assert codes["address-elsewhere"] == "unprotected"
    assert "mark-erased" in codes

    world.server.run("ip", "address", "del", "10.77.0.100/24", "dev", "eth0")
    world.server.run("ip", "address", "del", "10.77.0.2/24", "dev", "eth0")
    assert found()[0]["own-address-missing"] == "unprotected"
