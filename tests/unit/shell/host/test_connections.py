"""Which connections the kernel has: real sockets on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nfq_failover.errors import CommandError
from nfq_failover.shell.host import connections as flows
from nfq_failover.shell.host.connections import FlowList, FlowQueries, Peered, look_up, peered
from nfq_failover.wire.segment import FlowKey

LOOPBACK = bytes([127, 0, 0, 1])
Pair = tuple[socket.socket, socket.socket, FlowKey]


class Service:
    """A listener and connections to it."""

    def __init__(self, stack: ExitStack, family: socket.AddressFamily) -> None:
        self.stack = stack
        self.listener = stack.enter_context(socket.socket(family))
        if family is socket.AF_INET6:
            self.listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.listener.bind(("" if family is socket.AF_INET6 else "127.0.0.1", 0))
        self.listener.listen(300)
        self.port: int = self.listener.getsockname()[1]

    def connect(self) -> Pair:
        client = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
        server = self.stack.enter_context(self.listener.accept()[0])
        return client, server, self.flow(client.getsockname()[1])

    def flow(self, client_port: int) -> FlowKey:
        return LOOPBACK, client_port, LOOPBACK, self.port


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["listens on IPv4", "listens on ::"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with ExitStack() as stack:
        yield Service(stack, request.param)


def reset(end: socket.socket) -> None:
    """Close with RST: nothing is left, no TIME_WAIT."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end.close()


def gone_of(flows: list[FlowKey]) -> list[FlowKey]:
    return look_up(flows)[0]


def test_open_connections_are_there(service: Service) -> None:
    opened = [service.connect()[2] for _ in range(150)]
    assert gone_of(opened) == []


def test_those_that_were_reset_are_gone_and_the_others_are_not(service: Service) -> None:
    pairs = [service.connect() for _ in range(150)]
    for client, server, _ in pairs[::3]:
        reset(server)
        client.close()
    assert gone_of([flow for _, _, flow in pairs]) == [flow for _, _, flow in pairs[::3]]


def test_a_listener_is_no_connection(service: Service) -> None:
    assert gone_of([service.flow(1)]) == [service.flow(1)]


def test_half_closed_and_time_wait_count_as_there(service: Service) -> None:
    client, server, flow = service.connect()
    server.shutdown(socket.SHUT_WR)
    assert look_up([flow]) == ([], [])  # FIN_WAIT
    client.close()
    server.close()
    assert look_up([flow]) == ([], [flow])  # TIME_WAIT, on the server's side since it closed first


def test_a_connection_waiting_to_be_accepted_is_there(service: Service) -> None:
    client = service.stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
    assert gone_of([service.flow(client.getsockname()[1])]) == []


def test_nothing_asked_nothing_answered() -> None:
    assert gone_of([]) == []
    assert FlowQueries("lo").step() == ([], [])


def test_many_are_answered_a_few_at_a_time_each_once(service: Service) -> None:
    alive = [service.connect()[2] for _ in range(10)]
    dead = [service.flow(port) for port in range(1, 500)]
    queries = FlowQueries("lo")
    queries.ask(dead[:250] + alive)
    first, _ = queries.step()
    assert 0 < len(first) <= 64
    queries.ask(dead)  # asked again, also those that still wait
    answers = list(first)
    for _ in range(20):
        answers += queries.step()[0]
    assert sorted(answers) == sorted(first + dead)
    assert queries.step() == ([], [])


def test_a_kernel_that_cannot_be_asked_is_a_refusal_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    FlowQueries("lo").check()
    monkeypatch.setattr(flows, "_NETLINK_SOCK_DIAG", 31)  # a netlink family that no kernel has
    with pytest.raises(CommandError, match="tcp_diag"):
        FlowQueries("lo").check()


def test_servers_end_of_a_connection_before_and_after_accept(service: Service) -> None:
    client = service.stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
    flow = service.flow(client.getsockname()[1])
    assert peered(flow) is Peered.QUEUED
    server = service.stack.enter_context(service.listener.accept()[0])
    assert peered(flow) is Peered.ACCEPTED
    reset(server)
    assert peered(flow) is Peered.NONE


def test_connection_that_waits_for_data_is_opening(service: Service) -> None:
    service.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = service.stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
    assert peered(service.flow(client.getsockname()[1])) is Peered.OPENING


def walk(port: int) -> list[FlowKey]:
    found = FlowList(LOOPBACK, lambda number: number == port)
    found.start()
    give_up = time.monotonic() + 10
    while (flows := found.step()) is None:
        assert time.monotonic() < give_up
    assert found.step() is None
    return flows


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_established_connections_of_the_service_are_listed(family: int, address: str) -> None:
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()
        port = listener.getsockname()[1]
        assert walk(port) == []
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
            assert walk(port) == [(LOOPBACK, client.getsockname()[1], LOOPBACK, port)]
            assert walk(port + 1 if port < 65535 else 1) == []


@pytest.fixture
def accepted() -> Iterator[tuple[socket.socket, FlowKey]]:
    """The server's end of a connection."""
    with ExitStack() as stack:
        _, server, flow = Service(stack, socket.AF_INET).connect()
        yield server, flow


def bind_to(end: socket.socket, interface: str) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())


def asked(queries: FlowQueries, flow: FlowKey) -> tuple[list[FlowKey], list[FlowKey]]:
    queries.ask([flow])
    return queries.step()


def not_lo() -> str:
    """An interface; it needs no link."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    assert others, "this test takes a machine with an interface besides lo"
    return others[0]


@pytest.mark.parametrize("few", [64, 0])
def test_bound_sockets_are_there_whatever_they_are_bound_to(
    accepted: tuple[socket.socket, FlowKey], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is found by its own interface alone. Of many interfaces those are asked for that listeners are bound to."""
    monkeypatch.setattr(flows, "_FEW", few)
    end, flow = accepted
    other = not_lo()
    learnt = set[int]()
    service, unknown = FlowQueries(other, lambda: learnt), FlowQueries("nothing-there", lambda: learnt)
    for name in ("", "lo"):
        bind_to(end, name)
        assert asked(service, flow) == asked(unknown, flow) == ([], [])
    bind_to(end, other)
    assert asked(service, flow) == ([], [])
    assert asked(unknown, flow) == (([], []) if few else ([flow], []))
    learnt.add(socket.if_nametoindex(other))
    assert asked(unknown, flow) == ([], [])
    learnt.clear()
    assert asked(unknown, flow) == ([], []), "a connection outlives its listener"
    reset(end)
    assert asked(service, flow) == asked(unknown, flow) == ([flow], [])


def test_missing_ones_are_looked_up_by_all_interfaces_a_few_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "_AT_A_TIME", 10 * len(socket.if_nameindex()))
    alive = [service.connect()[2] for _ in range(5)]
    dead = [service.flow(port) for port in range(1, 101)]
    queries = FlowQueries("nothing-there")
    queries.ask(dead + alive)
    found = []
    for _ in range(50):
        missing, ended = queries.step()
        assert len(missing) <= 20 and not ended
        found += missing
    assert sorted(found) == sorted(dead)


def test_own_connection_to_a_listener_that_is_bound_to_lo_is_seen_to_be_accepted() -> None:
    """As a check of the application's makes it."""
    with socket.socket() as listener:
        bind_to(listener, "lo")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            flow = (LOOPBACK, client.getsockname()[1], LOOPBACK, port)
            assert peered(flow) is Peered.QUEUED
            with listener.accept()[0]:
                assert peered(flow) is Peered.ACCEPTED
                assert asked(FlowQueries(not_lo()), flow) == ([], [])
