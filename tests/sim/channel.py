"""What a server host says to the others, and hears: datagrams, heartbeats, and the witness's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfq_failover.constants import DEFAULT_SYNC_PORT
from nfq_failover.core.events import (
    DatagramReceived,
    WitnessAnswered,
)
from nfq_failover.wire.heartbeat import HeartbeatTemplate

if TYPE_CHECKING:
    from .host import SimHost

UDP_HEADERS = 28


class Channel:
    """The sync channel of one host."""

    def __init__(self, host: SimHost) -> None:
        self.host = host

    def restart(self) -> None:
        """The daemon starts, and the process that sends its heartbeats."""
        self._beat_counter = int(self.host.ticks.now * 1_000_000)
        self._templates: dict[str, HeartbeatTemplate] = {}  # by the peer's address

    def send(self, address: str, data: bytes) -> None:
        """A datagram leaves, if it can."""
        if not self.host.speechless:
            self.host.world.sync(self.host, address, data)

    def datagram(self, came: tuple[str, bytes]) -> None:
        """A datagram has come in, from an address."""
        source, data = came
        fits = len(data) + UDP_HEADERS <= self.host.plan.mtu
        if fits and self.host.hears() and not self.host.deaf and self.host.running:
            self.host.tell(0.0, DatagramReceived((source, DEFAULT_SYNC_PORT), data))

    def answered(self, came: tuple[int, WitnessAnswered]) -> None:
        """The witness has answered what a life of the daemon has asked."""
        run, event = came
        if self.host.up and not self.host.deaf and run == self.host.run:
            self.host.tell(0.0, event)

    def publish(self, address: str, template: HeartbeatTemplate) -> None:
        """The daemon has other heartbeats to be sent: at once, if they say something new."""
        old = self._templates.get(address)
        self._templates[address] = template
        if old is None or (old.session, old.body.state, old.body.generation) != (
            template.session,
            template.body.state,
            template.body.generation,
        ):
            self._send_heartbeat(address, template)

    def beat(self, run: int) -> None:
        """The heartbeat process: it goes on when the packet loop hangs, and stops when daemon or host do."""
        host = self.host
        if run != host.run:
            return
        wait = host.settings.heartbeat_interval_ms / 1000 / host.plan.rate
        if host.clock.now < host.paused_until:
            wait = host.paused_until - host.clock.now + 1e-6
        else:
            for address, template in self._templates.items():
                self._send_heartbeat(address, template)
        host.clock.after(wait, self.beat, run)

    def _send_heartbeat(self, address: str, template: HeartbeatTemplate) -> None:
        self._beat_counter += 1
        now = self.host.ticks.now
        age = int((now - self.host.progress) * 1000)
        self.send(address, template.datagram(self._beat_counter, int(now * 1000), age))
