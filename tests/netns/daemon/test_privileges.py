"""Who the daemon, its helper and its heartbeat sender are, what they may do, and what that keeps them from."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfq_failover.shell.host.address import ServiceAddress
from nfq_failover.shell.host.arp_settings import ArpSettings
from nfq_failover.shell.privileged.rights import DAEMON, HELPER, NUMBERS
from tests.support.daemon_world import DaemonWorld, daemon_world, pings, refused, wait_until
from tests.support.namespaces import SERVICE, run

pytestmark = pytest.mark.netns

NOBODY = pwd.getpwnam("nobody")
OTHER = pwd.getpwnam("daemon")  # there on every Debian
ROOT = Path(__file__).parents[3]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DaemonWorld]:
    with daemon_world(tmp_path) as made:
        yield made


@pytest.fixture
def open_world() -> Iterator[DaemonWorld]:
    """One whose disk every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as disk, daemon_world(Path(disk)) as made:
        Path(disk).chmod(0o755)
        yield made


def config(world: DaemonWorld, *privileges: str, **changes: object) -> Path:
    """A configuration with these lines in [privileges]."""
    path = world.config(**changes)
    path.write_text("\n".join((path.read_text(), "[privileges]", *privileges, "")))
    return path


def process_of(world: DaemonWorld, module: str) -> int:
    """The process that runs a module of ours."""
    found: list[int] = []

    def look() -> bool:
        found.clear()
        for pid in run("ip", "netns", "pids", world.server.name).split():
            with suppress(OSError):
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        return len(found) == 1

    wait_until(look)
    return found[0]


def rights(pid: int, thread: int | None = None) -> dict[str, str]:
    """Fields of /proc/PID/status."""
    text = Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def threads(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


def mask(names: frozenset[str]) -> str:
    return f"{sum(1 << NUMBERS[name] for name in names):016x}"


NONE = "0" * 16


def as_user(user: pwd.struct_passwd, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an ordinary user, without any capability."""
    become = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--inh-caps=-all")
    return subprocess.run([*become, *command], capture_output=True, text=True, timeout=30)


# ------------------------------------------------------------------------------------------ who is who


def test_each_process_and_thread_holds_what_is_named_for_it_and_no_more(world: DaemonWorld) -> None:
    process, log = world.ready(world.config())
    assert "is one with others" in log.read_text()  # no user of its own: nobody
    ids = f"{NOBODY.pw_uid}\t" * 3 + str(NOBODY.pw_uid)
    groups = f"{NOBODY.pw_gid}\t" * 3 + str(NOBODY.pw_gid)
    wait_until(lambda: len(threads(process.pid)) >= 3)
    held = {}
    for thread in threads(process.pid):
        of = rights(process.pid, thread)
        assert (of["Uid"], of["Gid"], of["Groups"].strip()) == (ids, groups, "")
        assert (of["CapBnd"], of["CapInh"], of["CapAmb"], of["NoNewPrivs"]) == (mask(DAEMON), NONE, NONE, "1")
        held[thread] = (of["CapPrm"], of["CapEff"])
    assert held.pop(process.pid) == (mask(DAEMON), mask(DAEMON))
    assert set(held.values()) == {(NONE, NONE)}  # the log writer, the epoch store
    assert Path(f"/proc/{process.pid}/maps").stat().st_uid == 0  # not dumpable

    helper = rights(process_of(world, "nfq_failover.shell.privileged.helper"))
    assert helper["Uid"].split() == ["0"] * 4
    sets = {name: helper[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs")}
    mine = f"{int(mask(HELPER), 16) & int(rights(os.getpid())['CapPrm'], 16):016x}"
    assert (sets.pop("CapInh"), sets.pop("CapAmb"), sets.pop("NoNewPrivs")) == (NONE, NONE, "1")
    assert set(sets.values()) == {mine}

    pid = process_of(world, "nfq_failover.shell.peer.heartbeat_sender")
    wait_until(lambda: rights(pid)["CapPrm"] == NONE)
    sender = rights(pid)
    assert (sender["Uid"], sender["Gid"], sender["Groups"].strip()) == (ids, groups, "")
    assert {sender[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {NONE}
    assert os.sched_getscheduler(pid) == os.SCHED_FIFO
    assert int(sender["VmLck"].split()[0]) > 1000

    told = world.status()["shell"]["privileges"]
    assert told == {
        "uid": NOBODY.pw_uid,
        "gid": NOBODY.pw_gid,
        "capabilities": sorted(DAEMON),
        "no_new_privileges": True,
    }


def test_a_user_that_is_named_may_ask_and_others_may_not(open_world: DaemonWorld) -> None:
    world = open_world
    path = config(world, f'user = "{OTHER.pw_name}"')
    process, _ = world.ready(path)
    assert rights(process.pid)["Uid"].split() == [str(OTHER.pw_uid)] * 4
    assert world.status()["state"] == "waiting"  # root
    ask = "import sys; from pathlib import Path; from nfq_failover.shell.control import ask; "
    ask += "print(ask(Path(sys.argv[1]), 'ping'))"
    # Where everybody can reach the socket: only what the kernel says of the asker counts then.
    world.state.chmod(0o1775)
    (world.state / "control.sock").chmod(0o666)
    words = (sys.executable, "-c", ask, str(world.state / "control.sock"))
    assert "pong" in as_user(OTHER, *words).stdout
    assert "only root" in as_user(NOBODY, *words).stderr


def test_not_to_drop_is_possible_and_loud(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, log = world.ready(config(world, "drop = false"))
    assert "keeps all of root's rights" in log.read_text()
    assert rights(process.pid)["Uid"].split() == ["0"] * 4
    assert world.status()["shell"]["privileges"]["uid"] == 0
    process.terminate()
    assert process.wait(15) == 0
    assert world.snapshot() == before


def test_from_one_to_the_other_and_back(world: DaemonWorld) -> None:
    """The files of one user are the next one's."""
    for line in ('user = "nobody"', "drop = false", f'user = "{OTHER.pw_name}"', 'user = "nobody"'):
        process, log = world.ready(config(world, line))
        process.kill()
        process.wait()
        (world.state / "epoch.json").write_text('{"epoch": 3, "role": "backup"}')
        errors = [line for line in log.read_text().splitlines() if "[error" in line]
        assert not [line for line in errors if "never-acts" not in line]  # there is no fence
    process, log = world.ready(config(world, 'user = "nobody"'))
    assert world.status()["epoch"] == 3
    assert (world.state / "epoch.json").stat().st_uid == NOBODY.pw_uid
    process.terminate()
    assert process.wait(15) == 0, log.read_text()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('user = "nosuchuser"', "there is no user 'nosuchuser'"),
        ('user = "root"', "root's rights"),
        ('fence_capabilities = ["CAP_EVERYTHING"]', "CAP_EVERYTHING"),
    ],
)
def test_a_user_that_can_not_be_is_a_refusal(world: DaemonWorld, line: str, says: str) -> None:
    before = world.snapshot()
    assert says in refused(world, config(world, line))
    assert world.snapshot() == before


