"""Is it we who are cut off? Targets that answer, that don't, and that refuse, in a pair of namespaces."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from nfq_failover.core.events import LinkChecked
from nfq_failover.shell.host.link import LinkChecker
from tests.support.namespaces import CLIENT, Namespace, pair

pytestmark = pytest.mark.netns

SERVER = "10.77.0.2"


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Namespace, Namespace]]:
    with pair(server_address=SERVER) as (client, server):
        stop = time.monotonic() + 10
        while " UP " not in server.run("ip", "-br", "link", "show", "dev", "eth0"):
            assert time.monotonic() < stop, "no carrier"
            time.sleep(0.01)
        yield client, server


def check(
    server: Namespace, *targets: tuple[str, int], deadline_ms: int = 3000, interface: str = "eth0"
) -> LinkChecked:
    """One check, to its end."""
    with server.entered():
        checker = LinkChecker(interface, SERVER, targets, deadline_ms)
        answer = checker.start()
        give_up = time.monotonic() + 15
        while answer is None:
            assert time.monotonic() < give_up
            time.sleep(0.01)
            answer = checker.tick(time.monotonic())
        assert checker.tick(time.monotonic()) is None
        checker.close()
    return answer


def test_an_echo(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], (CLIENT, 0)) == LinkChecked(True, f"{CLIENT} answers")


def test_one_of_several_is_enough(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], ("10.77.0.77", 0), (CLIENT, 0)).ok


def test_nobody_answers(world: tuple[Namespace, Namespace]) -> None:
    began = time.monotonic()
    answer = check(world[1], ("10.77.0.77", 0), ("10.77.0.78", 80), deadline_ms=400)
    assert answer == LinkChecked(False, "10.77.0.77, 10.77.0.78:80: no answer")
    assert time.monotonic() - began >= 0.39


def test_no_route_to_any(world: tuple[Namespace, Namespace]) -> None:
    assert not check(world[1], ("198.51.100.1", 80), ("198.51.100.1", 0), deadline_ms=300).ok


def test_a_connection_accepted_or_refused_proves_the_way(world: tuple[Namespace, Namespace]) -> None:
    client, server = world
    assert check(server, (CLIENT, 9)) == LinkChecked(True, f"{CLIENT}:9 answers"), "refused, by that machine"
    with client.entered():
        listener = socket.create_server((CLIENT, 7009))
    with listener:
        assert check(server, (CLIENT, 7009)).ok


def test_a_link_that_is_down_is_not_asked_further(world: tuple[Namespace, Namespace]) -> None:
    assert check(world[1], (CLIENT, 0), interface="eth9") == LinkChecked(False, "eth9: No such device")


def test_a_new_check_replaces_the_old_one(world: tuple[Namespace, Namespace]) -> None:
    answers: list[LinkChecked] = []
    with world[1].entered():
        checker = LinkChecker("eth0", SERVER, (("10.77.0.77", 0),), 200)
        assert checker.start() is None
        assert checker.start() is None
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            if (answer := checker.tick(time.monotonic())) is not None:
                answers.append(answer)
            time.sleep(0.02)
    assert len(answers) == 1
