"""The lab with the real daemons: up, crash, restore, cuts, status."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab import netns, nodes
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.nodes import scramble_plan
from nfq_failover.lab.state import ROOT, Cut, LabState, Options, Store
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from tests.support.lab_world import SERVER, command, connect, eventually, fresh_name, lab, workload

pytestmark = pytest.mark.netns

# A slower heartbeat than the default: these tests are about the lab, and must hold on a busy machine.
CALM = 200


@pytest.fixture
def pair() -> Iterator[Lab]:
    with lab(Options(rate="200mbit", heartbeat_ms=CALM)) as made:
        yield made


def roles(made: Lab) -> dict[str, tuple[str | None, str]]:
    return {node: (row["role"], row["state"]) for node, row in made.status()["nodes"].items()}


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    report: dict[str, Any] = json.loads(out)
    assert report["ok"], report
    assert report["wrong_bytes"] == 0
    return report


def test_up_returns_when_the_pair_is_protected(pair: Lab) -> None:
    assert roles(pair) == {"a": ("primary", "protected"), "b": ("backup", "shadowing")}
    assert pair.resolve("primary") == "a"
    assert pair.resolve("backup") == "b"
    done = command(pair.name, "exec", "backup", "--", "cat", "/proc/sys/net/ipv4/tcp_rmem")
    assert done.stdout.split()[2] == "16777216"


def test_status_is_what_the_contract_says(pair: Lab) -> None:
    pair.serve(SERVER)
    with connect(pair) as connection:
        assert eventually(lambda: bool(pair.status()["connections"]))
        status = json.loads(command(pair.name, "status", "--json").stdout)
        client = "{}:{}".format(*connection.getsockname())
    assert set(status) == {"epoch", "nodes", "connections"}
    assert status["epoch"] == 1
    assert sorted(status["nodes"]) == ["a", "b"]
    assert all(set(row) == {"alive", "role", "state", "reason"} for row in status["nodes"].values())
    (row,) = status["connections"]
    assert set(row) == {
        *("client", "server", "protected", "reason", "logged_bytes", "confirmed_bytes", "lag_bytes", "differences"),
    }
    assert (row["client"], row["server"], row["protected"]) == (client, f"{TWO_HOSTS.service}:7000", True)
    assert "protected" in command(pair.name, "status").stdout


@pytest.mark.parametrize("tap", ["clone", "multicast"])
def test_crash_and_restore_by_role_under_a_download(tap: str) -> None:
    with lab(Options(tap=tap, rate="100mbit", heartbeat_ms=CALM)) as made:
        made.serve(SERVER)
        for crashed, survivor in (("a", "b"), ("b", "a")):
            download = workload(made, "bulk", "--size", "20M")
            time.sleep(0.6)
            assert command(made.name, "crash", "primary").returncode == 0
            report = finish(download)
            assert report["longest_silence_ms"] >= 3 * CALM * 0.5
            assert roles(made) == {crashed: (None, "off"), survivor: ("primary", "unprotected")}
            done = command(made.name, "restore", crashed)
            assert done.returncode == 0
            assert "protected" in done.stdout
            assert roles(made) == {crashed: ("backup", "shadowing"), survivor: ("primary", "protected")}
            # The applications run on the restored server, too, so new connections are protected.
            listening = netns.listeners(namespace(made.name, crashed), lambda port: True)
            assert list(listening.values()) == [7000]
        finish(workload(made, "echo", "--count", "50"))


def test_crash_of_the_backup(pair: Lab) -> None:
    pair.serve(SERVER)
    upload = workload(pair, "upload", "--size", "20M")
    time.sleep(0.4)
    pair.crash("backup")
    finish(upload)
    assert roles(pair)["a"] == ("primary", "unprotected")
    done = command(pair.name, "exec", "backup", "--", "true")
    assert done.returncode == 2
    assert "No server is backup now" in done.stderr
    assert "protected" in pair.restore("b")


def test_a_cut_primary_is_turned_off_by_its_backup(pair: Lab) -> None:
    pair.serve(SERVER)
    pair.cut(Cut("a"))
    assert eventually(lambda: roles(pair) == {"a": (None, "off"), "b": ("primary", "unprotected")})
    assert eventually(lambda: "turned off by b" in pair.status()["nodes"]["a"]["reason"])
    # The cable is still cut, so the restored host can't join: restore says so, and does not wait for ever.
    assert "heal a" in pair.restore("a")
    assert roles(pair)["a"][1] == "waiting"
    pair.heal("a")
    assert eventually(lambda: roles(pair) == {"a": ("backup", "shadowing"), "b": ("primary", "protected")})


def test_a_cut_backup_can_not_fence_and_refuses(pair: Lab) -> None:
    pair.cut(Cut("b"))
    assert eventually(lambda: roles(pair)["b"] == ("backup", "refused"))
    assert eventually(lambda: roles(pair)["a"] == ("primary", "unprotected"))
    assert all(row["alive"] for row in pair.status()["nodes"].values())
    pair.heal("b")
    assert eventually(lambda: roles(pair) == {"a": ("primary", "protected"), "b": ("backup", "shadowing")})


def test_a_cut_sync_channel_leaves_the_fence_working(pair: Lab) -> None:
    pair.cut(Cut("a", "sync"))
    assert eventually(lambda: roles(pair) == {"a": (None, "off"), "b": ("primary", "unprotected")})


def test_restore_of_a_lone_server_says_what_it_waits_for(pair: Lab) -> None:
    pair.crash("a")
    pair.crash("b")
    said = pair.restore("b")
    assert "a is off (restore a)" in said
    assert "waiting" in said
    assert "protected" in pair.restore("a")


def test_multicast_tap_loss_follows_the_backup() -> None:
    with lab(Options(tap="multicast", tap_loss=10, rate="100mbit", heartbeat_ms=CALM)) as made:
        made.serve(SERVER)
        assert made.store.read().tap_loss_at == "b"
        finish(workload(made, "upload", "--size", "3M"))
        before = made.losses()
        assert 0 < before["tap_lost"] < before["tap"]
        made.crash("a")
        assert made.store.read().tap_loss_at is None
        assert eventually(lambda: roles(made)["b"][0] == "primary")
        finish(workload(made, "upload", "--size", "1M"))
        assert made.losses() == before
        made.restore("a")
        assert made.store.read().tap_loss_at == "a"
        finish(workload(made, "upload", "--size", "3M"))
        assert made.losses()["tap_lost"] > before["tap_lost"]


def test_a_dead_daemon_is_told_and_can_be_started_again(pair: Lab) -> None:
    os.kill(pair.daemon_pid("b"), signal.SIGKILL)
    assert eventually(lambda: roles(pair)["b"] == (None, "no-daemon"))
    assert eventually(lambda: roles(pair)["a"] == ("primary", "unprotected"))
    pair.start_daemon("b")
    assert eventually(lambda: roles(pair) == {"a": ("primary", "protected"), "b": ("backup", "shadowing")})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(number: signal.Signals) -> None:
    name = fresh_name()
    argv = [sys.executable, "-m", "nfq_failover", "lab", "--name", name, "up", "--heartbeat-ms", "5000"]
    # A shell that started these tests in the background has told them to ignore SIGINT, and they would pass that on.
    obey = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, preexec_fn=obey)
    try:
        assert eventually(lambda: (ROOT / name / "daemon-a.log").exists())
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "interrupted" in said
        assert netns.present(TWO_HOSTS.namespaces(name)) == []
        assert not (ROOT / name).exists()
    finally:
        process.kill()
        command(name, "down")


def test_a_daemon_that_does_not_start_fails_up_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_wrong_config(store: Store, state: LabState, node: str) -> None:
        (store.directory / node / "config.toml").write_text("colour = 'green'\n")

    monkeypatch.setattr(nodes, "write_config", write_wrong_config)
    made = Lab(fresh_name())
    with pytest.raises(LabError, match=r"daemon on [ab] has ended with exit code 2:\s+nfq-failover: .*config"):
        made.up()
    assert netns.present(TWO_HOSTS.namespaces(made.name)) == []
    assert not made.store.directory.exists()


def test_the_seed_repeats_a_scrambling() -> None:
    name = fresh_name()
    try:
        done = command(name, "up", env={**os.environ, "NFQF_LAB_SEED": "5"})
        assert done.returncode == 0, done.stderr
        assert "seed 5" in done.stdout
        plan = scramble_plan(TWO_HOSTS, 5, "a", 1)
        running = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in netns.pids(namespace(name, "a"))]
        assert any(str(plan["seq-add"]) in words and str(plan["ts-add"]) in words for words in running)
    finally:
        command(name, "down")
