"""The other host: its settings against ours, its clock, and what its daemon finds wrong there.

While both daemons hear each other they compare all of that themselves. Else the doctor asks the daemon there, with the
key, and from another port than a daemon that runs here; the question changes nothing. Where no daemon runs, the doctor
there writes what would be compared (`--facts`), and the doctor here reads it (`--compare`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from nfq_failover.config import Config
from nfq_failover.core.concerns import Concern, Weight
from nfq_failover.core.pair.agreement import Facts, Host, compare, facts_of
from nfq_failover.core.pair.clocks import DIFFER_S, differs
from nfq_failover.core.pair.diagnosis import CODE as UNHEARD
from nfq_failover.core.pair.inquiry import Inquiry
from nfq_failover.core.pair.sharing import Sharing
from nfq_failover.core.settings import Peer
from nfq_failover.errors import CommandError
from nfq_failover.operator.doctor.report import Result
from nfq_failover.shell.selfcheck.facts import host_facts

ASK_S: Final = 2.0
_AGAIN_S: Final = 0.3
_MAX_DATAGRAM: Final = 1 << 16
_READ_AT_ONCE: Final = 64
_SETTINGS: Final = "settings"
_WHY: Final = "a host goes on with the other's connections only where both are set up alike"
_UNCHECKED: Final = (
    "service, ports, tap, heartbeats, witness, divergence policy, MTU, kernel and version, and the clocks, are not "
    "compared, nor is the tap tried"
)


def own_facts(config: Config) -> Facts:
    """What this host's daemon would tell, or tells, of the configuration that is in the file."""
    return dict(facts_of(config.settings, Sharing(config.settings)) + host_facts(config))


def describe(config: Config) -> dict[str, Any]:
    """What the doctor on the other host compares, JSON-ready."""
    return {"name": config.settings.name, "facts": own_facts(config)}


def read(path: str) -> dict[str, Any]:
    """What `describe` has made there, from a file, or from the standard input ("-"). Raises `CommandError`."""
    try:
        said = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
        facts = {str(name): str(value) for name, value in said["facts"].items()}
        return {"name": str(said["name"]), "facts": facts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"'{path}' is not what 'nfq-failover doctor --facts' prints: {error}") from None


def from_file(config: Config, said: dict[str, Any]) -> Result:
    """Both hosts' settings compared; the other's are what it has said itself."""
    peer, *_ = config.settings.peers
    if said["name"] != peer.name:
        what = f"these are the settings of '{said['name']}', and [[peer]] here is '{peer.name}'"
        cure = "make `name` there and `name` in [[peer]] here the same, or take the other file"
        return Result(_SETTINGS, _WHY, "", (Concern("peer-name", Weight.UNPROTECTED, what, cure),))
    return _compared(config, peer, said["facts"])


def results(config: Config, runs: bool) -> Iterator[Result]:
    """Ask the daemon there. `runs`: a daemon runs here, too."""
    peer, *_ = config.settings.peers
    try:
        said, ahead_s = Asking(config, peer, 0 if runs else config.listen[1]).ask()
    except OSError as error:
        yield _silent(peer, f"it can't be asked: {error.strerror or error}")
        return
    if not said.complete:
        yield _silent(peer, f"no daemon answers at {peer.address}:{peer.port}")
        return
    yield _compared(config, peer, said.facts)
    if ahead_s is not None:
        yield _clocks(config, peer, ahead_s)
    why = "it matters as soon as both daemons run; docs/operate/failures.md has each code"
    yield Result(peer.name, why, "its daemon finds nothing wrong", tuple(_told(said, runs)))


def _compared(config: Config, peer: Peer, facts: Facts) -> Result:
    found = compare(Host(config.settings.name, own_facts(config)), Host(peer.name, facts))
    return Result(_SETTINGS, _WHY, f"{config.settings.name} and {peer.name} are set up alike", tuple(found))


def _clocks(config: Config, peer: Peer, ahead_s: float) -> Result:
    why = "who looks for what has happened reads both logs side by side"
    found = (differs(config.settings.name, peer.name, ahead_s),) if abs(ahead_s) >= DIFFER_S else ()
    return Result("clocks", why, f"that of {peer.name} is {ahead_s:+.1f} s off ours", found)


def _told(said: Inquiry, runs: bool) -> Iterator[Concern]:
    known = frozenset(Weight)
    for weight, code, what, cure in said.concerns:
        if code == UNHEARD and not runs:
            continue  # that it does not hear a daemon which is off is as it should be
        heavy = Weight(weight) if weight in known else Weight.UNPROTECTED
        yield Concern(code, heavy, f"{what} [{code}]", cure)


def _silent(peer: Peer, why: str) -> Result:
    cure = f"start the daemon on {peer.name}; or run 'nfq-failover doctor --facts' there, and hand what it prints to "
    cure += "'nfq-failover doctor --compare FILE' here"
    found = Concern("settings-unchecked", Weight.WARNING, f"{why}: {_UNCHECKED}", cure)
    return Result(_SETTINGS, _WHY, "", (found,))


class Asking:
    """Asks the peer's daemon from a port of this host: any (0) beside a daemon that runs here, else that of the sync
    channel, which firewalls let pass."""

    def __init__(self, config: Config, peer: Peer, port: int, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the time of day."""
        self._listen = config.listen[0], port
        self._end = (peer.address, peer.port)
        self._inquiry = Inquiry(config.settings, peer, os.urandom)
        self._clock = clock

    def ask(self) -> tuple[Inquiry, float | None]:
        """Ask until the answer is whole, or for `ASK_S`. Returns the inquiry and by how much the peer's clock is ahead
        of ours, in seconds, if that is known. Raises OSError if nothing can be sent from our address."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(self._listen)
            udp.setblocking(False)
            until = time.monotonic() + ASK_S
            asked_at = self._clock()
            ask_again = 0.0
            while (now := time.monotonic()) < until:  # Ends: by the deadline.
                if now >= ask_again:
                    ask_again = now + _AGAIN_S
                    asked_at = self._clock()
                    udp.sendto(self._inquiry.question(), self._end)
                select.select([udp], [], [], _AGAIN_S / 4)
                if self._read(udp):
                    return self._inquiry, self._ahead_s(asked_at)
        return self._inquiry, None

    def _read(self, udp: socket.socket) -> bool:
        """Read what has come. Returns whether the answer is whole."""
        with contextlib.suppress(OSError):
            for _ in range(_READ_AT_ONCE):
                data, source = udp.recvfrom(_MAX_DATAGRAM)
                if source == self._end and self._inquiry.take(data) and self._inquiry.complete:
                    break
        return self._inquiry.complete

    def _ahead_s(self, asked_at: float) -> float | None:
        ms = self._inquiry.clock_ms
        return None if ms is None else ms / 1000 - (asked_at + self._clock()) / 2
