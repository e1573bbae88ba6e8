"""The whole: a client host, two servers, the wires between them, and what a seed makes of it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2s
from random import Random

from nfq_failover.core.events import Fence, FenceFinished
from nfq_failover.core.settings import Peer, Settings
from nfq_failover.wire.segment import FlowKey

from .apps import Client
from .checks import Checks
from .clock import Clock
from .host import Host
from .kernel import Kernel
from .network import Path
from .scenario import ECHO, UPLOAD, Connection, Scenario
from .tcp import Personality

CLIENT = bytes((10, 77, 0, 1))
SERVICE = bytes((10, 77, 0, 100))
MAX_PACKETS = 30_000  # no scenario needs a tenth of it


class World:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = Clock(scenario.seed)
        self.tap = scenario.tap
        self.split_brain = scenario.split_brain
        self.trace = blake2s(digest_size=8)
        self.packets = 0
        self.checks = Checks(self)
        self.clients: dict[FlowKey, Client] = {}
        self.past: list[tuple[FlowKey, Client]] = []  # whose port was used again
        self.owner: Host | None = None
        self.crashes: dict[str, float] = {}
        random = self.clock.random
        self.hosts = {name: self._host(name, other) for name, other in (("a", "b"), ("b", "a"))}
        self.client = Kernel(self.clock, self._personality(random, client=True), self._client_output)
        hosts, quality = self.hosts, {name: q.healed() for name, q in scenario.quality.items()}
        self.client_out = Path(self.clock, quality["client"], self._to_service)
        self.client_in = Path(self.clock, quality["client"], self._to_client)
        self.taps = {n: Path(self.clock, quality["tap"], hosts[n].wire_input) for n in hosts}
        self.syncs = {n: Path(self.clock, quality["sync"], hosts[n].datagram) for n in hosts}
        self.paths = {
            "client": [self.client_out, self.client_in],
            "tap": list(self.taps.values()),
            "sync": list(self.syncs.values()),
        }

    def _personality(self, random: Random, client: bool = False) -> Personality:
        scenario = self.scenario
        return Personality(
            ts_base=random.getrandbits(32),
            wscale=random.choice((2, 5, 7, 9)),
            buffer=random.choice((12_000, 65_000, 200_000)),
            sack=scenario.sack or not client,
            timestamps=scenario.timestamps or not client,
            time_wait=1.0 if client else 10.0,
            super_segment=1 if client else scenario.super_segment,
        )

    def _host(self, name: str, other: str) -> Host:
        scenario = self.scenario
        settings = Settings(
            name=name,
            service=SERVICE,
            ports=((ECHO, UPLOAD),),
            peers=(Peer(other, "peer"),),
            key=b"simulated" * 4,
            prefer_primary=name == "a",
            has_fence=scenario.fence != "none",
            split_brain_accepted=scenario.split_brain,
            heartbeat_interval_ms=scenario.heartbeat_ms,
            fence_deadline_ms=400,
        )
        return Host(self, settings, lambda: self._personality(self.clock.random), scenario.app_delay[name])

    def other(self, host: Host) -> Host:
        """The other server."""
        return self.hosts["b" if host.name == "a" else "a"]

    # ------------------------------------------------------------------------------------ wires

    def _note(self, where: str, packet: bytes) -> None:
        self.packets += 1
        assert self.packets < MAX_PACKETS, "a storm of packets"
        self.trace.update(f"{self.clock.now:.7f} {where}".encode())
        self.trace.update(packet)

    def _client_output(self, packet: bytearray, gso: bool) -> None:
        del gso
        self.client_out.send(bytes(packet))

    def _to_service(self, packet: bytes) -> None:
        self._note("client", packet)
        if self.tap == "multicast":
            for name in self.hosts:
                if self.owner is self.hosts[name]:
                    self.owner.wire_input(packet)
                else:
                    self.taps[name].send(packet)
        elif self.owner is not None:
            self.owner.wire_input(packet)

    def clone(self, host: Host, packet: bytes) -> None:
        """The clone tap: the primary sends a copy to the backup."""
        self.taps[self.other(host).name].send(packet)

    def outward(self, host: Host, packet: bytes) -> None:
        """A packet leaves a server for the client."""
        self._note(host.name, packet)
        self.checks.emitted(host, packet)
        self.client_in.send(packet)

    def _to_client(self, packet: bytes) -> None:
        self.client.input(packet)

    def sync(self, host: Host, data: bytes) -> None:
        """A datagram to the other server."""
        self.syncs[self.other(host).name].send(data)

    def announce(self, host: Host) -> None:
        """The switch and the client learn who has the service address."""
        self.owner = host

    # ------------------------------------------------------------------------------------ incidents

    def fence(self, host: Host, effect: Fence) -> None:
        """The fence agent: takes its time, and works or not."""
        works = self.scenario.fence == "works"
        takes = self.clock.random.choice((0.005, 0.05, 0.3))
        if works:
            self.clock.after(takes * 0.9, self.power_off, self.other(host))
        host.later(takes, host.feed, FenceFinished(effect.peer, works, "" if works else "no answer"))

    def power_off(self, host: Host) -> None:
        """Power loss."""
        if host.up:
            if host is self.owner:
                self.checks.promise(host)
            host.crash()
            self.crashes[host.name] = self.clock.now

    def power_on(self, host: Host) -> None:
        """Boot again."""
        if not host.up:
            host.boot(self.clock.random.choice((0.0, 0.1)))

    def crashed_lately(self, host: Host) -> bool:
        """Whether the primary may not know yet that its backup has lost everything."""
        return self.clock.now - self.crashes.get(host.name, -100.0) < 3.0

    def open_client(self, plan: Connection) -> None:
        """The client opens a connection."""
        flow = (CLIENT, plan.port, SERVICE, plan.server_port)
        if flow in self.clients:
            self.past.append((flow, self.clients[flow]))
        tcp = self.client.connect((CLIENT, plan.port), (SERVICE, plan.server_port))
        self.clients[flow] = client = Client(self.clock, tcp, plan)
        if plan.again is not None:
            following = replace(plan, salt=plan.salt + 1, again=None, abort_at=None)
            client.on_over = lambda: self.clock.after(plan.again or 0.0, self.open_client, following)
        client.start()

    # ------------------------------------------------------------------------------------ the run

    def run(self) -> str:
        """Boot, connections and incidents, then quiet until everybody has ended. Returns the hash of the trace."""
        scenario, clock = self.scenario, self.clock
        for host in self.hosts.values():
            clock.after(scenario.boot[host.name], host.boot, scenario.listen_after[host.name])
        clock.run(clock.now + 3.0, self._protected)
        assert self._protected(), {n: h.node.members.state.name for n, h in self.hosts.items()}
        start = clock.now
        for name, paths in self.paths.items():
            for path in paths:
                path.quality = scenario.quality[name]
        for plan in scenario.connections:
            clock.at(start + plan.at, self.open_client, plan)
        for incident in scenario.incidents:
            clock.at(start + incident.at, getattr(self, f"_do_{incident.what}"), incident.target, incident.seconds)
        quiet = start + max([plan.at for plan in scenario.connections] + [i.at + i.seconds for i in scenario.incidents])
        clock.run(quiet + 0.3)
        self._heal()
        clock.run(clock.now + 40.0, self._all_over)
        self.checks.final()
        self.trace.update(f"{clock.now:.6f}".encode())
        return self.trace.hexdigest()

    def _protected(self) -> bool:
        states = [host.node.members.state.name for host in self.hosts.values() if host.up]
        return sorted(states) == ["PROTECTED", "SHADOWING"]

    def _all_over(self) -> bool:
        waiting = [plan for plan in self.scenario.connections if plan.again is not None]
        if len(self.past) < len(waiting):
            return False
        return all(client.ending for client in self.clients.values())

    def _heal(self) -> None:
        """The liveness phase: no more loss."""
        for path in [path for paths in self.paths.values() for path in paths]:
            path.quality = path.quality.healed()
            path.cut = False
        for host in self.hosts.values():
            host.kernel.drop = 0.0

    def _do_crash(self, target: str, seconds: float) -> None:
        del seconds
        host = self._target(target)
        if self.other(host).up:  # else one was fenced already: two failures are more than anybody can bear
            self.power_off(host)

    def _do_boot(self, target: str, seconds: float) -> None:
        del seconds, target
        for host in self.hosts.values():
            self.power_on(host)

    def _do_pause(self, target: str, seconds: float) -> None:
        host = self._target(target)
        host.paused_until = self.clock.now + seconds

    def _do_hang(self, target: str, seconds: float) -> None:
        host = self._target(target)
        host.hung_until = self.clock.now + seconds

    def _do_cut(self, target: str, seconds: float) -> None:
        """The sync channel towards `target` is cut ("both": in both directions)."""
        for name, path in self.syncs.items():
            if target in ("both", name):
                path.cut = True
                self.clock.after(seconds, setattr, path, "cut", False)

    def _target(self, target: str) -> Host:
        if target in self.hosts:
            return self.hosts[target]
        primary = self.owner or self.hosts["a"]
        return primary if target == "primary" else self.other(primary)
