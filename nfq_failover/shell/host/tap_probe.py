"""Sends the segments that try the tap, as frames: the service's address may be this host's own."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Final

from nfq_failover.core.events import SendProbe
from nfq_failover.wire.tap_probe import tap_probe

_ETH_P_IP: Final = 0x0800


class TapProbes:
    """Sends them from the interface of the service."""

    def __init__(self, interface: str, source: str, service: tuple[bytes, int], tap_mac: str | None) -> None:
        """`source`: this host's address; `service`: its address and a port; `tap_mac`: the multicast tap's address."""
        self._interface = interface
        self._source = ip_address(source).packed
        self._service = service
        self._tap_mac = bytes.fromhex((tap_mac or "").replace(":", ""))

    def send(self, effect: SendProbe) -> None:
        """Send one to the hardware address that it names, or to that of the multicast tap. Needs CAP_NET_RAW. Raises
        OSError: the interface is gone, or down."""
        packet = tap_probe(self._source, self._service, effect.token)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as sending:
            sending.bind((self._interface, 0))  # 0: it hears nothing
            own: bytes = sending.getsockname()[4]
            sending.send((effect.hardware or self._tap_mac) + own + _ETH_P_IP.to_bytes(2) + packet)
