"""The kernel's settings that decide on which interface this host answers ARP for which of its addresses.

`arp_ignore` = 1 for all interfaces: an address is answered for on the interface that has it, and nowhere else. The
service address is on `lo`, so nobody is answered, on no interface, however many there are and whenever they appear;
the host that serves has it on the service's interface as well. `arp_announce` = 2: no ARP request of the kernel names
the service address as its sender. The kernel takes the greater of the values of "all" and of the interface.

All services of a host want the same, and the first one to come must not be the one that puts it back while another
still runs. So what was found before is on record in one file for all of them, with the names of those that need it; the
last one to leave puts it back. The record counts for one boot and one network namespace.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from nfq_failover.errors import CommandError

CONF: Final = Path("/proc/sys/net/ipv4/conf")
RECORDS: Final = Path("/run/nfq-failover")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NETNS: Final = Path("/proc/thread-self/ns/net")
_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h; Linux 5.14
_IGNORE, _ANNOUNCE = "arp_ignore", "arp_announce"
# With these an address is answered for only where it is configured; 3 to 7 answer for lo's as well, 8 never does.
_STRICT: Final = (1, 2)
_ANNOUNCE_STRICT: Final = 2
_MAX_RECORD: Final = 1 << 20


def life() -> list[str]:
    """What names this boot and this network namespace, and no other one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            cookie = asking.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8).hex()
        except OSError:  # a number that may be given to another one later
            cookie = str(_NETNS.readlink())
    return [_BOOT_ID.read_text().strip(), cookie]


def open_record() -> int:
    """Returns a descriptor of the host's record, which is made if it is not there. Needs root. Raises OSError."""
    number = str(_NETNS.readlink()).strip("net:[]")
    RECORDS.mkdir(mode=0o700, exist_ok=True)
    directory = RECORDS / f"netns-{number}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return os.open(directory / "arp.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@dataclass(slots=True)
class _Record:
    """What was found before (a name like "all/arp_ignore", and its value), and who needs it otherwise."""

    found: dict[str, int]
    users: list[str]


class ArpSettings:
    """The settings, for one service: `acquire`, then `look` again and again, then `release`."""

    def __init__(self, record: int, user: str, interface: str, conf: Path = CONF) -> None:
        """`record`: a descriptor of the file (`open_record`), which this object closes; `user`: the service's name."""
        self._record = record
        self._user = user
        self._interface = interface
        self._conf = conf
        self._life = life()

    def acquire(self) -> None:
        """Put the settings in force until `release`. Raises `CommandError` where they can't be."""
        found = self._read("all", _IGNORE)
        if found is not None and found > max(_STRICT):
            raise CommandError(
                f"net.ipv4.conf.all.arp_ignore is {found}, and no interface can have less: set it to 0, and to {found} "
                f"for the interfaces that need it, but not for {self._interface}"
            )
        self._change(self._user, add=True)
        try:
            self.look(everywhere=True)
        except OSError as error:
            self._change(self._user, add=False)
            raise CommandError(f"can't set how this host answers ARP ({error}): is /proc/sys writable?") from None

    def look(self, everywhere: bool = False) -> list[str]:
        """Set again what is not as it must be; `everywhere`: on each interface, not only what is for all of them.

        Returns what was wrong, as sysctl(8) writes it. Raises OSError if it can't be set.
        """
        wrong: dict[str, int] = {}
        if self._read("all", _IGNORE) not in _STRICT:
            wrong[f"all/{_IGNORE}"] = _STRICT[0]
        if (self._read("all", _ANNOUNCE) or 0) < _ANNOUNCE_STRICT:
            wrong[f"all/{_ANNOUNCE}"] = _ANNOUNCE_STRICT
        for interface in self._interfaces() if everywhere else (self._interface,):
            own = self._read(interface, _IGNORE)
            if own is not None and own > max(_STRICT) and (own < 8 or interface == self._interface):
                wrong[f"{interface}/{_IGNORE}"] = _STRICT[0]
        if not wrong:
            return []
        found = {name: value for name in wrong if (value := self._read(*name.split("/"))) is not None}
        self._remember(found)
        for name, value in wrong.items():
            try:
                (self._conf / name).write_text(f"{value}\n")
            except FileNotFoundError:
                continue  # the interface has gone
        return [f"net.ipv4.conf.{name.replace('/', '.')} was {value}" for name, value in found.items()]

    def release(self) -> None:
        """Need the settings no more: the last one puts back what was there. Can be repeated."""
        if self._record < 0:
            return
        self._change(self._user, add=False)
        self.close()

    def close(self) -> None:
        """Leave the settings as they are, and on record. Can be repeated."""
        if self._record >= 0:
            os.close(self._record)
            self._record = -1

    def _interfaces(self) -> list[str]:
        with contextlib.suppress(OSError):
            return [entry.name for entry in self._conf.iterdir() if entry.name not in ("all", "default", "lo")]
        return [self._interface]

    def _read(self, interface: str, name: str) -> int | None:
        try:
            return int((self._conf / interface / name).read_text())
        except (OSError, ValueError):
            return None

    # ------------------------------------------------------------------------------------ the record

    def _remember(self, found: dict[str, int]) -> None:
        """Note what was there, unless an older value is on record. On record first, then changed."""
        with self._locked() as record:
            record.found = {**found, **record.found}
            self._write(record)

    def _change(self, user: str, add: bool) -> None:
        with self._locked() as record:
            users = [other for other in record.users if other != user]
            record.users = [*users, user] if add else users
            if not record.users:
                self._put_back(record.found)
                record.found = {}
            self._write(record)

    def _put_back(self, found: dict[str, int]) -> None:
        for name, value in found.items():
            interface, setting = name.split("/")
            ours = _STRICT[0] if setting == _IGNORE else _ANNOUNCE_STRICT
            if self._read(interface, setting) == ours:  # else somebody has decided otherwise since
                with contextlib.suppress(OSError):
                    (self._conf / name).write_text(f"{value}\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Record]:
        fcntl.flock(self._record, fcntl.LOCK_EX)
        try:
            yield self._load()
        finally:
            fcntl.flock(self._record, fcntl.LOCK_UN)

    def _load(self) -> _Record:
        """What is on record. Whoever can write there must not have us write elsewhere, nor anything else."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            table = json.loads(os.pread(self._record, _MAX_RECORD, 0).partition(b"\n")[0])
            if table["life"] == self._life:
                found = {str(name): int(value) for name, value in table["found"].items() if _harmless(str(name))}
                return _Record(found, [str(user) for user in table["users"]])
        return _Record({}, [])

    def _write(self, record: _Record) -> None:
        # In one piece, and only then cut: who dies in between leaves a first line that is whole.
        line = json.dumps({"life": self._life, **asdict(record)}).encode() + b"\n"
        os.pwrite(self._record, line, 0)
        os.ftruncate(self._record, len(line))


def _harmless(name: str) -> bool:
    interface, _, setting = name.partition("/")
    return setting in (_IGNORE, _ANNOUNCE) and interface not in ("", ".", "..") and "/" not in setting
