"""The helper process itself, with a script in the place of the rules: what it runs, and how it and its daemon end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfq_failover.config.fence import FencePlan
from nfq_failover.core.events import Event, Fence, FenceFinished, Profile
from nfq_failover.shell.firewall.script import PeerHost, RulesError, RulesOptions, RulesRunner
from nfq_failover.shell.privileged import descriptors
from nfq_failover.shell.privileged.client import HelperClient, RemoteFences, RemoteRules
from nfq_failover.shell.privileged.requests import (
    REFUSED,
    CheckFence,
    CheckRules,
    FencePeer,
    HelperSettings,
    InstallRules,
    Ping,
    RemoveRules,
    Reply,
    StartSender,
    decode_reply,
    encode_request,
)
from tests.support import configured
from tests.support.turns import Turns

SERVICE = b"\x0a\x4d\x00\x64"
PEER = configured.peer()
FLOW = (b"\x0a\x4d\x00\x01", 40000, SERVICE, 80)


class HelperWorld:
    """A helper on a directory, with a script that notes its arguments and does what `then` says."""

    def __init__(self, directory: Path, then: str = "", fence: tuple[str, ...] | FencePlan = ("true",)) -> None:
        self.directory = directory
        script = directory / "script"
        script.write_text(f'printf "%s\\n" "$@" >>{directory}/arguments\ncat >>{directory}/input\n{then}\n')
        self.options = RulesOptions(
            "10.77.0.100",
            ((80, 80),),
            "eth0",
            peers=(PeerHost(PEER.address, "02:00:00:00:00:03"),),
            state_dir=directory,
            script=script,
        )
        plan = fence if isinstance(fence, FencePlan) else FencePlan(fence, attempts=1)
        settings = HelperSettings(SERVICE, self.options, False, plan, (PEER,), 10, 100, None, None, False)
        self.helper = HelperClient(settings)
        self.rules = RemoteRules(self.helper)

    def arguments(self) -> list[str]:
        path = self.directory / "arguments"
        return path.read_text().splitlines() if path.exists() else []

    def raw(self, data: bytes, fds: tuple[int, ...] = ()) -> Reply:
        """What a daemon that is not ours any more might send, and what it gets."""
        socket.send_fds(self.helper._socket, [data], list(fds))
        assert select.select([self.helper], [], [], 10)[0]
        return decode_reply(self.helper._socket.recv(65536))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[HelperWorld]:
    made = HelperWorld(tmp_path)
    yield made
    made.helper.close()


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------ what is run


def test_the_script_gets_the_arguments_of_the_helpers_own_configuration(world: HelperWorld) -> None:
    runner = RulesRunner(world.options)
    assert world.rules.apply(Profile.PRIMARY) == ""
    assert world.arguments() == runner.arguments(Profile.PRIMARY)[2:]
    assert world.rules.start_check().finish_check() is None
    assert world.rules.remove() == ""
    assert world.arguments()[-7:] == [
        *("remove", "--instance", "default", "--state-dir", str(world.directory), "--service", "10.77.0.100")
    ]


def test_inherited_connections_come_through(world: HelperWorld) -> None:
    world.rules.apply(Profile.ALONE, (FLOW,))
    assert "--inherited" in world.arguments()
    assert (world.directory / "input").read_text() == "10.77.0.1 40000 80\n"


def test_what_the_script_says_and_its_exit_code_come_back(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, 'case $1 in check) echo lost >&2; exit 3;; remove) echo "no way" >&2; exit 2;; esac')
    with contextlib.closing(world.helper):
        assert world.rules.start_check().finish_check() == "lost"
        with pytest.raises(RulesError, match="no way") as caught:
            world.rules.remove()
        assert caught.value.status == 2


NASTY = "b; touch EVIL", "$(touch EVIL)", "../../b", "b\nfence", "{peer}", "", "c", "-x"


def test_nothing_that_is_sent_becomes_a_command_or_a_part_of_one(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, fence=("sh", "-c", f'echo "$0" >>{tmp_path}/fenced', "{peer}"))
    with contextlib.closing(world.helper):
        for name in NASTY:
            assert world.raw(encode_request(1, FencePeer(name, 1000))).status == REFUSED
            told = {"number": 2, "do": "install-rules", "profile": name, "flows": False}
            assert world.raw(json.dumps(told).encode()).status == REFUSED
            extra = {"number": 3, "do": "remove-rules", "force": False, name: name}
            assert world.raw(json.dumps(extra).encode()).status == REFUSED
        assert world.arguments() == []
        assert not (tmp_path / "fenced").exists()
        assert world.raw(encode_request(4, FencePeer("b", 5000))) == Reply(4, 0)
        assert (tmp_path / "fenced").read_text() == "b\n"
    assert not list(tmp_path.glob("**/EVIL"))


def test_requests_that_make_no_sense_are_refused_and_the_helper_goes_on(world: HelperWorld) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    refused = [
        world.raw(b"{"),
        world.raw(b"x" * 20_000),  # longer than a message can be
        world.raw(encode_request(1, CheckRules()), (null,)),
        world.raw(encode_request(1, InstallRules(Profile.ALONE, True))),
        world.raw(encode_request(1, InstallRules(Profile.ALONE, True)), (null,)),
        world.raw(encode_request(1, InstallRules(Profile.ALONE, True)), (null,) * 9),
        world.raw(encode_request(1, StartSender()), (null,)),
        world.raw(b'{"number": 1, "do": "address", "add": true}'),  # the operator's, says the configuration
    ]
    assert {answer.status for answer in refused} == {REFUSED}
    assert world.arguments() == []

    def open_files() -> int:
        return len(list(Path(f"/proc/{world.helper.process.pid}/fd").iterdir()))

    before = open_files()
    for _ in range(100):
        world.raw(encode_request(1, CheckRules()), (null,))
    os.close(null)
    wait_until(lambda: open_files() <= before)  # it closes them after its answer
    assert world.rules.start_check().finish_check() is None


def test_one_script_at_a_time(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.02; done")
    with contextlib.closing(world.helper):
        first = world.rules.start_check()
        with pytest.raises(RulesError, match="runs already"):
            world.rules.remove()
        (tmp_path / "go").touch()
        assert first.finish_check() is None
        assert world.arguments()[0] == "check"
        assert "remove" not in world.arguments()


# ------------------------------------------------------------------------------------------ fence


class Fencing(Turns):
    """Fences by way of the helper."""

    def __init__(self, world: HelperWorld) -> None:
        super().__init__()
        self.loop.watch(world.helper.fileno(), world.helper.serve)
        self.fences = RemoteFences(world.helper, (PEER,), self.loop, self)

    def run(self) -> Event:
        self.until_answered(self.fences.tick)
        (answer,) = self.answers
        assert len(self.watched) == 1
        return answer


def test_a_fence_by_way_of_the_helper(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, fence=("echo", "outlet of {peer}"))
    with contextlib.closing(world.helper):
        fencing = Fencing(world)
        fencing.fences.start(Fence("b", 5000))
        assert fencing.run() == FenceFinished("b", True, "outlet of b")


def test_a_fence_that_misses_its_deadline_has_failed(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, fence=("sleep", "60"))
    with contextlib.closing(world.helper):
        fencing = Fencing(world)
        fencing.fences.start(Fence("b", 100))
        assert fencing.run() == FenceFinished("b", False, "the fence deadline has passed")


def test_a_helper_that_hangs_is_a_fence_that_failed(world: HelperWorld) -> None:
    os.kill(world.helper.process.pid, signal.SIGSTOP)
    fencing = Fencing(world)
    fencing.fences.start(Fence("b", 10))
    assert fencing.run() == FenceFinished("b", False, "the privileged helper does not answer")
    os.kill(world.helper.process.pid, signal.SIGCONT)


def test_the_success_of_an_older_fence_does_not_count(tmp_path: Path) -> None:
    once = f"if mkdir {tmp_path}/once 2>/dev/null; then sleep 0.2; exit 0; else sleep 0.5; exit 7; fi"
    world = HelperWorld(tmp_path, fence=("sh", "-c", once))
    with contextlib.closing(world.helper):
        fencing = Fencing(world)
        fencing.fences.start(Fence("b", 5000))
        wait_until((tmp_path / "once").exists)
        fencing.fences.start(Fence("b", 5000))
        assert fencing.run() == FenceFinished("b", False, "exit code 7")


def agent(directory: Path, script: str) -> FencePlan:
    path = directory / "agent"
    path.write_text(f"#!/bin/sh\nread action\n{script}\n")
    path.chmod(0o755)
    return FencePlan((str(path),), agent=True, attempts=1)


def test_a_fence_is_checked_by_the_helper_and_turns_nothing_off(tmp_path: Path) -> None:
    note = f'echo "$action" >>{tmp_path}/actions; '
    plan = agent(tmp_path, f'{note} [ "$action" = action=status ] && exit 0; exit 1')
    world = HelperWorld(tmp_path, fence=plan)
    with contextlib.closing(world.helper):
        assert world.raw(encode_request(1, CheckFence("b", 5000))) == Reply(1, 0, "on")
        assert world.raw(encode_request(2, CheckFence("c", 5000))).status == REFUSED
        (tmp_path / "agent").unlink()
        gone = world.raw(encode_request(3, CheckFence("b", 5000)))
        assert gone.status == 1 and "No such file" in gone.said
        assert int(world.raw(encode_request(4, Ping())).said) > 10
    assert (tmp_path / "actions").read_text() == "action=status\n"


def test_a_fence_does_not_wait_for_a_check_that_hangs(tmp_path: Path) -> None:
    hangs = f'[ "$action" = action=status ] && {{ mkdir {tmp_path}/once 2>/dev/null && sleep 60; exit 2; }}; exit 0'
    world = HelperWorld(tmp_path, fence=agent(tmp_path, hangs))
    with contextlib.closing(world.helper):
        check = world.helper.ask(CheckFence("b", 60_000))
        wait_until((tmp_path / "once").exists)
        fencing = Fencing(world)
        fencing.fences.start(Fence("b", 5000))
        assert fencing.run() == FenceFinished("b", True, "its status is off")
        assert check.reply is not None and check.reply.status == 1
        check.close()


def test_requests_under_way_need_no_new_descriptor(world: HelperWorld) -> None:
    open_now = descriptors.left()
    several = [world.helper.ask(Ping()) for _ in range(4)]
    assert descriptors.left() == open_now
    for each in several:
        assert each.wait(10).status == 0
    again = world.helper.ask(Ping())
    assert not select.select([again], [], [], 0)[0], "nothing is left of the one that had it before"
    assert again.wait(10).status == 0 and descriptors.left() == open_now


# ------------------------------------------------------------------------------------------ ends


def test_when_the_helper_dies_all_that_waits_has_failed(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, "sleep 1", fence=("sleep", "60"))
    fencing = Fencing(world)
    fencing.fences.start(Fence("b", 60_000))
    script = world.rules.start_check()
    os.kill(world.helper.process.pid, signal.SIGKILL)
    answer = fencing.run()
    assert isinstance(answer, FenceFinished)
    assert not answer.ok
    assert world.helper.gone
    with pytest.raises(RulesError):
        script.finish_check()
    with pytest.raises(RulesError):
        world.rules.remove()
    world.helper.close()


def test_when_the_daemon_dies_the_script_finishes_and_the_fence_does_not(tmp_path: Path) -> None:
    then = f"touch {tmp_path}/began; sleep 0.5; touch {tmp_path}/finished"
    world = HelperWorld(tmp_path, then, fence=("sh", "-c", f"echo $$ >{tmp_path}/fence; sleep 60"))
    world.helper.ask(FencePeer("b", 60_000))
    world.helper.ask(RemoveRules())
    wait_until(lambda: (tmp_path / "began").exists() and (tmp_path / "fence").exists())
    fence = int((tmp_path / "fence").read_text())
    world.helper._socket.close()
    assert world.helper.process.wait(20) == 0
    assert (tmp_path / "finished").exists()
    assert not alive(fence)


def test_a_signal_to_the_group_does_not_end_it_and_its_commands_do_not_inherit_that(tmp_path: Path) -> None:
    world = HelperWorld(tmp_path, fence=("sh", "-c", "grep SigIgn /proc/self/status"))
    with contextlib.closing(world.helper):
        assert world.rules.start_check().finish_check() is None  # it is up
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(world.helper.process.pid, number)
        ignored = int(world.raw(encode_request(1, FencePeer("b", 5000))).said.split()[1], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            assert not ignored & 1 << (number - 1)


def test_a_look_at_the_host_runs_beside_the_other_script_and_there_is_one(tmp_path: Path) -> None:
    made = HelperWorld(tmp_path, f"case $1 in check) while [ ! -e {tmp_path}/go ]; do sleep 0.02; done ;; esac; exit 0")
    try:
        checking = made.rules.start_check()
        look = made.rules.start_look()
        assert look.finish_check() is None
        assert not checking.done
        (tmp_path / "go").touch()
        assert checking.finish_check() is None
        assert made.arguments().count("host") == 1
    finally:
        made.helper.close()
