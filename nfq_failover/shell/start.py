"""What a daemon does before it touches the host or reads a packet.

For each service it claims a directory and an instance, opens what only root can open, and starts a privileged helper.
Then it gives its own rights up.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfq_failover.config import Config
from nfq_failover.errors import CommandError
from nfq_failover.shell.control import status_directory
from nfq_failover.shell.firewall.path import ProbeSender
from nfq_failover.shell.firewall.script import find_script
from nfq_failover.shell.host.arp_settings import open_record
from nfq_failover.shell.host.presence import refuse_elsewhere
from nfq_failover.shell.notify import ServiceManager
from nfq_failover.shell.packets.inject import Injector
from nfq_failover.shell.packets.nfqueue import open_counters
from nfq_failover.shell.peer.socket import SyncSockets, open_sync
from nfq_failover.shell.privileged import descriptors, files, rights
from nfq_failover.shell.privileged.account import Account, account
from nfq_failover.shell.privileged.client import HelperClient, helper_settings
from nfq_failover.shell.state.checkpoint import CheckpointStore
from nfq_failover.shell.undo import Undo

PRIORITY = -10
CONTROL = "control.sock"
_UNIX_PATH = 107  # bytes in a socket's address, unix(7)
_RESERVED_PORTS = 1024


@dataclass(frozen=True, slots=True)
class PreparedService:
    """What only root can open for one service: its state directory and checkpoint, the sockets by which packets are
    injected, and the helper that acts for it.

    `sync` is None if the daemon itself can bind the port.
    """

    config: Config
    directory: int  # a descriptor of the state directory
    store: CheckpointStore
    sync: SyncSockets | None
    helper: HelperClient
    arp_record: int  # a descriptor of the record of all services (host/arp_settings.py); whoever takes it closes it
    injector: Injector
    probe: ProbeSender

    def file(self, name: str) -> Path:
        """The path of a file in the service's state directory."""
        return files.via(self.directory, name)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the daemon has from the time when it was root; `undo` gives all of it back."""

    undo: Undo
    who: Account | None  # None: it is still root
    manager: ServiceManager
    counters: int  # a descriptor of the kernel's table of queues
    services: tuple[PreparedService, ...]
    status_socket: Path | None  # where members of the status group ask
    threads: int  # how many there were, besides the main one, when rights were given up

    @property
    def control(self) -> Path:
        """The control socket, which lies in the state directory of the first service."""
        return self.services[0].file(CONTROL)

    def may_ask(self) -> frozenset[int]:
        """The users whose commands count. The user `nobody` has other processes than the daemon."""
        return frozenset({0} if self.who is None or self.who.fallback else {0, self.who.uid})

    def warnings(self) -> list[str]:
        """What could be better."""
        said = []
        if self.who is not None and self.who.fallback:
            said.append(f"the daemon has no user of its own, and is one with others: {self.who.name}")
        if self.who is not None and self.threads:  # they keep their bounding set, but no capability
            said.append(f"{self.threads} threads of a library were there before rights were given up")
        return said


def prepare(*configs: Config) -> Prepared:
    """Do all that needs root, for one configuration per service; then be root no more.

    Has to be called before any thread is started. The daemon's user is that of the first service. Everything is undone
    if it raises `CommandError`.
    """
    undo = Undo()
    try:
        return _prepare(configs, undo)
    except BaseException:
        undo.run()
        raise


def _prepare(configs: Sequence[Config], undo: Undo) -> Prepared:
    who = account(configs[0])
    descriptors.as_many_as_possible()
    manager = undo.closing(ServiceManager())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)  # the packets' path, and a fence: ahead of what the host serves
    services = tuple(_prepare_service(config, who, undo) for config in configs)
    try:
        counters = open_counters()
    except OSError as error:
        raise CommandError(f"the kernel has no netfilter queues ({error}): load the module nfnetlink_queue") from None
    undo.add(lambda: os.close(counters))
    status_socket = _status_socket(configs[0], who)
    threads = rights.threads() - 1
    if who is not None:
        rights.become(who.uid, who.gid, rights.DAEMON)
    return Prepared(undo, who, manager, counters, services, status_socket, threads)


def _prepare_service(config: Config, who: Account | None, undo: Undo) -> PreparedService:
    find_script(config.rules_script)
    refuse_elsewhere(config.service, config.interface)
    _take_locks(config.state_dir, config.instance, undo)
    if len(os.fsencode(config.state_dir / CONTROL)) > _UNIX_PATH:
        raise CommandError(f"{config.state_dir / CONTROL} is too long: set a 'state_dir' with a shorter path")
    try:
        files.roots_own(config.state_dir / "rules")
    except OSError as error:
        raise CommandError(f"can't use the state directory {config.state_dir} ({error}): make room there") from None
    try:
        injector = undo.closing(Injector(config.mark, config.service))
        probe = undo.closing(ProbeSender(config.service, config.interface))
    except OSError as error:
        raise CommandError(f"no raw socket can be made ({error}): CAP_NET_RAW and CAP_NET_ADMIN are needed") from None
    helper = undo.closing(HelperClient(helper_settings(config, who, injector.owned)))
    directory = os.open(config.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.add(lambda: os.close(directory))
    store = undo.closing(CheckpointStore(config.run_dir, config.instance))
    sync = None
    if config.listen[1] < _RESERVED_PORTS:
        sync = undo.closing(open_sync(config.listen, config.limits.sync_buffer_bytes))
    try:
        files.hand_over(directory, who)
    except OSError as error:
        if who is not None:  # root does not need it
            raise CommandError(f"can't hand {config.state_dir} over to the daemon's user: {error}") from None
    return PreparedService(config, directory, store, sync, helper, _arp_record(config.state_dir), injector, probe)


def _status_socket(config: Config, who: Account | None) -> Path | None:
    """Make the directory where members of the status group find the daemon's socket, None without such a group.

    The daemon's user can make sockets in it; members of the group can reach them, and no more.
    """
    name = config.privileges.status_group
    if name is None:
        return None
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        raise CommandError(
            f"there is no group '{name}': make it (groupadd --system {name}), or correct 'status_group' in [privileges]"
        ) from None
    directory = status_directory(config.run_dir)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # The unit's root may not open what is another's, nor set its mode; and nothing may be set-group-ID.
            place = f"/proc/self/fd/{fd}"
            os.chown(place, 0, 0)
            os.chmod(place, 0o710)  # noqa: S103, PTH101
            os.chown(place, who.uid if who else 0, gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise CommandError(f"can't make {directory} ({error.strerror}): check 'run_dir'") from None
    return directory / f"{config.instance}.sock"


def _arp_record(directory: Path) -> int:
    """The record that all services of this host share; one for this service alone where there is no /run."""
    try:
        return open_record()
    except OSError:
        pass
    try:
        return os.open(directory / "arp.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CommandError(f"can't write to {directory} ({error}): check 'state_dir'") from None


def _take_locks(directory: Path, instance: str, undo: Undo) -> None:
    """One daemon per state directory, and per instance in a network namespace. Raises `CommandError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CommandError(f"can't use the state directory {directory} ({error}): check 'state_dir'") from None
    undo.add(lambda: os.close(lock))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"another daemon already uses {directory}: stop it first") from None
    # An abstract socket belongs to a network namespace: two daemons there would fight for the same rules.
    name = undo.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        name.bind(f"\0nfq-failover/{instance}")
    except OSError:
        raise CommandError(
            f"another daemon of instance '{instance}' runs here: stop it, or set another 'instance'"
        ) from None
