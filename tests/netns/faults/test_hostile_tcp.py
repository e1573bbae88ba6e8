"""Attacks on TCP while the pair is protected: what a plain kernel shrugs off must not cost the protection; what could
make two hosts read different bytes must cost it, loudly."""

from __future__ import annotations

import functools
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.constants import ACK, PSH, RST, SYN, URG
from nfq_failover.core.tcp.claims import TWO_VERSIONS, URGENT
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.wire.build import build_segment
from tests.support.attacker import THERE, Attacker, attacker
from tests.support.connection_world import CALM, Case, SharedLab, Talk
from tests.support.lab_world import PORT, eventually
from tests.support.raw_client import RawClient, raw_client
from tests.support.scripted_server import content

pytestmark = pytest.mark.netns

PLAN = json.dumps({"id": "raw", "steps": [["echo_all"]]}).encode() + b"\n"
MSS = bytes((2, 4)) + (1460).to_bytes(2, "big")
LIE = b"\xee" * 64


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM), seed=11)
    yield made
    made.down()


def counters(case: Case, node: str) -> dict[str, int]:
    return dict((nodes.ask_daemon(case.lab.store, node) or {}).get("counters", {}))


def row_of(case: Case, port: int) -> dict[str, Any]:
    rows = [row for row in case.lab.status()["connections"] if row["client"].endswith(f":{port}")]
    assert len(rows) == 1
    return dict(rows[0])


def unprotected_for(case: Case, port: int, reason: str) -> None:
    """Soon listed as unprotected for this reason, and said so aloud by the primary."""
    assert eventually(lambda: not row_of(case, port)["protected"]), row_of(case, port)
    assert row_of(case, port)["reason"] == reason
    log = case.lab.store.log(f"daemon-{case.lab.resolve('primary')}").read_text(errors="replace")
    assert reason in log


def goes_on(case: Case, *talks: Talk) -> None:
    """Protected, and after the crash of the primary as before."""
    for talk in talks:
        talk.echo(1, 20_000)
    case.assert_protected(*talks)
    case.crash()
    for talk in talks:
        talk.echo(2, 100_000)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()


# ------------------------------------------------------------------------------------ blind attacks


def test_blind_segments_cost_neither_the_connection_nor_its_protection(world: SharedLab, tmp_path: Path) -> None:
    """RFC 5961: resets and SYNs in the window, data whose ACK number can't be right; and what is plainly broken."""
    with world.case(tmp_path) as case:
        primary = case.lab.resolve("primary")
        backup = TWO_HOSTS.other(primary)
        talk = case.open([["echo_all"]])
        talk.echo(0, 5_000)
        case.assert_protected(talk)
        before = counters(case, backup)
        with attacker(case.lab.name, primary) as enemy:
            talk.echo(3, 100)
            enemy.learn(talk.port)
            say = functools.partial(enemy.say, service_port=PORT)
            for ahead in (1, 100, 5_000, 30_000):
                say(ahead, flags=RST)
                say(ahead, flags=RST | ACK)
            say(5, flags=SYN)
            say(0, LIE, ack=1 << 30)
            say(0, b"", ACK, ack=-(1 << 30))
            say(0, LIE, ack=1 << 29)
            say(1 << 28, LIE, ACK | URG)
            say(0, LIE, flags=PSH)
            say(0, LIE, corrupt=True)
            say(100_000_000, LIE)
            for ahead in (0, 200_000_000):  # an option longer than the header, and one shorter than itself
                say(ahead, LIE, ack=1 << 30, options=bytes((8, 40)) + bytes(10))
                say(ahead, LIE, ack=1 << 30, options=bytes((1, 1, 5, 1)))

            def seen() -> set[str]:
                after = counters(case, backup)
                return {name for name, count in after.items() if count > before.get(name, 0)}

            wanted = {"rst-elsewhere", "syn-of-shadow", "ack-of-unsent", "ack-too-old", "no-ack-flag", "bad-checksum"}
            wanted |= {"implausible"}
            assert eventually(lambda: wanted <= seen()), wanted - seen()
        goes_on(case, talk)


