"""The epoch record: durable, in order, and never taken for something that it is not."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.core.events import EpochStored
from nfq_failover.errors import ConfigError
from nfq_failover.shell.state.epoch import EpochStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpochStore]:
    s = EpochStore(tmp_path / "epoch.json")
    yield s
    s.close()


def answers(store: EpochStore, count: int) -> list[EpochStored]:
    got: list[EpochStored] = []
    while len(got) < count:
        assert select.select([store], [], [], 10)[0], "no answer"
        got += store.finished()
    return got


def test_no_record_is_the_first_start(store: EpochStore) -> None:
    assert store.load() == (0, False)


@pytest.mark.parametrize(("role", "served"), [("primary", True), ("backup", False)])
def test_what_was_stored_is_read_again(store: EpochStore, role: str, served: bool) -> None:
    store.store(41, role)
    assert answers(store, 1) == [EpochStored(41, True)]
    again = EpochStore(store.path)
    try:
        assert again.load() == (41, served)
    finally:
        again.close()


def test_records_reach_the_disk_in_the_order_given(store: EpochStore) -> None:
    for epoch in range(1, 51):
        store.store(epoch, "primary" if epoch % 2 else "backup")
    assert [answer.epoch for answer in answers(store, 50)] == list(range(1, 51))
    assert store.load() == (50, False)
    assert [path.name for path in store.path.parent.iterdir()] == ["epoch.json"]


def test_close_waits_for_what_was_ordered(tmp_path: Path) -> None:
    store = EpochStore(tmp_path / "epoch.json")
    store.store(9, "primary")
    store.close()
    store.close()
    assert json.loads((tmp_path / "epoch.json").read_text()) == {"epoch": 9, "role": "primary"}


def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    store = EpochStore(directory / "epoch.json")
    try:
        store.store(3, "primary")
        (answer,) = answers(store, 1)
        assert (answer.epoch, answer.ok) == (3, False)
        assert "No such file" in answer.detail
        directory.mkdir()  # and the next one works
        store.store(4, "primary")
        assert answers(store, 1) == [EpochStored(4, True)]
    finally:
        store.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"epoch": 7}',
        '{"role": "primary"}',
        '{"epoch": -1, "role": "primary"}',
        '{"epoch": true, "role": "primary"}',
        '{"epoch": "7", "role": "primary"}',
        '{"epoch": 7.0, "role": "primary"}',
        '{"epoch": 7, "role": "king"}',
        "\x00" * 40,
    ],
)
def test_a_damaged_record_is_refused_with_advice(store: EpochStore, text: str) -> None:
    store.path.write_text(text)
    with pytest.raises(ConfigError, match="remove this one") as caught:
        store.load()
    assert str(store.path) in str(caught.value)


def test_a_record_that_is_no_text_is_refused(store: EpochStore) -> None:
    store.path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        store.load()
