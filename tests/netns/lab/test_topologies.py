"""Other topologies than the lab's own, built and taken down as namespaces, without daemons."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.lab import netns
from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import ROOT, Cut, Options
from nfq_failover.lab.topology import Topology, namespace
from tests.support.lab_world import PORT, SERVER, command, connect, fresh_name, lab, passes, udp_socket
from tests.support.topologies import ROUTED, THREE_HOSTS

pytestmark = pytest.mark.netns


@contextlib.contextmanager
def plain(topology: Topology) -> Iterator[Lab]:
    """A plain lab of this topology, of which nothing is left when it is down."""
    with lab(Options(plain=True), topology=topology) as made:
        yield made
        inside = [pid for target in topology.namespaces(made.name) for pid in netns.pids(target)]
        done = command(made.name, "down")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    netns.reap()  # what this process has started
    assert not list(Path("/run/netns").glob(f"{made.name}-*"))
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]
    assert not (ROOT / made.name).exists()


def listening(made: Lab) -> dict[str, list[int]]:
    """The ports on which each host's applications listen."""
    return {
        host: sorted(netns.listeners(namespace(made.name, host), lambda port: True).values())
        for host in made.topology.hosts
    }


def test_three_hosts_serve_crash_and_come_back() -> None:
    with plain(THREE_HOSTS) as made:
        names = THREE_HOSTS.names
        assert all(passes(made, one, other) for one in names for other in names if one != other)
        assert made.serve(SERVER) == ["a", "b", "c"]
        assert listening(made) == {host: [PORT] for host in "abc"}
        connect(made).close()
        made.crash("c")
        assert [row["alive"] for row in made.status()["nodes"].values()] == [True, True, False]
        assert namespace(made.name, "c") not in netns.present(THREE_HOSTS.namespaces(made.name))
        done = command(made.name, "restore", "c")  # another process knows the topology, too
        assert (done.returncode, done.stdout) == (0, "c is on.\n")
        assert listening(made)["c"] == [PORT]
        assert passes(made, "client", "c")


def test_a_router_is_all_that_joins_the_client_to_the_hosts() -> None:
    with plain(ROUTED) as made:
        made.serve(SERVER)
        connect(made).close()
        made.cut(Cut("router"))
        with pytest.raises(OSError, match=r"timed out|No route"):
            connect(made, timeout_s=0.5)
        assert passes(made, "a", "c")
        made.heal("router")
        connect(made).close()
        made.cut(Cut("a", "client"))
        assert not passes(made, "client", "a")
        assert passes(made, "client", "c")
        assert passes(made, "a", "c")
        with pytest.raises(CommandError, match="no node 'router' for this"):
            made.crash("router")


def test_a_tunnel_carries_what_is_sent_into_it_also_after_a_crash() -> None:
    with plain(ROUTED) as made:
        for _ in range(2):
            with udp_socket(made, "client", "10.79.0.1", 9999) as one, udp_socket(made, "b", "10.79.0.2", 9999) as two:
                two.settimeout(5)
                one.sendto(b"through", ("10.79.0.2", 9999))
                assert two.recvfrom(100) == (b"through", ("10.79.0.1", 9999))
            links = json.loads(netns.tool(["ip", "-j", "-d", "link"], None, namespace(made.name, "b")))
            assert [link["linkinfo"]["info_kind"] for link in links if link["ifname"] == "tunnel"] == ["vxlan"]
            made.crash("b")
            made.restore("b")


def test_the_daemon_has_one_peer_so_three_hosts_are_refused_with_daemons() -> None:
    made = Lab(fresh_name(), THREE_HOSTS)
    with pytest.raises(CommandError, match="two hosts"):
        made.up(Options())
    assert not list(Path("/run/netns").glob(f"{made.name}-*"))
    assert not (ROOT / made.name).exists()
