"""A reload by way of the helper: what it reads, what it goes by afterwards, and what nobody can make it do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.config.differences import Differences
from nfq_failover.core.events import Profile
from nfq_failover.errors import ConfigError
from nfq_failover.shell.firewall.script import RulesError
from nfq_failover.shell.loop import Loop
from nfq_failover.shell.privileged.client import HelperClient, RemoteRules, helper_settings
from nfq_failover.shell.privileged.last_good import load_and_keep
from nfq_failover.shell.privileged.requests import REFUSED, FencePeer, InstallRules
from nfq_failover.shell.privileged.reread import content
from nfq_failover.shell.reload import Reloads
from tests.unit.config.test_faults import change, path
from tests.unit.config.test_parse import key_file

__all__ = ["key_file", "path"]  # fixtures

MORE = ((80, 80), (8081, 8081))


class World:
    """A helper with a configuration on disk, and a script that notes its arguments."""

    def __init__(self, directory: Path, file: Path) -> None:
        self.directory, self.file = directory, file
        script = directory / "script"
        script.write_text(f'printf "%s\\n" "$@" >>{directory}/arguments\n')
        change(file, "fence =", f'rules_script = "{script}"\nstate_dir = "{directory}"\nfence =')
        self.loop = Loop()
        self.copy = directory / "last-good.toml"
        self.helper = HelperClient(helper_settings(load_and_keep(file, self.copy)[0], None))
        self.loop.watch(self.helper.fileno(), self.helper.serve)
        self.applied: list[Differences] = []
        self.busy = False
        self.reloads = Reloads(self.helper, self.loop, self.applied.append, lambda: self.busy)

    def reload(self) -> dict[str, Any]:
        return self.wait(self.reloads.start())

    def wait(self, number: int) -> dict[str, Any]:
        give_up = time.monotonic() + 20
        while not (outcome := self.reloads.outcome(number))["done"]:
            assert time.monotonic() < give_up
            self.loop.serve(self.loop.wait(time.monotonic(), 0.05))
        return outcome

    def install(self, ports: Any) -> int:
        pending = self.helper.ask(InstallRules(Profile.BACKUP, ports=ports))
        return pending.wait(10).status

    def ports(self) -> list[str]:
        words = (self.directory / "arguments").read_text().splitlines()
        return [words[at + 1] for at, word in enumerate(words) if word == "--ports"]

    def fenced(self) -> str:
        assert self.helper.ask(FencePeer("b", 5000)).wait(10).status == 0
        return (self.directory / "fenced").read_text()


@pytest.fixture
def world(tmp_path: Path, path: Path) -> Iterator[World]:
    made = World(tmp_path, path)
    yield made
    made.reloads.close()
    made.helper.close()
    made.loop.close()


def test_ports_count_once_the_helper_has_read_them_itself(world: World) -> None:
    assert world.install(MORE) == REFUSED
    change(world.file, "[80]", "[80, 8081]")
    assert world.install(MORE) == REFUSED
    outcome = world.reload()
    assert outcome["ok"] and outcome["applied"] == [{"name": "ports", "before": "80", "after": "80, 8081"}]
    assert world.applied[0].config.settings.ports == MORE
    assert world.install(MORE) == 0 and world.install(((80, 80),)) == 0
    assert world.install(None) == 0  # asked for before: the ports of the start
    assert world.ports() == ["80,8081", "80", "80"]
    assert world.install(((80, 80), (9000, 9000))) == REFUSED


def test_another_fence_is_the_one_in_the_file(world: World) -> None:
    change(world.file, '["/bin/true"]', f'["/bin/sh", "-c", "echo one >>{world.directory}/fenced"]')
    assert [each["name"] for each in world.reload()["applied"]] == ["fence"]
    assert world.fenced() == "one\n"
    assert world.reload() == {"done": True, "ok": True, "applied": [], "restart": []}


def test_a_wrong_file_changes_nothing(world: World) -> None:
    change(world.file, "[80]", "[80, 8081, 99999]")
    change(world.file, '["/bin/true"]', f'["/bin/sh", "-c", "echo one >>{world.directory}/fenced"]')
    outcome = world.reload()
    (error,) = outcome["errors"]
    assert not outcome["ok"] and error["line"] == 3 and "'99999' is not a port" in error["what"]
    assert not world.applied and world.install(MORE) == REFUSED
    assert world.helper.ask(FencePeer("b", 5000)).wait(10).status == 0
    assert not (world.directory / "fenced").exists()


def test_the_copy_for_a_restart_follows_what_is_right(world: World) -> None:
    first = world.file.read_text()
    change(world.file, "[80]", "[80, 99999]")
    assert not world.reload()["ok"] and world.copy.read_text() == first
    for ports in ("[80, 8081]", "[80, 8081, 8082]"):  # it does so after a reload, too
        world.file.write_text(first.replace("[80]", ports))
        assert world.reload()["ok"] and world.copy.read_text() == world.file.read_text() != first


def test_a_reload_during_another_reads_the_file_once_more(world: World) -> None:
    """It may have been read before the last change."""
    first = world.reloads.start()
    give_up = time.monotonic() + 20
    while (pending := world.reloads._pending) is not None and pending.reply is None:
        assert time.monotonic() < give_up
        world.helper.serve(0.05)  # the answer is there, and not taken
    change(world.file, "[80]", "[80, 8081]")
    assert world.reloads.start() == world.reloads.start() == first + 1
    assert world.reloads.outcome(first) == world.reloads.outcome(first + 1) == {"done": False}
    assert [each["name"] for each in world.wait(first + 1)["applied"]] == ["ports"]
    assert world.wait(first)["applied"] == []
    assert "error" in world.reloads.outcome(first + 2)
    assert world.reloads.start() == first + 2


def test_it_is_not_over_before_the_rules_are_there(world: World) -> None:
    assert world.reload()["ok"]
    number = world.reloads.start()
    world.busy = True
    for _ in range(20):
        world.loop.serve(world.loop.wait(time.monotonic(), 0.02))
    assert world.reloads.outcome(number) == {"done": False}
    world.busy = False
    assert world.reload()["ok"]


def test_a_helper_that_is_gone_is_said(world: World) -> None:
    world.helper.process.kill()
    world.helper.process.wait()
    outcome = world.reload()
    assert not outcome["ok"] and "helper" in outcome["errors"][0]["what"]


# ------------------------------------------------------------------------------------ whose file it is


@pytest.mark.parametrize("mode", [0o622, 0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    content(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        content(path)


def test_a_place_where_others_could_put_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "etc"
    place.mkdir()
    moved = place / "config.toml"
    path.rename(moved)
    place.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        content(moved)
    link = tmp_path / "link.toml"  # where it leads to is what counts
    link.symlink_to(moved)
    with pytest.raises(ConfigError, match="chmod go-w"):
        content(link)
    place.chmod(0o1777)
    content(link)


def test_a_file_of_somebody_else_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = path.stat()
    other = os.stat_result((*found[:4], 12345, *found[5:]))
    monkeypatch.setattr(os, "fstat", lambda fd: other)
    with pytest.raises(ConfigError, match="chown root"):
        content(path)


def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        content(pipe)
    with pytest.raises(ConfigError, match="No such file"):
        content(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a file"):
        content(tmp_path)


def test_the_rules_client_passes_ports_on(world: World) -> None:
    RemoteRules(world.helper).apply(Profile.BACKUP, (), ((80, 80),))
    assert world.ports() == ["80"]
    with pytest.raises(RulesError, match="another service"):
        RemoteRules(world.helper).apply(Profile.BACKUP, (), MORE)
