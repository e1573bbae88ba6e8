"""The whole: a client host, the servers, the wires between them, and what a scenario does to them."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from hashlib import blake2s
from random import Random
from typing import Any

from nfq_failover.core.events import Fence, FenceFinished
from nfq_failover.core.pair.roles import State
from nfq_failover.core.ports import has
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.wire.segment import FlowKey
from tests.support import configured

from . import bounds, missed
from .apps import MOST_BYTES, Client
from .checks import Checks
from .clock import Clock, HostClock
from .generate import FENCE_DEADLINE_MS, release
from .host import SimHost
from .incidents import Incidents
from .kernel import Kernel
from .network import Path, Quality
from .opinions import Fences, Witness
from .packets import Returning
from .scenario import ADDED, DOWNLOAD, ECHO, PROBE_PORT, TURNS, UPLOAD, Connection, HostPlan, Scenario
from .stalls import Stalls
from .tcp import Personality
from .tcp_send import FOR_EVER

CLIENT = bytes((10, 77, 0, 1))
SERVICE = bytes((10, 77, 0, 100))
MAX_PACKETS = 40_000  # no scenario needs a tenth of it
END_S = 40.0  # after the healing everything is over by then
SETTLE_S = 3.0  # until what is known of an application is up to date
DRAIN_S = 90.0  # longer than what an ended connection is remembered


class SimWorld:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = Clock()
        self.tap = scenario.tap
        self.split_brain = scenario.split_brain
        detection_s = 3 * scenario.heartbeat_ms / 1000
        self.time_to_act = release(detection_s) - 2 * detection_s
        # Else a backup stays silent, loudly; or has its fence tried again, and the old connections are lost.
        alone = scenario.witness and scenario.fence == "none"
        self.takes_over = scenario.split_brain or scenario.fence in ("works", "late") or alone
        self.fences = Fences(scenario.fence, FENCE_DEADLINE_MS / 1000)
        self.trace = blake2s(digest_size=8)
        self.packets = 0
        self.healed = False
        self.checks = Checks(self)
        self.incidents = Incidents(self)
        self.stalls = Stalls(self)
        self._lopsided = any(plan.odd for plan in scenario.connections)
        self.clients: dict[FlowKey, Client] = {}
        self.past: list[tuple[FlowKey, Client]] = []  # whose port was used again
        self.owner: SimHost | None = None
        self.crashes: dict[str, float] = {}
        self.hosts = tuple(self._host(name) for name in scenario.hosts)
        self.witness = Witness(self.hosts, self.clock, scenario.quality.get("witness", Quality(0.0005)), self.dice)
        ticks = HostClock(self.clock, 1.0, scenario.client.uptime)
        who = self._personality(scenario.client, client=True)
        self.client = Kernel(self.clock, who, self._client_output, self.dice("client"), ticks)
        quality = {name: q.healed() for name, q in scenario.quality.items()}
        self.client_out = Path(self.clock, quality["client"], self._to_service, self.dice("client>service"))
        self.client_in = Path(self.clock, quality["client"], self._to_client, self.dice("service>client"))
        self.taps = {
            host.name: Path(self.clock, quality["tap"], host.packets.wire_input, self.dice(f"tap>{host.name}"))
            for host in self.hosts
        }
        self.syncs = {
            host.name: Path(self.clock, quality["sync"], host.channel.datagram, self.dice(f"sync>{host.name}"))
            for host in self.hosts
        }
        self.paths: dict[str, list[Path[Any]]] = {
            "client": [self.client_out, self.client_in],
            "tap": list(self.taps.values()),
            "sync": list(self.syncs.values()),
        }

    def dice(self, what: str) -> Random:
        """Returns the random generator of one part."""
        return Random(f"{self.scenario.seed}/{what}")

    def _personality(self, plan: HostPlan, client: bool = False) -> Personality:
        scenario = self.scenario
        return Personality(
            ts_base=plan.ts_base,
            wscale=plan.wscale,
            buffer=plan.buffer,
            sack=plan.sack and (scenario.sack or not client),
            timestamps=plan.timestamps and (scenario.timestamps or not client),
            scaling=plan.scaling,
            mtu=plan.mtu,
            time_wait=1.0 if client else 10.0,
            super_segment=1 if client else scenario.super_segment,
            wrap=plan.wrap,
            retries=plan.retries or FOR_EVER,
        )

    def _host(self, name: str) -> SimHost:
        """Makes the server `name`. The first one of the scenario is preferred as primary."""
        scenario, plan = self.scenario, self.scenario.hosts[name]
        first, *_ = scenario.hosts
        limits = {what: size for what, size in asdict(scenario.limits).items() if size}
        settings = configured.settings(
            name=name,
            service=SERVICE,
            ports=((ECHO, TURNS),),
            **({"divergence_run_bytes": 64, "out_of_step_ms": self._out_of_step_ms()} if self._lopsided else {}),
            peers=tuple(configured.peer(other, other) for other in scenario.hosts if other != name),
            key=b"simulated" * 4,
            prefer_primary=name == first,
            has_fence=scenario.fence != "none",
            split_brain_accepted=scenario.split_brain,
            heartbeat_interval_ms=scenario.heartbeat_ms,
            fence_deadline_ms=FENCE_DEADLINE_MS,
            fence_retry_ms=scenario.fence_retry_ms,
            has_witness=scenario.witness,
            tap=scenario.tap,
            health_checked=scenario.health,
            on_app_failure=scenario.on_failure,
            **limits,
        )
        return SimHost(self, settings, partial(self._personality, plan), plan, self.dice(f"host {name}"))

    def _out_of_step_ms(self) -> int:
        """Short, so that what is out of step is found within the scenario. But what a slow server needs for all that it
        has to say must fit in: a replica that has the same to say is given up, too, when it takes longer."""
        slowest_s = max(
            plan.app_delay * (MOST_BYTES / plan.write_size if plan.write_size else 1)
            for plan in self.scenario.hosts.values()
        )
        return max(1000, round(1000 * (0.5 + slowest_s)))

    def host(self, name: str) -> SimHost:
        """Returns a server by its name."""
        return next(host for host in self.hosts if host.name == name)

    def others(self, host: SimHost) -> tuple[SimHost, ...]:
        """Returns all servers but this one, in the scenario's order."""
        return tuple(other for other in self.hosts if other is not host)

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
            for host in self.hosts:
                if self.owner is host:
                    host.packets.wire_input(packet)
                else:
                    self.taps[host.name].send(packet)
        elif self.owner is not None:
            self.owner.packets.wire_input(packet)

    def clone(self, host: SimHost, packet: bytes) -> None:
        """The clone tap: the primary sends a copy to each backup."""
        for other in self.others(host):
            self.taps[other.name].send(packet)

    def probe(self, host: SimHost, packet: bytes, hardware: bytes) -> None:
        """A daemon tries the tap: a frame to another host, which may clone it, or to the multicast address."""
        for other in self.others(host):
            if hardware:
                other.packets.wire_input(packet)
            else:
                self.taps[other.name].send(packet)

    def outward(self, host: SimHost, packet: bytes, returns: Returning | None = None) -> None:
        """A packet leaves a server for the client. `returns`: it is a daemon's own, which was in the queue."""
        self._note(host.name, packet)
        if returns is not None:
            self.checks.returned(host, packet, returns.of)
        else:
            self.checks.emitted(host, packet)
        if not self.client_in.send(packet):
            self.stalls.lost(packet)

    def _to_client(self, packet: bytes) -> None:
        self.client.input(packet)

    def sync(self, host: SimHost, address: str, data: bytes) -> None:
        """A datagram to another server, whose address is its name."""
        self.trace.update(f"{self.clock.now:.7f} sync {host.name} {len(data)}".encode())
        self.syncs[address].send((host.name, data))

    def announce(self, host: SimHost, run: int) -> None:
        """The switch and the client learn who has the service address."""
        if run == host.run and host.owns and not host.unplugged:
            self.owner = host

    # ------------------------------------------------------------------------------------ life and death

    def fence(self, host: SimHost, effect: Fence) -> None:
        """The fence agent: takes its time, and works or not."""
        self.checks.fences(host)
        strikes, takes, ok = self.fences.attempt(host)
        if strikes is not None:
            self.clock.after(strikes, self.power_off, self.host(effect.peer))
        host.tell(takes, FenceFinished(effect.peer, ok, "" if ok else "no answer"))

    def power_off(self, host: SimHost) -> None:
        """The host loses power."""
        if host.up:
            heard = host.owns or self.scenario.witness  # one whose lease has ended may still be reassured
            if host is self.owner and heard and (host.running or host.resumable):
                self.checks.promise(host)
            self.checks.died(host)
            host.crash()
            self.crashes[host.name] = self.clock.now
            if self.healed:  # by a fence that was still at work
                self.clock.after(0.5, self.power_on, host)

    def kill(self, host: SimHost) -> None:
        """The daemon dies, the host lives."""
        if host.running:
            if not host.resumable:
                if host is self.owner:
                    self.checks.promise(host)  # as if the whole host had died
                self.checks.died(host)
            host.kill()
            self.crashes[host.name] = self.clock.now

    def power_on(self, host: SimHost) -> None:
        """The host boots again."""
        if not host.up:
            host.boot(host.random.choice((0.0, 0.1)))

    def crashed_lately(self, host: SimHost) -> bool:
        """Whether the primary may not know yet that its backup has lost everything."""
        return self.clock.now - self.crashes.get(host.name, -100.0) < 3.0

    def odd(self, flow: FlowKey, host: SimHost) -> bool:
        """Whether `host` answers a connection in its own way."""
        client = self.clients.get(flow)
        return client is not None and client.odd and host is self.hosts[-1]

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
        """Phase 1: connections and incidents. Phase 2: healing, until all has ended well. Returns the trace's hash."""
        scenario, clock = self.scenario, self.clock
        for host in self.hosts:
            clock.after(host.plan.boot, host.boot, host.plan.listen_after)
        clock.run(clock.now + 3.0, self._protected)
        assert self._protected(), f"not protected at first: {self._states()}"
        start = clock.now
        for name, paths in self.paths.items():
            for path in paths:
                path.quality = scenario.quality[name]
        for connection in scenario.connections:
            clock.at(start + connection.at, self.open_client, connection)
        for incident in scenario.incidents:
            clock.at(start + incident.at, self.incidents.strike, incident)
        ends = [c.at for c in scenario.connections] + [i.at + i.seconds for i in scenario.incidents]
        quiet = start + max(ends, default=0.0)
        self.stalls.start()
        clock.run(quiet + 0.3)
        self._heal()
        if scenario.fence == "timeout" or any(incident.what.startswith("app_") for incident in scenario.incidents):
            clock.run(clock.now + SETTLE_S)
        clock.run(clock.now + END_S, self._protected)
        assert self._protected(), f"not protected again: {self._states()}"
        if self._reloads:
            clock.run(clock.now + SETTLE_S)  # both know
            for host in self.hosts:
                assert has(host.diverted, ADDED), f"{host.name} does not divert the port that both were given"
        clock.run(clock.now + END_S, self._settled)
        if scenario.limits.slow_backup:
            clock.run(clock.now + SETTLE_S)  # the applications have read what they have got
        missed.declare_whole(self)
        self._probe()
        clock.run(clock.now + END_S, self._all_over)
        self.checks.final()
        if scenario.drain:
            clock.run(clock.now + DRAIN_S)
            for host in self.hosts:
                bounds.empty(host)
        self.trace.update(f"{clock.now:.6f}".encode())
        return self.trace.hexdigest()

    @property
    def _reloads(self) -> bool:
        """Whether hosts are given another port, some before the healing and all with it."""
        return any(incident.what == "reload" for incident in self.scenario.incidents)

    def _states(self) -> str:
        return ", ".join(
            f"{host.name} {host.node.members.state.name} ({host.node.members.reason})" for host in self.hosts
        )

    def _protected(self) -> bool:
        states = [host.node.members.state for host in self.hosts if host.running]
        return sorted(states) == [State.SHADOWING, State.PROTECTED]

    def _settled(self) -> bool:
        """Whether it is known of all clients that are gone what the replica's application has missed of them, and no
        daemon has still to work through what had come to wait before the healing."""
        if any(host.running and host.packets.busy for host in self.hosts):
            return False
        gone = {flow for flow, client in self.clients.items() if client.over}
        shadows = [shadow for host in self.hosts if host.running for shadow in host.node.shadow.flows.values()]
        fed = (Shadow.SHADOW, Shadow.FED)
        return not any(each.state in fed and each.inward.unread for each in shadows if each.flow in gone)

    def _all_over(self) -> bool:
        waiting = [plan for plan in self.scenario.connections if plan.again is not None]
        if len(self.past) < len(waiting) or not any(flow[1] >= PROBE_PORT for flow in self.clients):
            return False
        return all(client.ending for client in self.clients.values())

    def _heal(self) -> None:
        """From now on nothing is lost, and everybody is there."""
        self.healed = True
        if self._reloads:
            for host in self.hosts:
                host.reload()
        for path in [path for paths in self.paths.values() for path in paths]:
            path.quality = path.quality.healed()
        self.witness.heal()
        for host in self.hosts:
            host.deaths.clear()
            self.power_on(host)
            if not host.running:
                host.start()
            host.kernel.drop = 0.0
            host.application.exit_at = None
            host.application.start()

    def _probe(self) -> None:
        """New connections: they must be protected from the start."""
        for number, port in enumerate((ECHO, DOWNLOAD, UPLOAD)):
            at = 0.6 + 0.01 * number  # the applications have come up
            probe = Connection(0.0, PROBE_PORT + number, port, salt=self.scenario.seed + number)
            self.clock.after(at, self.open_client, probe)