def test_blind_data_with_an_old_ack_ends_the_protection_and_nothing_else(world: SharedLab, tmp_path: Path) -> None:
    """Linux's slow path refuses it, its fast path does not look at the ACK: nobody can tell which bytes were taken."""
    with world.case(tmp_path) as case:
        talk = case.open([["echo_all"]])
        talk.echo(0, 5_000)
        case.assert_protected(talk)
        with attacker(case.lab.name, case.lab.resolve("primary")) as enemy:
            talk.echo(3, 100)
            enemy.learn(talk.port)
            enemy.say(0, LIE, ack=-(1 << 30), service_port=PORT)
        talk.echo(4, 5_000)
        unprotected_for(case, talk.port, TWO_VERSIONS)


def test_spoofed_addresses_of_the_hosts_themselves_start_no_storm(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        primary = case.lab.resolve("primary")
        talk = case.open([["echo_all"]])
        talk.echo(0, 1_000)
        case.assert_protected(talk)
        sources = [
            *(TWO_HOSTS.address(node) for node in TWO_HOSTS.hosts),
            TWO_HOSTS.service,
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
        ]
        sources += ["224.0.0.1", "10.77.0.255"]
        backup = TWO_HOSTS.other(primary)
        with attacker(case.lab.name, primary) as one, attacker(case.lab.name, backup) as two:
            heard = {node: received(case, node) for node in TWO_HOSTS.hosts}
            for number, address in enumerate(sources * 4):
                source = (socket.inet_aton(address), PORT if address == TWO_HOSTS.service else 30_000 + number)
                for enemy in (one, two):
                    enemy.say(0, b"", SYN, service_port=PORT, source=source, options=MSS)
                    enemy.say(1, LIE, service_port=PORT, source=source, options=b"")
                    enemy.say(1, b"", RST, service_port=PORT, source=source, options=b"")
            time.sleep(1.0)
            sent = 2 * 3 * 4 * len(sources)
            for node in TWO_HOSTS.hosts:
                assert received(case, node) - heard[node] < 10 * sent, "a storm"
        goes_on(case, talk)
        assert not [row for row in case.lab.status()["connections"] if row["client"].startswith(TWO_HOSTS.service)]


def received(case: Case, node: str) -> int:
    """Packets that the node's interface has received."""
    with netns.entered(namespace(case.lab.name, node)):
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == "eth0":
                return int(rest.split()[1])
    raise AssertionError("no eth0")


# ------------------------------------------------------------------------------------ odd clients


def opened(case: Case, client: RawClient) -> None:
    """A protected connection that echoes."""
    client.open(MSS)
    client.send(PLAN)
    client.send(content(1, 300))
    assert client.receive(300) == content(1, 300)


def test_options_that_lie_about_their_length_are_ignored_as_by_a_plain_kernel(world: SharedLab, tmp_path: Path) -> None:
    """Linux looks at what comes before, so a SYN with them is answered, and data with them is taken."""
    with world.case(tmp_path) as case, raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_504, PORT) as client:
        client.open(MSS + bytes((3, 40, 7, 1)))
        client.options = bytes((5, 1, 8, 40))
        client.send(PLAN)
        client.send(content(14, 600))
        assert client.receive(600) == content(14, 600)
        assert eventually(lambda: bool(row_of(case, 23_504)["protected"])), row_of(case, 23_504)
        case.crash()
        client.send(content(15, 600))
        assert client.receive(600) == content(15, 600)


def test_overlapping_segments_with_equal_bytes_are_protected(world: SharedLab, tmp_path: Path) -> None:
    data = content(5, 400)
    with world.case(tmp_path) as case, raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_501, PORT) as client:
        opened(case, client)
        assert eventually(lambda: bool(row_of(case, 23_501)["protected"]))
        client.blurt(100, data[100:300])
        client.blurt(250, data[250:400])
        client.blurt(50, data[50:200])
        client.send(data[:100])
        client.skip(300)
        assert client.receive(400) == data
        assert row_of(case, 23_501)["protected"]
        case.crash()
        client.send(content(6, 1500))
        assert client.receive(1500) == content(6, 1500)