# ------------------------------------------------------------------------------------------ nothing less would do

LESS = "from nfq_failover.shell.privileged import rights; rights.{} -= {{'{}'}}\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [("CAP_NET_ADMIN", "queue 7760 can't be bound"), ("CAP_NET_RAW", "SOCK_RAW")],
)
def test_without_one_of_its_capabilities_the_daemon_does_not_start(world: DaemonWorld, name: str, says: str) -> None:
    before = world.snapshot()
    process, log = world.start(world.config(), LESS.format("DAEMON", name))
    assert process.wait(30) in (1, 2)
    assert says in Path(str(log.name)).read_text()
    assert world.snapshot() == before


def test_without_the_right_to_become_another_user_it_refuses_and_says_what_is_missing(world: DaemonWorld) -> None:
    process, log = world.start(world.config(), before=("setpriv", "--bounding-set=-setuid,-sys_admin"))
    assert process.wait(30) == 1
    assert "CAP_SETUID" in Path(str(log.name)).read_text()


# ------------------------------------------------------------------------------------------ what it is good for


def test_programs_that_the_user_can_not_read_do(world: DaemonWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in /root: all of it was loaded before, and the helper starts the rest."""
    private = world.disk / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(ROOT / "nfq_failover", private / "nfq_failover")
    shutil.copytree(ROOT / "iptables", private / "iptables")
    monkeypatch.setenv("PYTHONPATH", str(private))
    monkeypatch.chdir(private)
    before = world.snapshot()
    process, log = world.ready(world.config())
    assert (Path(f"/proc/{process.pid}/cwd")).readlink() == private
    sender = process_of(world, "nfq_failover.shell.peer.heartbeat_sender")
    os.kill(sender, signal.SIGKILL)
    wait_until(lambda: process_of(world, "nfq_failover.shell.peer.heartbeat_sender") != sender)
    world.server.run("iptables", "-t", "mangle", "-F")
    wait_until(lambda: "firewall rules lost" in log.read_text())
    assert world.status()["shell"]["internal_errors"] == 0
    process.terminate()
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before


def test_the_user_can_replace_what_is_its_own_in_the_state_directory_and_nothing_of_roots(
    open_world: DaemonWorld,
) -> None:
    world = open_world
    world.ready(config(world, f'user = "{OTHER.pw_name}"'))
    state = world.state
    found = state.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, OTHER.pw_gid, 0o1770)
    script = f"""exec 2>&1
        mv {state}/rules {state}/away; rm -f {state}/lock; ln -s /etc/passwd {state}/rules
        echo x >{state}/rules/x; mv {state}/lock {state}/l; touch {state}/mine && rm {state}/mine && echo done"""
    assert as_user(OTHER, "sh", "-c", script).stdout.endswith("done\n")
    assert (state / "rules" / "default" / "state").exists()
    assert (state / "lock").stat().st_uid == 0
    assert not (state / "rules" / "x").exists()


def test_what_the_user_left_in_the_state_directory_does_not_mislead_the_next_start(world: DaemonWorld) -> None:
    process, _ = world.ready(world.config())
    process.kill()
    process.wait()
    victim = world.disk / "victim"
    victim.write_text("untouched")
    record = json.loads((world.state / "host.json").read_text())
    record["sysctls"] = {str(victim): "0"}
    (world.state / "host.json").write_text(json.dumps(record))
    (world.state / "epoch.json").unlink()
    for name in ("epoch.json", "epoch.new", "host.new"):
        (world.state / name).symlink_to(victim)
    process, log = world.start(world.config())
    process.wait(20)  # the epoch record can't be read
    assert process.returncode == 2, Path(str(log.name)).read_text()
    assert victim.read_text() == "untouched"
    assert victim.stat().st_uid == 0
    (world.state / "epoch.json").unlink()
    os.link(victim, world.state / "epoch.json")
    process, _ = world.start(world.config())
    process.wait(20)
    assert victim.stat().st_uid == 0


def test_the_record_of_what_to_put_back_names_our_settings_and_nothing_else(tmp_path: Path) -> None:
    """Also while the daemon is root: at its start, or with drop = false."""
    victim, record = tmp_path / "victim", tmp_path / "host.json"
    victim.write_text("untouched")

    def service_address() -> ServiceAddress:
        shared = os.open(tmp_path / "arp.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        return ServiceAddress(SERVICE, "lo", "clone", None, record, ArpSettings(shared, "one", "lo"))

    life = service_address()._life
    ours = "/proc/sys/net/ipv4/conf/lo/arp_ignore"
    for sysctls, kept in (
        ({str(victim): "0", ours: "0"}, {ours: "0"}),
        ({f"{ours}/../../../../../../..{victim}": "0"}, {}),
        ({ours: "0\nmore"}, {}),
    ):
        record.write_text(json.dumps({"life": life, "sysctls": sysctls, "address": False}))
        host = service_address()
        assert host.lived
        assert host._earlier == kept
        host.restore()
        assert victim.read_text() == "untouched"


@pytest.mark.parametrize(("owner", "mode"), [(NOBODY.pw_uid, 0o700), (0, 0o770), (0, 0o707)])
def test_rules_records_that_others_can_write_are_refused(world: DaemonWorld, owner: int, mode: int) -> None:
    world.state.mkdir()
    (world.state / "rules").mkdir()
    (world.state / "rules").chmod(mode)
    os.chown(world.state / "rules", owner, owner)
    assert "only root can write to" in refused(world, world.config())


# ------------------------------------------------------------------------------------------ the helper's end


def test_without_its_helper_the_daemon_ends_as_if_killed_and_the_next_one_cleans_up(world: DaemonWorld) -> None:
    before = world.snapshot()
    process, log = world.ready(world.config())
    installed = world.snapshot()["rules"]
    os.kill(process_of(world, "nfq_failover.shell.privileged.helper"), signal.SIGKILL)
    assert process.wait(15) == 70
    assert "the privileged helper has ended" in log.read_text()
    wait_until(lambda: not world.snapshot()["processes"])
    assert world.snapshot()["rules"] == installed
    assert f"{SERVICE}/32" in str(world.snapshot()["addresses"])
    assert not pings(world)
    process, log = world.ready(world.config())
    process.terminate()
    assert process.wait(15) == 0, log.read_text()
    assert world.snapshot() == before


def test_a_helper_that_dies_while_the_daemon_ends_is_an_error_and_no_hang(world: DaemonWorld) -> None:
    process, log = world.ready(world.config())
    helper = process_of(world, "nfq_failover.shell.privileged.helper")
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(helper, signal.SIGKILL)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(15) in (0, 70)  # whichever it sees first
    assert "helper" in log.read_text()
    assert not pings(world)


def test_check_config_says_who_it_will_be(world: DaemonWorld) -> None:
    words = (sys.executable, "-m", "nfq_failover", "check-config", "--config")
    said = run(*words, str(config(world, f'user = "{OTHER.pw_name}"')))
    assert f"user {OTHER.pw_name}, uid {OTHER.pw_uid}, with CAP_NET_ADMIN and CAP_NET_RAW" in said
    assert "keeps all of root's rights" in run(*words, str(config(world, "drop = false")))


def test_what_only_root_can_see_is_not_missed(world: DaemonWorld) -> None:
    """The advice on a configuration is root's: a fence command in a private place is there."""
    fence = world.disk / "fence"
    fence.write_text("#!/bin/sh\nexit 0\n")
    fence.chmod(0o700)
    _, log = world.ready(config(world, fence=[str(fence)]))
    assert "not there or not executable" not in log.read_text()


ASK = "import json, sys; from pathlib import Path; from nfq_failover.shell.control import ask; "
ASK += "print(json.dumps(ask(Path(sys.argv[1]), sys.argv[2])))"


def ask_as_other(socket: Path, command: str, groups: str) -> subprocess.CompletedProcess[str]:
    """Ask as another user; `groups`: an option of setpriv(1)."""
    who = ("--reuid", str(OTHER.pw_uid), "--regid", str(OTHER.pw_gid), groups)
    argv = ["setpriv", *who, sys.executable, "-c", ASK, str(socket), command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT)


def test_members_of_the_status_group_may_look_and_order_nothing(open_world: DaemonWorld) -> None:
    world = open_world
    process, _ = world.ready(config(world, 'status_group = "users"'))
    socket = world.disk / "run-status" / "default.sock"
    member, stranger = f"--groups={grp.getgrnam('users').gr_gid}", "--clear-groups"
    found = ask_as_other(socket, "status", member)
    assert json.loads(found.stdout)["name"] == "a", found.stderr
    for command in ("claim", "leave", "replica-is-whole"):
        done = ask_as_other(socket, command, member)
        assert done.returncode and "is for root" in done.stderr
    assert world.status()["state"] == "waiting"
    assert ask_as_other(socket, "status", stranger).returncode
    assert "belongs to root" in ask_as_other(world.state / "control.sock", "status", member).stderr
    process.terminate()
    assert process.wait(15) == 0
    assert list(socket.parent.iterdir()) == []


def test_the_rights_that_the_unit_gives_are_enough_for_every_user_and_a_status_group(open_world: DaemonWorld) -> None:
    """Also where another daemon has left its files: root without DAC_OVERRIDE and FOWNER may not touch those."""
    world = open_world
    unit = (ROOT / "vagrant" / "nfq-failover.service").read_text().splitlines()
    (granted,) = (line.partition("=")[2].split() for line in unit if line.startswith("CapabilityBoundingSet="))
    bounded = ("setpriv", "--bounding-set=-all," + ",".join(f"+{name.lower()[4:]}" for name in granted))
    users = ('user = "nobody"', 'user = "nobody"', f'user = "{OTHER.pw_name}"', "drop = false", 'user = "nobody"')
    for user in users:
        path = config(world, user, 'status_group = "users"', notify=["/bin/true", "{state}"])
        process, log = world.ready(path, before=bounded)
        socket = world.disk / "run-status" / "default.sock"
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o710  # the unit has RestrictSUIDSGID=
        found = ask_as_other(socket, "status", f"--groups={grp.getgrnam('users').gr_gid}")
        assert json.loads(found.stdout)["name"] == "a", found.stderr
        assert world.status()["state"] == "waiting"
        assert ask_as_other(socket, "status", "--clear-groups").returncode or user.endswith(f'"{OTHER.pw_name}"')
        (world.state / "epoch.json").write_text('{"epoch": 3, "role": "backup"}')
        process.terminate()
        assert process.wait(15) == 0
        errors = [line for line in log.read_text().splitlines() if "[error" in line]
        assert not [line for line in errors if "never-acts" not in line], errors


def test_a_status_group_that_is_not_there_is_one_sentence(world: DaemonWorld) -> None:
    assert "there is no group 'no-such-group'" in refused(world, config(world, 'status_group = "no-such-group"'))
