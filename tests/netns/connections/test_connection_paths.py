"""Connections on odd paths and hosts: numbers that wrap, segments out of order and twice, other kernel settings."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from nfq_failover.lab.nodes import scramble_plan
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS
from tests.support.client_capture import Stream
from tests.support.connection_world import CALM, Case, SharedLab, Steps, Talk
from tests.support.disorder import disorder
from tests.support.lab_world import PORT, eventually
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

MB = 1_000_000
DOWN_AND_UP: Steps = [["send", 5 * MB, 1], ["take", 2 * MB], ["digest"]]


def down_and_up(case: Case, talk: Talk, crash_after: float) -> str:
    """5 MB down, then 2 MB up, with a crash of the primary after so many seconds; returns the survivor."""
    survivor: list[str] = []

    def crash() -> None:
        time.sleep(crash_after)
        survivor.append(case.crash(wait=False))

    crasher = threading.Thread(target=crash)
    crasher.start()
    try:
        assert talk.receive(5 * MB) == content(1, 5 * MB)
        body = content(2, 2 * MB)
        talk.socket.sendall(body)
        assert talk.receive(64) == sha256(body).hexdigest().encode()
        talk.expect_end()
    finally:
        crasher.join()
    case.assert_ends(talk, "done", survivor[0])
    return survivor[0]


# --------------------------------------------------------------------------------------------------------- wrap


def wrapping_seed() -> int:
    """A seed with which the numbers of both hosts wrap a good deal into each connection of their first boot."""

    def good(seed: int) -> bool:
        plans = [scramble_plan(TWO_HOSTS, seed, node, 1) for node in TWO_HOSTS.hosts]
        return all(
            MB < plan.get("wrap-after-bytes", 0) < 3 * MB and 500 < plan.get("wrap-after-ms", 0) < 1500
            for plan in plans
        )

    return next(seed for seed in itertools.count() if good(seed))


@pytest.fixture(scope="module")
def wrapping() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="20mbit", heartbeat_ms=CALM), wrapping_seed())
    yield made
    made.down()


def wraps(stream: Stream, of: str) -> list[float]:
    """When the service's raw SEQ or TSval passes 2^32, as Unix times."""
    sent = [(one.time, getattr(one.raw, of)) for one in stream.sent(True)]
    return [when for (_, before), (when, after) in itertools.pairwise(sent) if before - after > 1 << 31]


@pytest.mark.parametrize("crash_after", [0.3, 1.7], ids=["after-the-crash", "before-the-crash"])
def test_numbers_that_wrap_in_mid_transfer(wrapping: SharedLab, tmp_path: Path, crash_after: float) -> None:
    with wrapping.case(tmp_path) as case:
        talk = case.open(DOWN_AND_UP)
        case.assert_protected(talk)
        begun = time.time()
        down_and_up(case, talk, crash_after)
        (stream,) = case.finish()
    for of in ("seq", "tsval"):
        (when,) = wraps(stream, of)
        assert (when < begun + crash_after) is (crash_after > 1), (of, when - begun)


# ----------------------------------------------------------------------------------------------------- disorder


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM, odd_host="a"), seed=3)
    yield made
    made.down()


def test_segments_out_of_order_and_twice(world: SharedLab, tmp_path: Path) -> None:
    """On the path, both ways, and on the tap, before and after the crash."""
    with world.case(tmp_path, in_order=False) as case, disorder(case.lab.name) as odd:
        talk, echo = case.open(DOWN_AND_UP), case.open([["echo_all"]])
        upload = case.open([["take", 3 * MB], ["digest"]])
        case.assert_protected(talk, echo, upload)
        body = content(3, 3 * MB)
        thread = threading.Thread(target=upload.socket.sendall, args=(body,))
        thread.start()
        for number in range(20):
            echo.echo(number, 2000)
        backup = case.lab.resolve("backup")
        down_and_up(case, talk, crash_after=0.2)
        thread.join()
        assert upload.receive(64) == sha256(body).hexdigest().encode()
        for number in range(20):
            echo.echo(100 + number, 2000)
        echo.socket.shutdown(socket.SHUT_WR)
        echo.expect_end()
        case.finish()
    for node in (TWO_HOSTS.client, backup):
        assert odd.late[node] > 50
        assert odd.twice[node] > 20


# ----------------------------------------------------------------------------------------------------- odd host


@pytest.mark.parametrize("turn", [1, 2])
def test_a_host_with_cookies_and_bare_timestamps(world: SharedLab, tmp_path: Path, turn: int) -> None:
    """`a` answers every SYN by a cookie, and its timestamps have no offset of their own: as either role, in turn."""
    with world.case(tmp_path) as case:
        primary = case.lab.resolve("primary")
        settings = ["net.ipv4.tcp_syncookies", "net.ipv4.tcp_timestamps"]
        values = {node: case.lab.run(node, ["sysctl", "-n", *settings]).stdout.split() for node in TWO_HOSTS.hosts}
        assert values == {"a": ["2", "2"], "b": ["1", "1"]}
        talks = [case.open(DOWN_AND_UP), case.open([["echo_all"]])]
        case.assert_protected(*talks)
        talks[1].echo(turn, 5000)
        assert down_and_up(case, talks[0], crash_after=0.2) != primary
        talks[1].echo(turn + 10, 50_000)
        talks[1].socket.shutdown(socket.SHUT_WR)
        talks[1].expect_end()


# ------------------------------------------------------------------------------------------------- a lost last word


def test_last_acknowledgement_of_an_idle_client_that_the_tap_has_lost(world: SharedLab, tmp_path: Path) -> None:
    """The client has no reason to repeat it; the replica would repeat its data until its kernel gives up."""
    with world.case(tmp_path) as case:
        backup = case.lab.resolve("backup")
        talk = case.open([["echo_all"]])
        case.assert_protected(talk)
        talk.echo(1)

        def unacknowledged() -> int:
            row = case.lab.run(backup, ["ss", "-Htn", f"sport = :{PORT} and dport = :{talk.port}"]).stdout.split()
            return int(row[2])

        client = TWO_HOSTS.address(TWO_HOSTS.client)
        pure = f"-p tcp -s {client} --tcp-flags ALL ACK -m length --length 0:80".split()
        rule = ["PREROUTING", *pure, "-j", "DROP"]
        assert case.lab.run(backup, ["iptables", "-t", "raw", "-I", *rule]).returncode == 0
        talk.echo(2)
        time.sleep(0.3)  # a delayed ACK has gone by now
        assert unacknowledged() == 100
        assert case.lab.run(backup, ["iptables", "-t", "raw", "-D", *rule]).returncode == 0
        assert eventually(lambda: unacknowledged() == 0)
        case.crash()
        talk.echo(3)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()
        case.finish()
