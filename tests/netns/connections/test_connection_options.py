"""Options of the SYN: what is granted and survives, what is taken out, and what is left alone and said to be."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfq_failover.constants import OPT_MSS, OPT_NOP, OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import TWO_HOSTS, namespace
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK
from nfq_failover.wire.tcp_options import each_option
from tests.support.client_capture import Stream
from tests.support.connection_world import CALM, FASTOPEN_PORT, MD5_PORT, MPTCP_PORT, STATELESS, Case, SharedLab, Talk
from tests.support.lab_world import PORT
from tests.support.raw_client import raw_client
from tests.support.scripted_server import IPPROTO_MPTCP, TCP_MD5SIG, content, md5_option

pytestmark = pytest.mark.netns

OPT_MPTCP, OPT_FASTOPEN, OPT_EXPERIMENT = 30, 34, 253  # IANA, TCP option kinds
USUAL = {OPT_MSS, OPT_WSCALE, OPT_SACK_PERMITTED, OPT_TIMESTAMPS}


@pytest.fixture(scope="module")
def world() -> Iterator[SharedLab]:
    made = SharedLab(Options(rate="100mbit", heartbeat_ms=CALM, settings=STATELESS), seed=7)
    yield made
    made.down()


def kinds(raw: Segment) -> set[int]:
    return {kind for kind, _, _ in each_option(raw.options())}


def by_port(streams: list[Stream]) -> dict[int, Stream]:
    return {one.client_port: one for one in streams}


def live_through_a_crash(case: Case, *talks: Talk) -> None:
    """Each talk echoes all: before the crash of the primary and after it, in both directions."""
    for number, talk in enumerate(talks):
        talk.echo(number, 30_000)
    case.assert_protected(*talks)
    case.crash()
    for number, talk in enumerate(talks):
        talk.echo(number + 100, 200_000)
        talk.socket.shutdown(socket.SHUT_WR)
        talk.expect_end()


def test_a_multipath_client_falls_back_to_tcp_and_survives(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        talk = case.open([["echo_all"]], port=MPTCP_PORT, protocol=IPPROTO_MPTCP)
        live_through_a_crash(case, talk)
        (stream,) = case.finish()
    assert OPT_MPTCP in kinds(stream.syns()[0])
    assert [kinds(raw) for raw in stream.syn_acks()] == [USUAL]
    assert OPT_MPTCP not in set().union(*(kinds(one.raw) for one in stream.sent(True)))


def fast_open(case: Case, data: bytes) -> Talk:
    """A connection whose SYN may carry `data`."""
    sent = 0

    def send_with_syn(connection: socket.socket) -> None:
        nonlocal sent
        connection.setblocking(True)  # or it would not wait for the handshake where the SYN carries nothing
        sent = connection.sendto(data, socket.MSG_FASTOPEN, (TWO_HOSTS.service, FASTOPEN_PORT))

    talk = case.open([["echo_all"]], FASTOPEN_PORT, send_with_syn, ask=False, connect=False)
    talk.socket.settimeout(20.0)
    talk.socket.sendall(data[sent:])
    return talk


def test_fast_open_is_not_granted_and_the_client_survives(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        request = json.dumps({"id": "fast", "steps": [["echo_all"]]}).encode() + b"\n"
        asking = fast_open(case, request)
        # Data in the SYN without a cookie (ip-sysctl, tcp_fastopen 0x4): the server's kernel would take it (0x200).
        case.set_client(tcp_fastopen="5")
        carrying = fast_open(case, request)
        live_through_a_crash(case, asking, carrying)
        streams = by_port(case.finish())
    asked, carried = streams[asking.port], streams[carrying.port]
    assert OPT_FASTOPEN in kinds(asked.syns()[0])
    assert carried.syns()[0].payload_len == len(request)
    for stream in (asked, carried):
        assert [kinds(raw) for raw in stream.syn_acks()] == [USUAL]
        assert stream.syn_acks()[0].ack == (stream.syns()[0].seq + 1) & MASK  # nothing but the SYN


def test_unknown_options_are_not_granted(world: SharedLab, tmp_path: Path) -> None:
    experiment = bytes((OPT_EXPERIMENT, 8)) + b"\xe2\xd4test"[:6]
    syn = bytes((OPT_MSS, 4)) + (1460).to_bytes(2, "big") + experiment + bytes((OPT_SACK_PERMITTED, 2, 77, 2))
    plan = json.dumps({"id": "raw", "steps": [["echo_all"]]}).encode() + b"\n"
    with (
        world.case(tmp_path) as case,
        raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_456, PORT) as client,
    ):
        syn_ack = client.open(syn)
        assert kinds(syn_ack) == {OPT_MSS, OPT_SACK_PERMITTED}
        client.send(plan)
        client.send(content(1, 900))
        assert client.receive(900) == content(1, 900)
        (row,) = [row for row in case.lab.status()["connections"] if row["client"].endswith(":23456")]
        assert row["protected"]
        case.crash()
        client.send(content(2, 1500))
        assert client.receive(1500) == content(2, 1500)


CLIENTS = {
    "without timestamps": {"tcp_timestamps": "0"},
    "without selective acknowledgements": {"tcp_sack": "0"},
    "without window scaling": {"tcp_window_scaling": "0"},
    "without any": {"tcp_timestamps": "0", "tcp_sack": "0", "tcp_window_scaling": "0"},
}
MISSING = {"tcp_timestamps": OPT_TIMESTAMPS, "tcp_sack": OPT_SACK_PERMITTED, "tcp_window_scaling": OPT_WSCALE}


def test_clients_that_offer_less_survive(world: SharedLab, tmp_path: Path) -> None:
    with world.case(tmp_path) as case:
        usual = dict.fromkeys(MISSING, "1")
        case.set_client(**usual)
        talks = []
        for sysctls in CLIENTS.values():
            case.set_client(**(usual | sysctls))
            talks.append(case.open([["echo_all"]]))
        live_through_a_crash(case, *talks)
        streams = by_port(case.finish())
    for talk, sysctls in zip(talks, CLIENTS.values(), strict=True):
        lacking = {MISSING[name] for name in sysctls}
        assert [kinds(raw) for raw in streams[talk.port].syn_acks()] == [USUAL - lacking]


# ---------------------------------------------------------------------------------------------- signed headers


def test_a_signed_connection_works_unprotected_and_says_why(tmp_path: Path) -> None:
    """RFC 2385. Unscrambled: the lab's change of the numbers would spoil the signature, as a takeover would."""
    made = SharedLab(
        Options(rate="100mbit", heartbeat_ms=CALM, scramble=False, settings=STATELESS),
        1,
        (f"{PORT}", f"{MD5_PORT}/md5"),
    )
    try:
        with made.case(tmp_path, resets=True) as case:

            def sign(connection: socket.socket) -> None:
                connection.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, md5_option(TWO_HOSTS.service))

            signed = case.open([["echo_all"]], MD5_PORT, prepare=sign)
            plain = case.open([["echo_all"]])
            signed.echo(1, 100_000)
            row = case.row(signed)
            assert (row["protected"], row["reason"]) == (False, "TCP-MD5 or TCP-AO signs the header")
            case.assert_protected(plain)
            case.crash()
            plain.echo(2, 100_000)  # its neighbour does not suffer
    finally:
        made.down()


def test_padding_is_not_taken_for_an_option(world: SharedLab, tmp_path: Path) -> None:
    """NOPs and what follows the end of the list, as some stacks send them."""
    syn = bytes((OPT_NOP, OPT_NOP, OPT_MSS, 4)) + (536).to_bytes(2, "big") + bytes((0, OPT_FASTOPEN))
    with world.case(tmp_path) as case, raw_client(namespace(case.lab.name, TWO_HOSTS.client), 23_457, PORT) as client:
        assert kinds(client.open(syn)) == {OPT_MSS}
        client.send(json.dumps({"id": "padded", "steps": [["echo_all"]]}).encode() + b"\n")
        case.crash()
        client.send(content(3, 600))
        assert client.receive(600) == content(3, 600)
