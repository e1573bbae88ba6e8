"""Other programs' packet marks: a download and an upload through a crash, on hosts that mark what the service says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nfq_failover.constants import DEFAULT_MARK
from nfq_failover.lab import netns
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.shell.firewall.script import find_script
from tests.support.fault_world import CALM_MS, FaultWorld, ended_well, faultless, world
from tests.support.lab_world import PORT, eventually

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ERASED = f"OUTPUT -p tcp --sport {PORT} -j MARK --set-mark 1"
# The server's sockets inherit it from the client's SYN, and all that they say carries our bit.
OURS = f"PREROUTING -p tcp --dport {PORT} -j MARK --set-mark {DEFAULT_MARK:#x}"


def script_by_mark(directory: Path) -> Path:
    """The rules script, as on a kernel without the owner match."""
    path = directory / "rules-script"
    real = find_script()
    path.write_text(f'case $1 in install | host) exec sh {real} "$@" --own mark ;; esac\nexec sh {real} "$@"\n')
    return path


def codes(pair: FaultWorld, host: str) -> set[str]:
    """What the host's daemon finds wrong with itself."""
    return {each["code"] for each in pair.ask(host)["concerns"] if not each.get("host")}


@pytest.mark.parametrize(
    ("rule", "known_by", "concern"),
    [(ERASED, "owner", None), (ERASED, "mark", "mark-overwritten"), (OURS, "owner", "mark-taken")],
    ids=["erased", "erased-without-owner-match", "ours"],
)
def test_streams_outlive_a_crash(rule: str, known_by: str, concern: str | None, tmp_path: Path) -> None:
    script = () if known_by == "owner" else (f'rules_script = "{script_by_mark(tmp_path)}"',)
    options = Options(rate="200mbit", heartbeat_ms=CALM_MS, scramble=False, settings=script)
    with world(options) as pair:
        for host in TWO_HOSTS.hosts:
            inside = namespace(pair.lab.name, host)
            netns.tool(["iptables", "-t", "mangle", "-I", *rule.split()], namespace=inside)
            netns.tool(["sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=1"], namespace=inside)
        crashed = pair.lab.resolve("primary")
        survivor = TWO_HOSTS.other(crashed)
        assert known_by == "owner" or eventually(lambda: "path-untried" in codes(pair, survivor))
        with (
            pair.capture(tmp_path / "client.pcap") as running,
            pair.start("bulk", "--size", "15M") as download,
            pair.start("upload", "--size", "15M") as upload,
        ):
            time.sleep(0.3)
            known = codes(pair, crashed)
            pair.lab.crash("primary")
            ended_well(download)
            ended_well(upload)
        assert faultless(running).connections == 2
        assert not pair.said(crashed, 0, "connection unprotected"), "none but the client's are there"
        assert concern is None or concern in known | codes(pair, survivor)
        returned = pair.ask(survivor)["counters"].get("own-packet-queued", 0)
        assert (returned > 0) == (known_by == "mark")
        assert eventually(lambda: pair.state(survivor) == "unprotected")


def test_a_rule_that_comes_later_is_found_at_once() -> None:
    """What the primary says is dropped by its own silence guard from then on: nobody may take it for protected."""
    with world(Options(heartbeat_ms=CALM_MS, scramble=False)) as pair:
        primary = pair.lab.resolve("primary")
        assert not codes(pair, primary)
        rule = f"POSTROUTING -p tcp --sport {PORT} -j MARK --set-mark 5".split()
        netns.tool(["iptables", "-t", "mangle", "-A", *rule], namespace=namespace(pair.lab.name, primary))
        assert eventually(lambda: "mark-erased-late" in codes(pair, primary), 4.0)
        assert pair.state(primary) == "unprotected"
        netns.tool(["iptables", "-t", "mangle", "-D", *rule], namespace=namespace(pair.lab.name, primary))
        assert eventually(lambda: not codes(pair, primary), 12.0)


def test_a_backup_that_could_not_speak_protects_nothing() -> None:
    """The replica works, since what it says ends in the daemon's queue; after a takeover it would go on. On the primary
    it matters when the hosts have changed places."""
    code, rule = "service-output-dropped", f"OUTPUT -o eth0 -p tcp --sport {PORT} -j DROP".split()
    with world(Options(heartbeat_ms=CALM_MS, scramble=False)) as pair:
        primary = pair.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        insides = {host: namespace(pair.lab.name, host) for host in TWO_HOSTS.hosts}
        for inside in insides.values():
            netns.tool(["iptables", "-A", *rule], namespace=inside)
        assert eventually(lambda: code in codes(pair, backup), 12.0)
        assert eventually(lambda: code in codes(pair, primary), 12.0)
        assert eventually(lambda: pair.state(primary) == "unprotected", 4.0)
        weights = {}
        for host, inside in insides.items():
            (found,) = [each for each in pair.ask(host)["concerns"] if each["code"] == code and not each.get("host")]
            assert "-A OUTPUT -o eth0 -p tcp" in found["what"]
            weights[host] = found["weight"]
            netns.tool(["sh", "-c", found["cure"]], namespace=inside)
        assert weights == {backup: "unprotected", primary: "warning"}
        assert eventually(lambda: not codes(pair, backup) | codes(pair, primary), 15.0)
