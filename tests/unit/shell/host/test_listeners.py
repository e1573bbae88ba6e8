"""The application's listening sockets: real ones on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from nfq_failover.core.events import ListenersSeen, Sockets
from nfq_failover.shell.host import listeners as module
from nfq_failover.shell.host.listeners import LOOK_EVERY_S, WANTED_EVERY_S, Listening, Look, look

LOOPBACK = bytes([127, 0, 0, 1])


def listeners(service: bytes, serves: Callable[[int], bool]) -> Sockets:
    return look(service, serves).sockets


def seen(listener: socket.socket) -> tuple[int, int]:
    return listener.getsockname()[1], os.fstat(listener.fileno()).st_ino


@pytest.mark.parametrize("address", ["127.0.0.1", "", "::", "::ffff:127.0.0.1"])
def test_listener_is_found_and_a_new_one_is_another(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    port, before = 0, frozenset[tuple[int, int]]()
    for _ in range(2):
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((address, port))
            listener.listen()
            port = listener.getsockname()[1]
            found = listeners(LOOPBACK, lambda at, port=port: at == port)  # type: ignore[misc]
            assert found == {seen(listener)}
            assert not found & before
            before = found
            with socket.create_connection(("127.0.0.1", port)):
                assert listeners(LOOPBACK, lambda at, port=port: at == port) == found  # type: ignore[misc]


@pytest.mark.parametrize("only", [False, True])
def test_listener_at_all_ipv6_addresses_takes_ipv4_unless_it_says_that_it_does_not(only: bool) -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        listener.bind(("::", 0))
        listener.listen()
        assert (seen(listener) in listeners(LOOPBACK, lambda port: True)) is not only


def test_other_addresses_and_ports_do_not_count() -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        assert seen(other) not in listeners(LOOPBACK, lambda at: at == port)
        assert seen(other) not in listeners(bytes([127, 0, 0, 2]), lambda at: at != port)
        assert seen(other) in listeners(bytes([127, 0, 0, 2]), lambda at: at == port)


def test_all_listeners_of_many_are_found() -> None:
    many = [socket.create_server(("127.0.0.1", 0)) for _ in range(300)]
    ports = {each.getsockname()[1] for each in many}
    try:
        assert listeners(LOOPBACK, ports.__contains__) == {seen(each) for each in many}
    finally:
        for each in many:
            each.close()


def test_node_hears_of_changes_and_what_it_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart takes less time than there is between two looks: what has listened before it must be known."""
    now: list[Sockets | None] = [frozenset(((80, 1),))]

    def found(*_: object) -> Look:
        if now[0] is None:
            raise OSError
        return Look(now[0])

    monkeypatch.setattr(module, "look", found)
    listening = Listening(LOOPBACK, lambda port: True)
    assert listening.tick(1.0) == ListenersSeen(frozenset(((80, 1),)))
    assert listening.tick(1.125) is None and listening.tick(2.0) is None
    assert listening.tick(2.25, True) == ListenersSeen(frozenset(((80, 1),)), 0.25)
    assert listening.tick(2.26, True) is None
    now[0] = None
    assert listening.tick(2.25 + WANTED_EVERY_S, True) is None
    now[0] = frozenset(((80, 2),))
    assert listening.tick(2.5) is None
    seen = listening.tick(2.25 + WANTED_EVERY_S + LOOK_EVERY_S)
    assert seen is not None and seen.sockets == now[0] and seen.after_s > LOOK_EVERY_S, "a look that failed is none"


def test_kernel_that_can_not_be_asked_is_no_application_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Look:
        raise OSError

    monkeypatch.setattr(module, "look", fails)
    assert Listening(LOOPBACK, lambda port: True).tick(1.0) == ListenersSeen(frozenset(), known=False)


def interface() -> str:
    """One that is not lo; it needs no link."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    assert others, "this test takes a machine with an interface besides lo"
    return others[0]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_listener_that_is_bound_to_an_interface_is_told_apart(family: socket.AddressFamily) -> None:
    """Real sockets, and what the kernel says of them: one beside it that lo reaches is enough."""
    name = interface()
    with socket.socket(family) as bound, socket.socket(family) as free:
        for listener in (bound, free):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        bound.bind(("", 0))
        bound.listen()
        port = bound.getsockname()[1]

        def found() -> Look:
            return look(LOOPBACK, lambda at: at == port)

        index = frozenset((socket.if_nametoindex(name),))
        assert found() == (frozenset((seen(bound),)), ((port, name),), index)
        listening = Listening(LOOPBACK, lambda at: at == port)
        assert not listening.interfaces
        seen_now = listening.tick(1.0)
        assert seen_now is not None and seen_now.bound == ((port, name),)
        assert listening.interfaces == index
        free.bind(("", port))
        free.listen()
        assert found() == (frozenset((seen(bound), seen(free))), (), index)


def test_listener_that_is_bound_to_lo_is_reached() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert look(LOOPBACK, lambda at: at == seen(listener)[0]) == (frozenset((seen(listener),)), (), frozenset((1,)))
