"""The application as its listening sockets show it: where it listens, and whether it has been started anew.

A program that ends takes its listening sockets along, and the next one makes others. One that merely reads its
configuration again, or replaces its worker processes, keeps them. So a *life* of the application lasts for as long as
one look at its sockets has one in common with the look before.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from nfq_failover.core.events import ListenersSeen
from nfq_failover.wire.records import Anew

STEADY_S = 10.0  # what has listened for as long is a program that stays
APART_S = 90.0  # what has, and ends alone, is a program of its own, and no port that was opened for one transfer
ANEW_REASONS = {
    Anew.REPLICA: "the replica's application was started anew, and the server's was not",
    Anew.SERVER: "the server's application was started anew, and the replica's was not",
}


@dataclass(slots=True)
class Port:
    """What listens, or has listened, at one port. `since`: in an unbroken row; `gone_at`: it does not any more."""

    inodes: frozenset[int]
    since: float
    gone_at: float | None = None

    def seen(self, inodes: frozenset[int]) -> None:
        """It listens, with these sockets."""
        self.inodes, self.gone_at = inodes, None

    def gone(self, now: float) -> None:
        """It does not listen."""
        if self.gone_at is None:
            self.gone_at = now

    def lasted_s(self, now: float) -> float:
        """For how long it has listened, or did."""
        return (now if self.gone_at is None else self.gone_at) - self.since


@dataclass(frozen=True, slots=True)
class Begun:
    """The application has begun to listen. `anew`: at these ports a new program has followed another one; none: there
    was nothing before. `at`: not earlier than this."""

    anew: tuple[int, ...]
    at: float


class Application:
    """This host's application. `known`: the kernel has said where it listens. `life` is a number for its present life,
    or for the last one if it has ended; 0 if there was none. `bound`: ports where it takes connections from one
    interface alone, not lo, and the interface's name: clients reach it, and what a replica is given does not."""

    def __init__(self) -> None:
        self.known = False
        self.life = 0
        self.ports: dict[int, Port] = {}
        self.bound: dict[int, str] = {}
        self.first_seen: float | None = None  # when it was looked at for the first time
        self.gone_at: float | None = None  # it was there, and does not listen anywhere any more
        self._last: frozenset[int] = frozenset()  # the sockets of the last look that found any
        self._settling: frozenset[int] | None = None  # the next look finds what counts from then on; these were there

    @property
    def listening(self) -> tuple[int, ...]:
        """The ports where it listens, in order."""
        return tuple(sorted(port for port, each in self.ports.items() if each.gone_at is None))

    def seen(self, event: ListenersSeen, now: float) -> Begun | None:
        """Take a look. Returns whether something has begun to listen since the last one, as a program of its own."""
        first = self.first_seen is None
        if first:
            self.first_seen = now
        self.known = event.known
        self.bound = dict(event.bound)
        by_port: dict[int, set[int]] = {}
        for port, inode in event.sockets:
            by_port.setdefault(port, set()).add(inode)
        inodes = frozenset(inode for _, inode in event.sockets)
        before = self._last
        replaced = [port for port, found in by_port.items() if self._replaced(port, found, now)]
        self._follow({port: frozenset(found) for port, found in by_port.items()}, first or self.unsettled, now)
        settling, self._settling = self._settling, None
        if not inodes:
            self.gone_at = now if before and self.gone_at is None else self.gone_at
            return None
        self._last, self.gone_at = inodes, None
        if before and not inodes & before:
            replaced = list(by_port)
        if (before and not replaced) or (settling and inodes & settling):
            return None
        self.life = crc32(repr(sorted(event.sockets)).encode()) or 1
        return Begun(tuple(sorted(replaced)), now - event.after_s)

    @property
    def unsettled(self) -> bool:
        """Whether a look is wanted, at once: what was seen last may have ended before it mattered."""
        return self._settling is not None

    def settle(self) -> None:
        """From the next look on counts what is there then: whatever has ended before is no matter."""
        self._settling, self._last = self._last, frozenset()
        self.ports.clear()
        self.gone_at = None

    def _replaced(self, port: int, found: set[int], now: float) -> bool:
        """Whether a program that listened at the port, for long enough to be more than a port for one transfer, has
        been followed by another one."""
        have = self.ports.get(port)
        return have is not None and not have.inodes & found and have.lasted_s(now) >= APART_S

    def _follow(self, by_port: dict[int, frozenset[int]], first: bool, now: float) -> None:
        for port, inodes in by_port.items():
            have = self.ports.get(port)
            if have is not None and have.inodes & inodes:
                have.seen(inodes)
            else:
                # What was there before us has been there for long, as far as we know.
                self.ports[port] = Port(inodes, now - APART_S if first else now)
        for port, each in self.ports.items():
            if port not in by_port:
                each.gone(now)
