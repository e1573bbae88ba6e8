"""Could this host act now? Each check with fakes of what it looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from nfq_failover.core.concerns import Concern, Part, Weight
from nfq_failover.shell.packets.nfqueue import PacketQueue
from nfq_failover.shell.privileged import descriptors
from nfq_failover.shell.privileged.client import HelperClient
from nfq_failover.shell.privileged.requests import CheckFence, Ping, Reply, Request
from nfq_failover.shell.selfcheck.clock import ClockRate
from nfq_failover.shell.selfcheck.disk import StateDisk, room_bytes
from nfq_failover.shell.selfcheck.fence import AGAIN_S, FenceReady
from nfq_failover.shell.selfcheck.helper import Descriptors, HelperAlive
from nfq_failover.shell.selfcheck.parts import HeartbeatsGo, QueuesOurs


def codes(found: list[Concern] | None) -> list[str] | None:
    return None if found is None else [each.code for each in found]


# ---------------------------------------------------------------------------------------- the helper


class Asked:
    """A request that waits for `reply`."""

    def __init__(self, request: Request) -> None:
        self.request, self.closed = request, False
        self.reply: Reply | None = None

    def close(self) -> None:
        self.closed = True


class FakeHelper:
    """Keeps what it is asked."""

    class process:
        pid = 4711

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def ask(self, request: Request) -> Asked:
        self.asked.append(Asked(request))
        return self.asked[-1]

    def answer(self, status: int, said: str) -> None:
        self.asked[-1].reply = Reply(1, status, said)


@pytest.fixture
def helper() -> FakeHelper:
    return FakeHelper()


def test_a_helper_that_does_not_answer_hangs_until_it_does(helper: FakeHelper) -> None:
    check = HelperAlive(cast(HelperClient, helper))
    assert check.run(0.0) is None and isinstance(helper.asked[0].request, Ping)
    assert check.run(2.9) is None
    found = check.run(3.1)
    assert codes(found) == ["helper-hangs"] and found and found[0].weight is Weight.UNPROTECTED
    assert check.run(9.0) == found, "the same words, so that it is said once"
    assert len(helper.asked) == 1, "one question at a time"
    helper.answer(0, "900")
    assert check.run(10.0) == [] and helper.asked[0].closed
    assert check.run(11.0) is None and len(helper.asked) == 2


def test_a_helper_that_can_open_nothing_more_could_not_fence(helper: FakeHelper) -> None:
    check = HelperAlive(cast(HelperClient, helper))
    check.run(0.0)
    helper.answer(0, "3")
    assert codes(check.run(0.1)) == ["few-descriptors-helper"]
    check.run(1.0)
    helper.answer(-1, "can't be asked")
    assert codes(check.run(1.1)) == ["helper-hangs"]


def test_own_descriptors() -> None:
    assert Descriptors(lambda: 200).run(0.0) == []
    assert codes(Descriptors(lambda: 5).run(0.0)) == ["few-descriptors"]
    before = descriptors.left()
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    try:
        assert descriptors.left() == before - 10 > 0
    finally:
        for fd in held:
            os.close(fd)


# ---------------------------------------------------------------------------------------- the fence


def test_a_fence_that_would_fail_is_looked_at_again_soon(helper: FakeHelper) -> None:
    check = FenceReady(cast(HelperClient, helper), "b", 1000, lambda: True)
    assert check.run(0.0) is None and helper.asked[0].request == CheckFence("b", 1000)
    helper.answer(1, "/sbin/fence: No such file or directory")
    (found,) = check.run(0.5) or []
    assert (found.code, found.weight, found.bears) == ("fence-fails", Weight.UNPROTECTED, Part.BACKUP)
    assert "No such file" in found.what and check.every_s == AGAIN_S
    assert check.run(11.0) is None
    helper.answer(0, "on")
    assert check.run(11.1) == [] and check.every_s > AGAIN_S
    check.run(80.0)
    assert codes(check.run(81.9)) is None
    assert codes(check.run(82.1)) == ["fence-fails"], "the helper says nothing"
    assert helper.asked[-1].closed


@pytest.mark.parametrize(("heard", "expected"), [(True, ["fence-fails"]), (False, [])])
def test_a_peer_that_is_heard_is_not_off(helper: FakeHelper, heard: bool, expected: list[str]) -> None:
    check = FenceReady(cast(HelperClient, helper), "b", 1000, lambda: heard)
    check.run(0.0)
    helper.answer(0, "off")
    assert codes(check.run(0.1)) == expected


# ---------------------------------------------------------------------------------------- the disk


class FakeStore:
    """An epoch store whose disk can be anything."""

    def __init__(self) -> None:
        self.failure, self.took_s, self.busy, self.probes = "", 0.001, 0.0, 0

    def probe(self) -> None:
        self.probes += 1

    def busy_s(self, now: float) -> float:
        del now
        return self.busy


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_disk_that_fails_hangs_or_is_slow(directory: int) -> None:
    store = FakeStore()
    check = StateDisk(store, directory, "/state", lambda: 0)
    assert check.run(0.0) == [] and store.probes == 1
    assert check.run(59.0) == [] and store.probes == 1
    store.failure = "Read-only file system"
    assert codes(check.run(61.0)) == ["state-disk-fails"] and store.probes == 2
    check.run(72.0)
    assert store.probes == 3, "sooner, since it has failed"
    store.failure, store.busy = "", 1.2
    assert codes(check.run(73.0)) == ["state-disk-hangs"]
    assert store.probes == 3, "no second one behind one that hangs"
    store.busy, store.took_s = 0.0, 1.3
    (slow,) = check.run(74.0)
    assert (slow.code, slow.weight) == ("state-disk-slow", Weight.DEGRADED)


def test_a_disk_that_is_full_or_read_only(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check = StateDisk(FakeStore(), directory, "/state", lambda: 0)
    real = os.fstatvfs(directory)

    def disk(**changes: int) -> Callable[[int], object]:
        names = ("f_bavail", "f_frsize", "f_files", "f_favail", "f_flag")
        values = {name: changes.get(name, getattr(real, name)) for name in names}
        return lambda fd: type("Disk", (), values)

    monkeypatch.setattr(os, "fstatvfs", disk(f_bavail=3))
    (full,) = check.run(0.0)
    assert (full.code, full.weight) == ("state-disk-full", Weight.DEGRADED)
    monkeypatch.setattr(os, "fstatvfs", disk(f_files=100, f_favail=0))
    assert codes(check.run(1.0)) == ["state-disk-full"]
    monkeypatch.setattr(os, "fstatvfs", disk(f_flag=1))
    assert codes(check.run(2.0)) == ["state-disk-read-only"]


def test_a_directory_that_was_taken_away(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `chown`: root, who runs the test, may write anywhere."""
    store = FakeStore()
    check = StateDisk(store, directory, "/state", lambda: 0)
    asked = []

    def access(path: str, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", access)
    (taken,) = check.run(0.0)
    assert (taken.code, taken.weight) == ("state-disk-fails", Weight.UNPROTECTED) and "restart" in taken.cure
    assert asked == [(f"/proc/self/fd/{directory}", os.W_OK | os.X_OK)]
    store.failure = "Permission denied"
    assert check.run(1.0) == [taken]


def test_room_is_left_for_the_rules_of_each_connection(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    connections, left = 0, room_bytes(100)
    monkeypatch.setattr(
        os, "fstatvfs", lambda fd: type("Disk", (), {"f_bavail": left, "f_frsize": 1, "f_files": 0, "f_flag": 0})
    )
    check = StateDisk(FakeStore(), directory, "/state", lambda: connections)
    assert check.run(0.0) == []
    connections = 100
    assert check.run(1.0) == []
    connections = 101
    assert codes(check.run(2.0)) == ["state-disk-full"]


# ---------------------------------------------------------------------------------------- parts, clock


class FakeQueue:
    def __init__(self, stolen: str) -> None:
        self._stolen = stolen

    def stolen(self) -> str:
        return self._stolen


def test_queues_that_are_another_s() -> None:
    fine, lost = FakeQueue(""), FakeQueue("netfilter queue 7761 is another's")
    assert QueuesOurs([cast(PacketQueue, fine)]).run(0.0) == []
    (found,) = QueuesOurs([cast(PacketQueue, fine), cast(PacketQueue, lost)]).run(0.0)
    assert found.code == "queue-lost" and "7761" in found.what


def test_heartbeats_that_stand_still() -> None:
    assert HeartbeatsGo(lambda: 0.9, 50).run(0.0) == []
    assert codes(HeartbeatsGo(lambda: 1.1, 50).run(0.0)) == ["heartbeats-stopped"]
    assert HeartbeatsGo(lambda: 2.0, 500).run(0.0) == []


def test_a_clock_that_is_steered_too_hard() -> None:
    times = iter([(0.0, 0.0), (10.01, 10.0), (20.05, 20.0), (30.25, 30.0), (30.3, 30.1)])
    check = ClockRate(0.014, lambda: next(times))
    assert check.run(10.0) == []
    assert [each.weight for each in check.run(20.0)] == [Weight.WARNING]
    assert [each.weight for each in check.run(30.0)] == [Weight.DEGRADED]
    assert check.run(30.1) == [], "too short to tell"
