"""Tries docs/operate/pacemaker.md on two real cluster nodes, through the loss of one: script/pacemaker."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfq_failover.constants import RST
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import measure, read_capture
from nfq_failover.lab.state import Cut
from nfq_failover.lab.testbed import wait_until
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.cluster.lab import PROGRAM, ClusterLab, two_nodes
from tests.support.fault_world import speakers
from tests.support.lab_world import PORT, SERVER

SETTLED_S = 60.0


def say(text: str) -> None:
    """A line of the report."""
    print(text, flush=True)


class Run:
    """A cluster that is up, with a client."""

    def __init__(self, lab: ClusterLab, place: Path) -> None:
        self.lab = lab
        self.driver = LabDriver(lab.name)
        self.place = place

    def status(self, host: str) -> dict[str, Any]:
        """What the host's daemon says; {} if there is none."""
        return nodes.ask_daemon(self.lab.store, host) or {}

    def settles(self, primary: str, backup: str | None) -> None:
        """Wait until daemons and cluster say the same. AssertionError, with what they say, if they do not."""

        def agreed() -> bool:
            if self.status(primary).get("role") != "primary" or self.lab.promoted(primary) != primary:
                return False
            return backup is None or self.status(backup).get("state") == "shadowing"

        self._wait(agreed, f"{primary} is not the promoted primary")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, SETTLED_S, what, 0.3)
        except Exception:
            for host in TWO_HOSTS.hosts:
                say(f"--- {host}: {self.status(host).get('state')}: {self.status(host).get('reason')}")
                try:
                    say(self.lab.report(host))
                except OSError as error:
                    say(f"off ({error})")
            raise

    def lose(self, victim: str, survivor: str) -> None:
        """Take a host's power away during a transfer: the survivor goes on, and the cluster has fenced the victim."""
        self.goes_on(f"{victim} loses power", survivor, lambda: self.driver.crash(victim))
        self.has_fenced(victim, survivor)

    def cut_off(self, victim: str, survivor: str) -> None:
        """Cut the host that serves off from everybody. Both sides want to fence, and one of them can."""

        def cut() -> float:
            now = time.time()
            self.lab.cut(Cut(victim))
            return now

        self.goes_on(f"{victim} is cut off", survivor, cut)
        self.has_fenced(victim, survivor)
        self.lab.heal(victim)

    def lose_daemon(self, victim: str, survivor: str) -> None:
        """Kill the daemon of a node that lives: the cluster, which has noticed nothing, fences it all the same."""

        def kill() -> float:
            pids = self.lab.inside(victim, "pgrep", "-o", "-f", "nfq-failover run")
            self.lab.inside(victim, "kill", "-9", pids.stdout.strip())
            return time.time()

        self.goes_on(f"{victim}'s daemon is killed", survivor, kill)
        self.has_fenced(victim, survivor)

    def move(self, source: str, target: str) -> None:
        """Put the node that serves on standby: the service moves at once, and nobody is fenced."""
        before = self.fencings(source)

        def standby() -> float:
            now = time.time()
            self.crm(target, "node", "standby", source)
            return now

        self.goes_on(f"{source} goes on standby", target, standby)
        self.settles(target, None)
        assert self.fencings(source) == before, "the node was fenced"
        self._wait(lambda: not self.has_address(source), f"the address is still on {source}")

    def serve_alone(self, host: str, other: str) -> None:
        """Stop the service, start it on one host alone, whose peer the cluster vouches for; then have the peer back."""
        self.crm(host, "resource", "stop", "pair-clone")
        # Between a demote and the stop there is a moment without a daemon: the cluster knows which of both it is.
        self._wait(lambda: not self.lab.runs(host), f"{host} goes on serving")
        assert not self.status(host) and not self.has_address(host), "it is not the cluster's word that ends a service"
        began = time.monotonic()
        self.crm(host, "resource", "start", "pair-clone")
        self.settles(host, None)
        say(f"{host} serves alone, {time.monotonic() - began:.1f} s after the service was started")
        self.crm(host, "node", "online", other)
        self.settles(host, other)
        say(f"{other} is online again, and the backup")

    def is_compliant(self, host: str) -> None:
        """Run ocf-tester on the agent, with a daemon that serves without any peer; nothing else runs then."""
        self.crm(host, "resource", "stop", "pair-clone")
        self._wait(lambda: not self.lab.runs(host), "the service goes on")
        disk = self.lab.store.directory / host
        alone = re.sub(
            "^fence = .*$",
            'fence = ["/bin/true"]\nboot_alone = "fence"',
            (disk / "config.toml").read_text(),
            flags=re.M,
        )
        (disk / "alone.toml").write_text(alone)
        words = ["-o", "config=/mnt/alone.toml", "-o", f"program={PROGRAM}", "-o", "log=/mnt/tester.log"]
        agent = "/usr/lib/ocf/resource.d/nfq-failover/pair"
        done = self.lab.inside(host, "ocf-tester", "-n", "pair", *words, agent, timeout_s=150)
        assert done.returncode == 0, done.stdout + done.stderr
        say(f"ocf-tester: {done.stdout.splitlines()[-1]}")

    def has_address(self, host: str) -> bool:
        """Whether the host has the service address."""
        return netns.has_address(namespace(self.lab.name, host), TWO_HOSTS.service)

    def crm(self, host: str, *words: str) -> None:
        """An order to the cluster."""
        done = self.lab.inside(host, "crm", *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def goes_on(self, what: str, survivor: str, fault: Callable[[], float]) -> None:
        """A transfer over a fault, which returns its time, and which the survivor carries on."""
        path = self.place / "client.pcap"
        words = ["bulk", "--size", "80M", "--count", "1", "--port", str(PORT), "--stall-timeout", "40"]
        listening = Capture(path, TWO_HOSTS.service, enter=self.driver.in_client())
        with listening as capture, self.driver.start_workload(words) as workload:
            time.sleep(1)
            at = fault()
            self.settles(survivor, None)
            promoted_s = time.time() - at
            report = workload.result(90)
        assert report["ok"], report
        assert (report["wrong_bytes"], report["failed_connections"]) == (0, 0), report
        assert capture.counts is not None
        packets = read_capture(path, TWO_HOSTS.service)
        assert measure(packets, capture.counts.missing).dropped_by_capture == 0
        assert not any(packet.flags & RST for packet in packets if packet.from_service), "the client was sent a reset"
        turns = speakers(path)
        assert len(turns) == 2 and turns[1] == survivor, f"heard from the service address, in this order: {turns}"
        silence = report["longest_silence_ms"]
        say(f"{what}: {report['bytes']} bytes, sha256 {report['sha256'][:16]}, all right; silence {silence:.0f} ms")
        say(f"    Pacemaker has {survivor} promoted {promoted_s:.1f} s after that")

    def has_fenced(self, victim: str, survivor: str) -> None:
        """Check that the cluster has fenced the victim."""
        known = self.lab.inside(survivor, "stonith_admin", "--history", victim, "--verbose").stdout
        said = [line for line in known.splitlines() if "successful" in line]
        assert said, f"the cluster does not say that {victim} was fenced: {known}"
        for line in said:
            say(f"    {line}")

    def fencings(self, host: str) -> int:
        """How often the lab's power switch has turned the host off at the other's request."""
        return sum(event["node"] == host and event["event"] == "fenced" for event in self.lab.store.read().events)

    def bring_back(self, victim: str, survivor: str) -> None:
        """Boot a host that was lost: it comes back as the backup, and nothing moves."""
        began = time.monotonic()
        epoch = self.status(survivor)["epoch"]
        self.lab.restore(victim)
        self.settles(survivor, victim)
        assert self.status(survivor)["epoch"] == epoch, "the service has moved"
        say(f"{victim} is back, unpromoted, and the pair protected, {time.monotonic() - began:.1f} s after its start")


def run_all(run: Run, lab: ClusterLab) -> None:
    """What the page promises, one thing after the other."""
    began = time.monotonic()
    lab.up()
    lab.serve(SERVER)
    run.settles("a", "b")
    say(f"a is promoted, b shadows it, {time.monotonic() - began:.1f} s after both were started")
    run.lose("a", "b")
    run.bring_back("a", "b")
    run.lose_daemon("b", "a")
    run.bring_back("b", "a")
    run.cut_off("a", "b")
    run.bring_back("a", "b")
    run.move("b", "a")
    run.serve_alone("a", "b")
    say(lab.report("a"))
    run.is_compliant("a")


def main() -> None:
    """The whole run. Exits with 1 if something is not as the page says."""
    name = sys.argv[1] if len(sys.argv) > 1 else f"c{os.getpid() % 100000}"
    lab = two_nodes(name)
    with tempfile.TemporaryDirectory() as place, LabDriver(name):
        run = Run(lab, Path(place))
        try:
            run_all(run, lab)
        except BaseException:
            kept = Path(tempfile.mkdtemp(prefix="pacemaker-"))
            run.driver.keep_logs(kept)
            for host in TWO_HOSTS.hosts:
                for path in ((disk := lab.store.directory / host) / "daemon.log", disk / "cluster/log/pacemaker.log"):
                    shutil.copy(path, kept / f"{host}-{path.name}")
            say(f"what the hosts said: {kept}")
            raise


if __name__ == "__main__":
    main()
