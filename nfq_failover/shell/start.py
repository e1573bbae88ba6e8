"""What a daemon does before it touches the host or reads a packet.

It claims its directory and instance, opens what only root can open, starts the privileged helper, and gives its own
rights up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nfq_failover.config import Config
from nfq_failover.errors import CommandError
from nfq_failover.shell.firewall.script import find_script
from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.notify import ServiceManager
from nfq_failover.shell.packets.nfqueue import open_counters
from nfq_failover.shell.peer.socket import SyncSockets, open_sync
from nfq_failover.shell.privileged import files, rights
from nfq_failover.shell.privileged.account import Account, account
from nfq_failover.shell.privileged.client import Helper, helper_settings
from nfq_failover.shell.state.checkpoint import CheckpointStore

PRIORITY = -10
_UNIX_PATH = 107  # bytes in a socket's address, unix(7)
_RESERVED_PORTS = 1024
EXIT_NO_HELPER = 70  # EX_SOFTWARE of sysexits.h
_NO_HELPER = b"nfq-failover: the privileged helper has ended: so does the daemon, as if it had been killed\n"


def take_locks(directory: Path, instance: str, undo: list[Callable[[], object]]) -> None:
    """One daemon per state directory, and per instance in a network namespace. Raises `CommandError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CommandError(f"can't use the state directory {directory} ({error}): check 'state_dir'") from None
    undo.append(lambda: os.close(lock))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"another daemon already uses {directory}: stop it first") from None
    # An abstract socket belongs to a network namespace: two daemons there would fight for the same rules.
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    undo.append(name.close)
    try:
        name.bind(f"\0nfq-failover/{instance}")
    except OSError:
        raise CommandError(
            f"another daemon of instance '{instance}' runs here: stop it, or set another 'instance'"
        ) from None


@dataclass(slots=True)
class Ground:
    """What the daemon stands on; `undo` gives all of it back, last things first."""

    who: Account | None  # None: root, as before
    undo: list[Callable[[], object]] = field(default_factory=list)
    state: int = -1  # the state directory
    helper: Helper = field(init=False)
    store: CheckpointStore = field(init=False)
    manager: ServiceManager = field(init=False)
    counters: int | None = None
    sync: SyncSockets | None = None  # only if root alone can bind it
    threads: int = 0  # that were there before rights were given up

    def file(self, name: str) -> Path:
        """A path of a file in the state directory."""
        return files.via(self.state, name)

    def may_ask(self) -> frozenset[int]:
        """The users whose commands count. `nobody` is somebody else, too."""
        return frozenset({0} if self.who is None or self.who.fallback else {0, self.who.uid})

    def host(self, config: Config) -> ServiceAddress:
        """The host's address and settings; the address by way of the helper."""
        names = (config.service, config.interface, config.tap, config.tap_mac)
        refresh_s = config.announce_refresh_ms / 1000
        return ServiceAddress(*names, self.file("host.json"), self.helper.change_address, refresh_s)

    def helped(self) -> None:
        """Take the helper's answers. Without it nothing can be put in order, so nothing is: as good as killed."""
        self.helper.serve()
        if self.helper.gone:
            os.write(2, _NO_HELPER)
            os._exit(EXIT_NO_HELPER)

    def warnings(self) -> list[str]:
        """What could be better."""
        said = []
        if self.who is not None and self.who.fallback:
            said.append(f"the daemon has no user of its own, and is one with others: {self.who.name}")
        if self.who is not None and self.threads:  # they keep their bounding set, but no capability
            said.append(f"{self.threads} threads of a library were there before rights were given up")
        return said


def stand(config: Config) -> Ground:
    """Do all that needs root, then be root no more. To be called before threads are started. Raises `CommandError`."""
    ground = Ground(account(config))
    try:
        _stand(config, ground)
    except BaseException:
        for undo in reversed(ground.undo):
            undo()
        raise
    return ground


def _stand(config: Config, ground: Ground) -> None:
    ground.manager = ServiceManager()
    ground.undo.append(ground.manager.close)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)  # the packets' path, and a fence: ahead of what the host serves
    find_script(config.rules_script)
    take_locks(config.state_dir, config.instance, ground.undo)
    if len(os.fsencode(config.state_dir / "control.sock")) > _UNIX_PATH:
        raise CommandError(f"{config.state_dir}/control.sock is too long: set a 'state_dir' with a shorter path")
    files.roots_own(config.state_dir / "rules")
    ground.helper = Helper(helper_settings(config, ground.who))
    ground.undo.append(ground.helper.close)
    ground.state = os.open(config.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ground.undo.append(lambda: os.close(ground.state))
    ground.store = CheckpointStore(config.run_dir, config.instance)
    ground.undo.append(ground.store.close)
    try:
        ground.counters = counters = open_counters()
    except OSError as error:
        raise CommandError(f"the kernel has no netfilter queues ({error}): load the module nfnetlink_queue") from None
    ground.undo.append(lambda: os.close(counters))
    if config.listen[1] < _RESERVED_PORTS:
        ground.sync = open_sync(config.listen, config.limits.sync_buffer_bytes)
        ground.undo.append(ground.sync.close)
    try:
        files.hand_over(ground.state, ground.who)
    except OSError as error:
        if ground.who is None:
            return  # root does not need it
        raise CommandError(f"can't hand {config.state_dir} over to the daemon's user: {error}") from None
    ground.threads = rights.threads() - 1
    if ground.who is not None:
        rights.become(ground.who.uid, ground.who.gid, rights.DAEMON)
