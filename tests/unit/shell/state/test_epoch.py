"""The epoch record: durable, in order, and never taken for something that it is not."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.core.events import EpochStored
from nfq_failover.errors import ConfigError
from nfq_failover.shell.state.epoch import SLOT_BYTES, SLOTS, EpochStore


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
    again = EpochStore(tmp_path / "epoch.json")
    assert again.load() == (9, True)
    again.close()


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


def test_the_record_has_its_size_from_the_start_and_is_written_over_in_place(store: EpochStore) -> None:
    assert store.load() == (0, False)
    was = store.path.stat()
    assert was.st_size == SLOTS * SLOT_BYTES and was.st_blocks * 512 >= was.st_size, "a hole would need room later"
    for epoch in (1, 2, 3):
        store.store(epoch, "primary")
    answers(store, 3)
    now = store.path.stat()
    assert (now.st_ino, now.st_size) == (was.st_ino, was.st_size)


@pytest.mark.parametrize("spoilt", [b"", b"\0", b'{"epoch": 9, "ro', b'{"epoch": 6, "role": "primary", "serial": 9'])
def test_a_write_that_was_cut_short_spoils_nothing(store: EpochStore, spoilt: bytes) -> None:
    for epoch in (3, 4, 5):
        store.store(epoch, "primary" if epoch == 4 else "backup")
    answers(store, 3)
    data = bytearray(store.path.read_bytes())
    at = data.index(b'"epoch": 5') // SLOT_BYTES * SLOT_BYTES
    data[at : at + SLOT_BYTES] = spoilt + data[at + len(spoilt) : at + SLOT_BYTES] if spoilt else bytes(SLOT_BYTES)
    store.path.write_bytes(data)
    again = EpochStore(store.path)
    try:
        assert again.load() == (4, True)
        again.store(6, "backup")
        answers(again, 1)
        assert again.load() == (6, False)
    finally:
        again.close()


def test_the_very_first_write_may_be_cut_short_too(store: EpochStore) -> None:
    store.load()
    data = store.path.read_bytes()
    store.path.write_bytes(b'{"epoch": 1' + data[11:])
    assert store.load() == (0, False)


def test_two_damaged_slots_are_no_first_start(store: EpochStore) -> None:
    store.path.write_bytes(b"\0" * SLOTS * SLOT_BYTES)
    with pytest.raises(ConfigError, match="remove this one"):
        store.load()


def test_a_record_of_earlier_versions_is_read_and_given_its_room(store: EpochStore) -> None:
    store.path.write_text('{"epoch": 7, "role": "primary"}')
    assert store.load() == (7, True)
    assert store.path.stat().st_size == SLOTS * SLOT_BYTES
    assert store.load() == (7, True)
    store.store(8, "backup")
    answers(store, 1)
    assert store.load() == (8, False)


def test_a_record_that_was_removed_or_cut_while_the_daemon_runs_is_made_anew(store: EpochStore) -> None:
    store.load()
    store.store(4, "primary")
    answers(store, 1)
    store.path.unlink()
    store.store(5, "primary")
    assert answers(store, 1) == [EpochStored(5, True)] and store.load() == (5, True)
    store.path.write_text('{"epoch": 9, "role": "backup"}')
    store.store(10, "primary")
    assert answers(store, 1) == [EpochStored(10, True)] and store.load() == (10, True)


def test_a_probe_writes_what_is_there_and_tells_what_hinders_it(store: EpochStore) -> None:
    store.load()
    store.store(4, "primary")
    answers(store, 1)
    was = store.path.read_bytes()
    store.probe()
    store.store(4, "primary")
    answers(store, 1)
    assert not store.failure and store.load() == (4, True)
    assert was[:SLOT_BYTES] in store.path.read_bytes()
    store.path.unlink()
    store.path.mkdir()
    store.probe()
    give_up = time.monotonic() + 10
    while not store.failure:
        assert time.monotonic() < give_up
    assert "directory" in store.failure
    assert store.busy_s(time.monotonic()) == 0.0


def test_a_link_is_not_followed(store: EpochStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for target in (victim, tmp_path / "nowhere"):
        store.path.symlink_to(target)
        with pytest.raises(ConfigError, match="can't be read"):
            store.load()
        store.path.unlink()
    assert victim.read_text() == "untouched"


def test_no_room_at_the_start_is_one_sentence_and_leaves_nothing(
    store: EpochStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigError, match="there is no room for the epoch record"):
        store.load()
    assert list(store.path.parent.iterdir()) == []


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
