"""What a scenario does to the hosts, the wires and the clocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .host import Death, SimHost
from .network import Path
from .scenario import Incident

if TYPE_CHECKING:
    from .world import SimWorld


class Incidents:
    """Carries out the incidents of a scenario."""

    def __init__(self, world: SimWorld) -> None:
        self.world = world
        self.clock = world.clock

    def strike(self, incident: Incident) -> None:
        """The incident happens now."""
        getattr(self, f"_{incident.what}")(incident)

    def paths(self, target: str) -> list[Path[Any]]:
        """The directions that a name stands for: "sync>HOST" towards a host, "sync" all; "tap" likewise;
        "client>service", "service>client", "client" both; "HOST>witness", "witness>HOST", "witness-HOST" both,
        "witness" those of all hosts."""
        world = self.world
        witness = world.witness.paths
        if target.startswith("witness-"):
            name = target.removeprefix("witness-")
            return [witness[f"{name}>witness"], witness[f"witness>{name}"]]
        named: dict[str, Path[Any]] = {f"sync>{name}": path for name, path in world.syncs.items()}
        named |= {f"tap>{name}": path for name, path in world.taps.items()}
        named |= {"client>service": world.client_out, "service>client": world.client_in, **witness}
        if target in named:
            return [named[target]]
        return [path for name, path in named.items() if target in name.split(">")]

    def host(self, target: str) -> SimHost:
        """Returns a host by name, or by its role now: "primary", "backup"."""
        world = self.world
        for host in world.hosts:
            if target == host.name:
                return host
        primary = world.owner or world.hosts[0]
        return primary if target == "primary" else world.others(primary)[0]

    def _crash(self, incident: Incident) -> None:
        host = self.host(incident.target)
        if incident.effect:
            self._arm(host, incident)
        elif self._another_runs(host):  # else one has failed already: two failures are more than one can bear
            self.world.power_off(host)

    def _another_runs(self, host: SimHost) -> bool:
        return any(other.running for other in self.world.others(host))

    def _kill(self, incident: Incident) -> None:
        host = self.host(incident.target)
        if incident.effect:
            self._arm(host, incident)
        elif host.running and (self._another_runs(host) or host.resumable):
            self.world.kill(host)

    def _arm(self, host: SimHost, incident: Incident) -> None:
        world = self.world

        def strike() -> None:
            if incident.what == "crash":
                world.power_off(host)
            else:
                world.kill(host)

        if host.running:
            host.deaths.append(Death(strike, incident.effect, incident.count, incident.before))

    def _boot(self, incident: Incident) -> None:
        del incident
        for host in self.world.hosts:
            self.world.power_on(host)

    def _restart(self, incident: Incident) -> None:
        del incident
        for host in self.world.hosts:
            if host.up and not host.running:
                host.start()

    def _reload(self, incident: Incident) -> None:
        self.host(incident.target).reload()

    def _pause(self, incident: Incident) -> None:
        self.host(incident.target).paused_until = self.clock.now + incident.seconds

    def _hang(self, incident: Incident) -> None:
        self.host(incident.target).hung_until = self.clock.now + incident.seconds

    def _unplug(self, incident: Incident) -> None:
        host = self.host(incident.target)
        host.unplugged_until = self.clock.now + incident.seconds
        host.cut_off()

    def _strand(self, incident: Incident) -> None:
        host = self.host(incident.target)
        host.stranded_until = self.clock.now + incident.seconds
        host.cut_off()

    def _mute(self, incident: Incident) -> None:
        host = self.host(incident.target)
        host.mute_until = self.clock.now + incident.seconds
        host.cut_off()

    def _jump(self, incident: Incident) -> None:
        host = self.host(incident.target)
        if host.up:
            host.jump(incident.seconds)

    def _cut(self, incident: Incident) -> None:
        for path in self.paths(incident.target):
            path.cut(incident.seconds)
        self.world.checks.witness_cut()

    def _app_die(self, incident: Incident) -> None:
        self._process(incident, lambda host: host.application.die())

    def _app_hang(self, incident: Incident) -> None:
        self._process(incident, lambda host: host.application.hang(incident.seconds))

    def _app_refuse(self, incident: Incident) -> None:
        self._process(incident, lambda host: host.application.refuse())

    def _app_exit(self, incident: Incident) -> None:
        self._process(incident, None, True)

    def _process(self, incident: Incident, strike: Callable[[SimHost], None] | None, alone: bool = False) -> None:
        host = self.host(incident.target)
        if not host.up or not host.application.well:
            return
        if strike is None or incident.effect:
            host.application.exit_at, host.application.alone = incident.count, alone
        else:
            strike(host)

    def _app_start(self, incident: Incident) -> None:
        del incident
        for host in self.world.hosts:
            if host.up:
                host.application.start()
