"""The state directory: the epoch can be stored, and soon enough; and what else is written there has room."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.shell.selfcheck.checks import CHEAP_S, DEAR_S

HANGS_S: Final = 1.0  # a takeover would wait for so long, and nobody knows for how much longer
SLOW_S: Final = 0.5
AGAIN_S: Final = 10.0
RULES_BYTES: Final = 32 << 10
"""For the record of the rules, written anew while the old one is there: four files of at most 8 KiB each with 100
ports, half of that with one. The epoch has its room from the start, and what a fence says is not written down."""
INHERITED_BYTES: Final = 512  # in that record for each connection that was taken over: some 400, in two files
_CURE: Final = "make room, or mend the disk; 'state_dir' may be on any disk of this host"
_CURE_RIGHTS: Final = "restart nfq-failover on this host: its user gets the directory again; see who has changed it"
_ST_RDONLY: Final = 1  # statvfs(3)


def room_bytes(inherited: int) -> int:
    """How much has to be left on the disk of a host that takes so many connections over."""
    return RULES_BYTES + INHERITED_BYTES * inherited


class Store(Protocol):
    """What the check wants of the epoch store (state/epoch.py)."""

    failure: str
    took_s: float

    def probe(self) -> None:
        """Write something harmless, durably."""

    def busy_s(self, now: float) -> float:
        """How long it has been writing."""


class StateDisk:
    """Looks at the disk every second, and has the store write once a minute. `directory`: its descriptor; `inherits()`:
    how many connections this host would take over now, or has taken over."""

    name = "state-disk"
    every_s = CHEAP_S

    def __init__(self, store: Store, directory: int, path: str, inherits: Callable[[], int]) -> None:
        self._store = store
        self._directory = directory
        self._path = path
        self._inherits = inherits
        self._next_probe = 0.0

    def run(self, now: float) -> list[Concern]:
        """See `Check`."""
        store = self._store
        busy_s = store.busy_s(now)
        if busy_s >= HANGS_S:
            what = f"the disk of {self._path} hangs: the epoch can't be stored, and a takeover waits for that"
            return [_concern("state-disk-hangs", Weight.UNPROTECTED, what)]
        if now >= self._next_probe and not busy_s:
            self._next_probe = now + (AGAIN_S if store.failure or store.took_s >= SLOW_S else DEAR_S)
            store.probe()
        found = full(self._directory, self._path, self._inherits())
        if store.failure and not any(each.code == "state-disk-fails" for each in found):
            what = f"the epoch could not be stored in {self._path}: {store.failure}"
            found.append(_concern("state-disk-fails", Weight.UNPROTECTED, what))
        elif store.took_s >= SLOW_S:
            what = f"the disk of {self._path} is slow: storing an epoch takes more than {SLOW_S} s"
            found.append(_concern("state-disk-slow", Weight.DEGRADED, what))
        return found


def full(directory: int, path: str, inherited: int = 0) -> list[Concern]:
    """Whether there is no room in a directory, by its descriptor, or nothing can be written to it. `inherited`: how
    many connections the host takes over."""
    try:
        disk = os.fstatvfs(directory)
    except OSError as error:
        return [_concern("state-disk-fails", Weight.UNPROTECTED, f"{path}: {error.strerror}")]
    if disk.f_flag & _ST_RDONLY:
        return [_concern("state-disk-read-only", Weight.UNPROTECTED, f"{path} is read-only")]
    if not os.access(f"/proc/self/fd/{directory}", os.W_OK | os.X_OK):
        what = f"{path} belongs to somebody else now, or its mode has changed: the epoch can't be stored"
        return [Concern("state-disk-fails", Weight.UNPROTECTED, what, _CURE_RIGHTS, Part.BACKUP)]
    if disk.f_bavail * disk.f_frsize < room_bytes(inherited) or (disk.f_files and not disk.f_favail):
        what = f"the disk of {path} is full: a takeover works, but then the firewall rules can't be changed, "
        what += "so that nothing is protected again"
        return [Concern("state-disk-full", Weight.DEGRADED, what, _CURE)]
    return []


def _concern(code: str, weight: Weight, what: str) -> Concern:
    return Concern(code, weight, what, _CURE, Part.BACKUP)
