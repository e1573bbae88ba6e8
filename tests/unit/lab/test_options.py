"""The lab's options, names and state: what is accepted, what is refused, what survives the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab.nodes import scramble_plan
from nfq_failover.lab.state import Application, Cut, LabState, Options, Store
from nfq_failover.lab.topology import TWO_HOSTS, check_name
from nfq_failover.lab.wires import bits_per_second


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("200mbit", 200e6),
        ("1gbit", 1e9),
        ("1.5Mbit", 1.5e6),
        ("100000", 100_000.0),
        ("1mibit", float(1 << 20)),
        ("25mbps", 200e6),
        ("1000kbps", 8e6),
    ],
)
def test_rates_are_read_as_tc_reads_them(text: str, bits: float) -> None:
    assert bits_per_second(text) == bits


@pytest.mark.parametrize("text", ["", "fast", "-1mbit", "1 gbit", "50%", "1bit", "200gbit", "1kmbit"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        bits_per_second(text)


@pytest.mark.parametrize("name", ["nfqf", "a", "0123456789", "x-y_z"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "01234567890", "-x", "a/b", "..", "ä", "a b"])
def test_refused_names(name: str) -> None:
    with pytest.raises(CommandError):
        check_name(name)


@pytest.mark.parametrize(
    "options",
    [
        Options(tap="mirror"),
        Options(heartbeat_ms=9),
        Options(heartbeat_ms=5001),
        Options(rate="quick"),
        Options(loss=-1),
        Options(tap_loss=100.5),
        Options(loss=float("nan")),
        Options(odd_host="client"),
        Options(ports=()),
        Options(ports=("0",)),
        Options(ports=("7099-7000",)),
        Options(ports=("http",)),
        Options(ports=("1-2-3",)),
    ],
)
def test_options_that_make_no_sense(options: Options) -> None:
    with pytest.raises(CommandError):
        options.check()


def test_default_ports_are_80_and_7000_to_7099() -> None:
    options = Options()
    options.check()
    assert [port for port in range(1, 65536) if options.serves(port)] == [80, *range(7000, 7100)]


@pytest.mark.parametrize("cut", [Cut("c"), Cut("a", only="tap"), Cut("a", direction="up"), Cut("client", only="sync")])
def test_cuts_that_make_no_sense(cut: Cut) -> None:
    with pytest.raises(CommandError):
        cut.check()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("nfq_failover.lab.state.ROOT", tmp_path / "labs")
    return Store("mine")


def test_state_survives_the_disk(store: Store) -> None:
    state = LabState(
        Options(tap="multicast", loss=1.5, ports=("80", "9000-9001")),
        seed=7,
        boots={"a": 1, "b": 2},
        cuts=[Cut("a", "sync", "in"), Cut("client")],
        applications=[Application(("nginx", "-c", "x y"), "/tmp", {"LANG": "C"})],
        tap_loss_at="b",
    )
    state.note("crash", "a", monotonic_s=1.0, time_s=2.0)
    store.create(state)
    assert store.read() == state
    with store.changing() as changed:
        changed.came_up()
        changed.cuts.clear()
    assert store.read() == changed
    assert (store.directory / "lab.json").stat().st_mode & 0o777 == 0o600
    assert (store.directory / "sync.key").stat().st_mode & 0o777 == 0o600
    store.remove()
    assert not store.exists
    assert not store.directory.parent.exists()


def test_a_cut_counts_once_and_a_node_is_healed_as_a_whole() -> None:
    state = LabState(Options(), seed=7)
    for cut in (Cut("a", "sync", "in"), Cut("b"), Cut("a", "sync", "in"), Cut("a")):
        state.cut(cut)
    assert state.cuts == [Cut("a", "sync", "in"), Cut("b"), Cut("a")]
    state.heal("a")
    assert state.cuts == [Cut("b")]


def test_a_failed_change_changes_nothing(store: Store) -> None:
    store.create(LabState(Options(), seed=7))
    with pytest.raises(ZeroDivisionError), store.changing() as state:
        state.seed = 8
        _ = 1 / 0
    assert store.read().seed == 7


def test_a_lab_is_created_once_and_read_only_while_there(store: Store) -> None:
    with pytest.raises(CommandError, match="up"):
        store.read()
    store.create(LabState(Options(), seed=7))
    with pytest.raises(CommandError, match="down"):
        store.create(LabState(Options(), seed=8))
    assert store.read().seed == 7


def test_newest_event_of_a_node() -> None:
    state = LabState(Options(), seed=7)
    assert state.last_event("a", "crash", "fenced") is None
    for event, node in (("crash", "a"), ("restore", "a"), ("fenced", "a"), ("crash", "b"), ("restore", "a")):
        state.note(event, node)
    newest = state.last_event("a", "crash", "fenced")
    assert newest is not None
    assert newest["event"] == "fenced"


def test_scramble_plans_differ_by_host_and_boot_and_sometimes_wrap() -> None:
    wrapping = 0
    for seed in range(100):
        plans = {(node, boot): scramble_plan(TWO_HOSTS, seed, node, boot) for node in "ab" for boot in (1, 2)}
        assert plans == {(node, boot): scramble_plan(TWO_HOSTS, seed, node, boot) for node in "ab" for boot in (1, 2)}
        for key in ("seq-add", "ts-add"):
            values = {plan[key] for plan in plans.values()}
            assert len(values) == 4
            assert all(1 << 28 <= value < 1 << 32 for value in values)
        assert ("wrap-after-bytes" in plans["a", 1]) == ("wrap-after-bytes" in plans["b", 1])
        if "wrap-after-bytes" in plans["a", 1]:
            wrapping += 1
            for key in ("wrap-after-bytes", "wrap-after-ms"):
                assert plans["a", 1][key] != plans["b", 1][key]
    assert 30 < wrapping < 70
