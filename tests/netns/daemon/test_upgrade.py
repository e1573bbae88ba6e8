"""A pair is upgraded under load, in both ways of docs/operate/upgrade.md; two releases take over from each other.

The release before is the commit that `tests/previous` names. Another one is made: a copy of this tree that lacks a
record, and has one that this tree lacks.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfq_failover.lab import netns, nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options, Store
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support import previous
from tests.support.fault_world import CALM_MS, FaultWorld, Talk, ended_well, talk
from tests.support.lab_world import SERVER, eventually, lab

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
PARTS = ("nfq_failover", "iptables")
LATER = """

@declare(222, Towards.HOST, "!I")
@dataclass(frozen=True, slots=True)
class Later(Record):
    conn: int
"""


def today(directory: Path) -> None:
    """This tree's program."""
    for part in PARTS:
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))


def before(directory: Path) -> None:
    """The release before."""
    previous.unpack(directory)


def another(directory: Path) -> None:
    """A release that does not know what its replica's TCP has missed (`HeardBefore`), and says something of its own."""
    today(directory)
    edit(directory / "nfq_failover/__init__.py", r"^__version__ = .*$", '__version__ = "0.0.9"')
    state = directory / "nfq_failover/wire/records/state.py"
    state.write_text(state.read_text() + LATER)
    edit(directory / "nfq_failover/wire/records/__init__.py", r"\Z", "\nDECLARED.pop(72)\n")
    telling = directory / "nfq_failover/core/pair/told.py"
    edit(telling, r"told: list\[Record\] = \[", "told: list[Record] = [Later(7), ")
    edit(telling, r"^TELL_EVERY_S", "from nfq_failover.wire.records.state import Later\n\nTELL_EVERY_S")


def edit(path: Path, old: str, new: str) -> None:
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1, (path, old)
    path.write_text(text)


class Upgraded:
    """A lab whose hosts have a program each, in a directory of its own: where a package would put it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world: FaultWorld

    def install(self, node: str, put: Callable[[Path], None]) -> None:
        """Replace the files of a host, under a daemon that may run."""
        place = self.directory / node
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        put(place)

    def start(self, store: Store, node: str) -> subprocess.Popen[bytes]:
        """In place of `nodes.start_daemon`."""
        (store.directory / node / "state").mkdir(exist_ok=True)
        program = Path(sys.executable).with_name("nfq-failover")
        argv = [str(program), "run", "--config", str(store.directory / node / "config.toml")]
        env = {**os.environ, "PYTHONPATH": str(self.directory / node)}
        process = netns.spawn(namespace(store.name, node), argv, store.log(f"daemon-{node}"), cwd="/", env=env)
        (store.directory / node / "daemon.pid").write_text(f"{process.pid}\n")
        return process

    def stop(self, node: str) -> None:
        """`systemctl stop`: returns when the daemon has ended."""
        pid = self.world.lab.daemon_pid(node)
        os.kill(pid, signal.SIGTERM)
        assert eventually(lambda: not alive(pid))

    def ready(self) -> bool:
        """Whether the pair is protected; concerns that name the versions are expected."""
        return eventually(self.world.is_protected, 15)

    def codes(self, node: str) -> set[str]:
        return {concern["code"] for concern in self.world.ask(node)["concerns"]}


def alive(pid: int) -> bool:
    netns.reap()
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Path], None]], Upgraded]]:
    """Starts a pair of hosts that have one program."""
    with ExitStack() as stack:
        # Readable for the user that the daemons become.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nfqf-upgrade-")))
        directory.chmod(0o755)
        made = Upgraded(directory)
        monkeypatch.setattr(nodes, "start_daemon", made.start)

        def start(*programs: Callable[[Path], None]) -> Upgraded:
            for node, put in zip(TWO_HOSTS.hosts, programs, strict=True):
                made.install(node, put)
            up: Lab = stack.enter_context(lab(Options(rate="100mbit", heartbeat_ms=CALM_MS)))
            up.serve(SERVER)
            made.world = FaultWorld(up)
            return made

        yield start


def is_cut(connection: Talk) -> bool:
    """Whether the connection ends now, by a reset."""
    try:
        connection.exchange()
    except ConnectionResetError:
        return True
    return False


def test_one_host_after_the_other_with_protection_all_the_while(pair: Callable[..., Upgraded]) -> None:
    """The backup first, then the service moves; whoever connected in between notices nothing."""
    a, b = TWO_HOSTS.hosts
    up = pair(before, before)
    world = up.world
    with talk(world) as old:
        assert world.protects(old.connection)
        up.install(b, today)
        up.stop(b)
        old.exchange()
        world.lab.start_daemon(b)
        assert up.ready()
        old.exchange()
        with talk(world) as one, world.start("bulk", "--size", "40M") as load:
            assert world.protects(one.connection), world.row(one.connection)
            up.install(a, today)
            up.stop(a)  # it hands the service over
            one.exchange()
            assert is_cut(old), "it lost its protection with the backup's first daemon"
            world.lab.start_daemon(a)
            assert up.ready()
            ended_well(load)
            one.exchange()
            with talk(world) as new:
                assert world.protects(new.connection)
                world.lab.crash(b)
                new.exchange()
    assert world.ask(a)["role"] == "primary"


def test_nothing_is_cut_when_the_backup_is_stopped_meanwhile(pair: Callable[..., Upgraded]) -> None:
    """Connections that were open before go on through all of it; nothing is protected until both hosts are upgraded."""
    a, b = TWO_HOSTS.hosts
    up = pair(before, before)
    world = up.world
    with talk(world) as old, world.start("bulk", "--size", "40M") as load:
        assert world.protects(old.connection)
        up.stop(b)
        # The release before gives the service up if it is stopped while it takes the backup for alive.
        assert eventually(lambda: world.state(a) == "unprotected" and world.ask(a)["peer"]["lost"])
        for host in (b, a):
            up.install(host, today)
        up.stop(a)
        old.exchange()  # its kernel serves on
        world.lab.start_daemon(a)
        assert eventually(lambda: world.state(a) == "unprotected")
        old.exchange()
        world.lab.start_daemon(b)
        assert up.ready()
        old.exchange()
        ended_well(load)
        with talk(world) as new:
            assert world.protects(new.connection)
            old.exchange()
            world.lab.crash(a)
            new.exchange()


def test_two_releases_take_over_from_each_other(pair: Callable[..., Upgraded]) -> None:
    """Each knows a record that the other does not; the connections of either go on at the other."""
    a, b = TWO_HOSTS.hosts
    up = pair(today, another)
    world = up.world
    told = {"differs-version", "differs-records"}
    assert eventually(lambda: told <= up.codes(a) and told <= up.codes(b)), (up.codes(a), up.codes(b))
    with talk(world) as one, world.start("bulk", "--size", "20M") as load:
        assert world.protects(one.connection)
        assert eventually(lambda: world.ask(b)["counters"].get("record-not-known-there", 0) > 0)
        world.lab.crash(a)
        one.exchange()
        ended_well(load)
        world.lab.restore(a)
        assert up.ready()
        with talk(world) as other, world.start("bulk", "--size", "20M") as load:
            assert world.protects(other.connection)
            world.lab.crash(b)
            other.exchange()
            ended_well(load)
