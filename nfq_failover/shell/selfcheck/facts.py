"""How this host is set up, as far as it matters to the host that may have to go on with its connections."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nfq_failover.config.model import Config
from nfq_failover.core.events import HostFacts
from nfq_failover.core.pair.agreement import NONE
from nfq_failover.shell.selfcheck.checks import CHEAP_S

_SIOCGIFMTU: Final = 0x8921  # linux/sockios.h
_SYSCTLS: Final = Path("/proc/sys/net/ipv4")
_GRANTED: Final = {"timestamps": "tcp_timestamps", "sack": "tcp_sack", "window-scaling": "tcp_window_scaling"}
_SHOWN: Final = {"ecn": "tcp_ecn", "congestion-control": "tcp_congestion_control"}


def mtu(interface: str) -> int | None:
    """The interface's MTU; None if it can't be told, as when there is no such interface now."""
    request = struct.pack("16sI", interface[:15].encode(), 0).ljust(40, b"\0")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, _SIOCGIFMTU, request)
        (value,) = struct.unpack_from("i", answer, 16)
        return int(value)
    return None


def _read(config: Config) -> Iterator[tuple[str, str]]:
    yield "tap", f"{config.tap} {config.tap_mac}" if config.tap == "multicast" else config.tap
    yield "conntrack", config.conntrack
    witness = config.witness
    yield "witness", NONE if witness is None else "{}:{}".format(*witness.address)
    if (found := mtu(config.interface)) is not None:
        yield "mtu", str(found)
    for name, sysctl in {**_GRANTED, **_SHOWN}.items():
        with contextlib.suppress(OSError):
            value = (_SYSCTLS / sysctl).read_text().strip()
            yield name, ("0" if value == "0" else "1") if name in _GRANTED else value


def host_facts(config: Config) -> tuple[tuple[str, str], ...]:
    """The facts of a host that is set up as `config` says, as (name, value) pairs."""
    return tuple(_read(config))


class HostFactsReader:
    """Reads a host's facts once a second."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._next = 0.0
        self._told: HostFacts | None = None

    def follow(self, config: Config) -> None:
        """The host is set up in another way; it is told at the next tick."""
        self._config, self._next = config, 0.0

    def tick(self, now: float) -> HostFacts | None:
        """The facts, if it is time to read them and they are new. `now` is seconds of the monotonic clock."""
        if now < self._next:
            return None
        self._next = now + CHEAP_S
        facts = HostFacts(host_facts(self._config))
        if facts == self._told:
            return None
        self._told = facts
        return facts