def test_overlapping_segments_with_different_bytes_end_the_protection(world: SharedLab, tmp_path: Path) -> None:
    """Whatever the primary's TCP has taken is what the client gets back; nobody promises it for the other host."""
    one, two, head = content(7, 200), content(8, 200), content(9, 100)
    with world.case(tmp_path) as case, raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_502, PORT) as client:
        opened(case, client)
        assert eventually(lambda: bool(row_of(case, 23_502)["protected"]))
        client.blurt(100, one)
        client.blurt(100, two)
        client.send(head)
        client.skip(200)
        assert client.receive(300) in (head + one, head + two)
        unprotected_for(case, 23_502, TWO_VERSIONS)
        client.send(content(10, 600))  # it is served as before
        assert client.receive(600) == content(10, 600)


def test_urgent_data_ends_the_protection_and_nothing_else(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path, resets=True) as case:
        talk, neighbour = case.open([["echo_all"]]), case.open([["echo_all"]])
        for number, each in enumerate((talk, neighbour)):
            each.echo(number, 1_000)
        case.assert_protected(talk, neighbour)
        talk.socket.send(b"!", socket.MSG_OOB)  # not in the stream: the server has not asked for it
        talk.echo(2, 1_000)
        unprotected_for(case, talk.port, URGENT)
        talk.reset()
        case.assert_protected(neighbour)


def test_segments_in_fragments_end_the_protection_and_nothing_else(world: SharedLab, tmp_path: Path) -> None:
    """The clone tap has rules on ports, which only a first fragment has; without connection tracking nobody puts them
    together before. So the backup lacks the bytes, and the primary's copies don't have them either."""
    with (
        world.case(tmp_path, judged=False) as case,
        raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_503, PORT) as client,
    ):
        opened(case, client)
        assert eventually(lambda: bool(row_of(case, 23_503)["protected"]))
        for seed in (11, 12):
            client.send_in_fragments(content(seed, 700))
            assert client.receive(700) == content(seed, 700)
        unprotected_for(case, 23_503, "bytes that the backup misses were not retained")
        client.send(content(13, 700))
        assert client.receive(700) == content(13, 700)


# ------------------------------------------------------------------------------------ SYN floods


class Flood:
    """SYNs from addresses that do not answer."""

    def __init__(self, enemy: Attacker, seed: int) -> None:
        self._enemy = enemy
        self._draw = random.Random(seed)

    def send(self, count: int) -> None:
        for _ in range(count):
            draw = self._draw
            source = (bytes((10, 77, 0, draw.randrange(20, 250))), draw.randrange(1024, 65536))
            seq, wnd = draw.randrange(1 << 32), 64_000
            self._enemy.frame(build_segment(source, (THERE, PORT), seq, 0, SYN, wnd, MSS))


@pytest.mark.parametrize("cookies", [{"a": "2", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1", "b": "2"}], ids=str)
def test_syn_cookies_and_a_flood(world: SharedLab, tmp_path: Path, cookies: dict[str, str]) -> None:
    """Half-open connections fill nothing beyond its bound, and who connects meanwhile is protected."""
    with world.case(tmp_path) as case:
        for node, value in cookies.items():
            netns.write_sysctls(namespace(case.lab.name, node), {"net.ipv4.tcp_syncookies": value})
        primary = case.lab.resolve("primary")
        old = case.open([["echo_all"]])
        old.echo(1, 1_000)
        with attacker(case.lab.name, primary) as enemy:
            flood = Flood(enemy, 1)
            for number in range(10):
                flood.send(60)
                old.echo(number, 500)
            new = case.open([["echo_all"]])
            new.echo(2, 1_000)
            flood.send(100)
            new.echo(3, 1_000)
        for node in TWO_HOSTS.hosts:
            rows = (nodes.ask_daemon(case.lab.store, node) or {})["bounds"]
            assert all(row["now"] <= row["limit"] for row in rows.values()), rows
        goes_on(case, old, new)
