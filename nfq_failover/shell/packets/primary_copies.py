"""Copies of what comes in are kept for as long as this host is a protected primary."""

from __future__ import annotations

from nfq_failover.core.events import FrameCopied, Profile
from nfq_failover.core.ports import Ports
from nfq_failover.shell.packets.copies import InboundCopies


class PrimaryCopies:
    """The copies, if there are any. `due`: there may be more to read than was read."""

    def __init__(self, interface: str, service: bytes, ports: Ports) -> None:
        """None are kept yet. `service` is the service's address."""
        self.due = False
        self._interface = interface
        self._service = service
        self._ports = ports
        self._copies: InboundCopies | None = None

    def follow(self, profile: Profile) -> None:
        """Keep copies, or stop, as these rules are asked for."""
        if profile is not Profile.PRIMARY:
            self.close()
        elif self._copies is None:
            self._copies = InboundCopies(self._interface, self._service, self._ports)

    def reopen(self) -> None:
        """The interface is another one of the same name."""
        if self._copies is not None:
            self.close()
            self.follow(Profile.PRIMARY)

    def serve(self, ports: Ports) -> None:
        """Copy what comes for these ports from now on."""
        if ports != self._ports:
            self._ports = ports
            if self._copies is not None:
                self._copies.serve(self._service, ports)

    def look(self) -> None:
        """It is time to read what has come."""
        self.due = True

    def read(self, most: int) -> list[FrameCopied]:
        """Copies wake nobody: they are needed only for what the tap has lost, and wait in their socket until a tick."""
        events = [] if self._copies is None else self._copies.read(most)
        self.due = len(events) == most
        return events

    def lost(self) -> int:
        """How many were lost since the last call."""
        return 0 if self._copies is None else self._copies.lost()

    def close(self) -> None:
        """Keep none any more."""
        if self._copies is not None:
            self._copies.close()
            self._copies = None
