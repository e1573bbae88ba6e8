"""Hosts whose kernels are set up differently: connections go on after a crash, both ways, or it is said why not."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.constants import OPT_MSS
from nfq_failover.lab import netns, nodes
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.wire.tcp_options import SynOptions, each_option
from tests.support.connection_world import CALM, Case, SharedLab
from tests.support.lab_world import eventually

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM), seed=7)
    yield made
    made.down()


def backup_of(case: Case) -> str:
    return TWO_HOSTS.other(case.lab.resolve("primary"))


@contextlib.contextmanager
def mtu(case: Case, node: str, size: int) -> Iterator[None]:
    """Another MTU of a host. The client's frames go one by one: a veth would let a super-segment of any size pass."""
    client = TWO_HOSTS.client
    case.lab.run(client, ["ip", "link", "set", "eth0", "gso_max_segs", "1"])
    case.lab.run(node, ["ip", "link", "set", "eth0", "mtu", str(size)])
    try:
        yield
    finally:
        case.lab.run(node, ["ip", "link", "set", "eth0", "mtu", "1500"])
        case.lab.run(client, ["ip", "link", "set", "eth0", "gso_max_segs", "65535"])


@contextlib.contextmanager
def kernel(case: Case, node: str, **sysctls: str) -> Iterator[None]:
    """Other settings of a host's TCP."""
    inside = namespace(case.lab.name, node)
    with netns.entered(inside):
        before = {f"net.ipv4.{name}": Path(f"/proc/sys/net/ipv4/{name}").read_text() for name in sysctls}
    netns.write_sysctls(inside, {f"net.ipv4.{name}": value for name, value in sysctls.items()})
    try:
        yield
    finally:
        netns.write_sysctls(inside, before)


def concerns(case: Case) -> set[str]:
    """What the primary says that differs."""
    status = nodes.ask_daemon(case.lab.store, case.lab.resolve("primary")) or {}
    return {each["code"] for each in status.get("concerns", ())}


def both_ways_through_a_crash(case: Case) -> None:
    talk = case.open([["echo_all"]])
    talk.echo(1, 30_000)
    case.assert_protected(talk)
    case.crash()
    talk.echo(2, 400_000)
    talk.socket.shutdown(socket.SHUT_WR)
    talk.expect_end()


def test_a_backup_with_a_smaller_mtu_takes_what_the_client_sends(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case, mtu(case, backup_of(case), 1400):
        assert eventually(lambda: "differs-mtu" in concerns(case))
        both_ways_through_a_crash(case)
        (stream,) = case.finish()
    assert SynOptions.parse(stream.syn_acks()[0].options()).mss == 1360


def test_connections_are_not_granted_what_the_backups_tcp_lacks(world: SharedLab, tmp_path: Path) -> None:
    lacks = {"tcp_timestamps": "0", "tcp_sack": "0", "tcp_window_scaling": "0", "tcp_ecn": "0"}
    with world.case(tmp_path) as case, kernel(case, backup_of(case), **lacks):
        case.set_client(tcp_ecn="1")
        wanted = {"differs-timestamps", "differs-sack", "differs-window-scaling"}
        assert eventually(lambda: wanted <= concerns(case))
        talk = case.open([["echo_all"]])
        talk.echo(1, 30_000)
        # The state is `degraded` for the windows; the connection is protected.
        assert eventually(lambda: bool(case.row(talk).get("protected"))), case.lab.status()
        case.crash()
        talk.echo(2, 400_000)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()
        (stream,) = case.finish()
    assert {kind for kind, _, _ in each_option(stream.syn_acks()[0].options())} == {OPT_MSS}


def test_a_connection_that_began_before_is_unprotected_with_both_values(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        talk = case.open([["echo_all"]])
        talk.echo(1, 30_000)
        case.assert_protected(talk)
        with mtu(case, backup_of(case), 1400):
            why = "its client was told an MSS of 1460, and the backup's interface takes 1360"
            assert eventually(lambda: str(case.row(talk).get("reason")).startswith(why)), case.row(talk)
            talk.echo(2, 30_000)
