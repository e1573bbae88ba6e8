"""Requests to the privileged helper: what is one, what is refused, and that nothing else is ever understood."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfq_failover.core.events import Profile
from nfq_failover.shell.privileged.requests import (
    MAX_MESSAGE,
    ChangeAddress,
    CheckFence,
    CheckRules,
    FencePeer,
    InstallRules,
    LookAtHost,
    Ping,
    Refused,
    RemoveRules,
    Reply,
    Request,
    StartSender,
    decode_reply,
    decode_request,
    descriptors,
    encode_reply,
    encode_request,
    flow_file,
    read_flows,
)

SERVICE = b"\x0a\x4d\x00\x64"
PORTS = ((80, 80), (7000, 7099))
FLOWS = ((b"\x0a\x4d\x00\x01", 40000, SERVICE, 80), (b"\xc0\x00\x02\x07", 1, SERVICE, 7099))
REQUESTS: list[Request] = [
    *(InstallRules(profile, flows) for profile in Profile for flows in (False, True)),
    CheckRules(),
    LookAtHost(),
    RemoveRules(),
    RemoveRules(True),
    FencePeer("beta", 5000),
    CheckFence("beta", 5000),
    Ping(),
    ChangeAddress(True),
    ChangeAddress(False),
    StartSender(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_request_survives_the_way(request_: Request) -> None:
    assert decode_request(encode_request(7, request_)) == (7, request_)


def test_only_these_come_with_descriptors() -> None:
    assert [descriptors(request) for request in REQUESTS] == [0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]


@pytest.mark.parametrize(
    "table",
    [
        {"do": "check-rules"},
        {"number": "1", "do": "check-rules"},
        {"number": True, "do": "check-rules"},
        {"number": -1, "do": "check-rules"},
        {"number": 1 << 63, "do": "check-rules"},
        {"number": 1},
        {"number": 1, "do": ["check-rules"]},
        {"number": 1, "do": "run", "command": ["sh", "-c", "id"]},
        {"number": 1, "do": "check-rules", "argv": ["sh"]},
        {"number": 1, "do": "install-rules", "profile": "alone"},
        {"number": 1, "do": "install-rules", "profile": "alone --service 192.0.2.1", "flows": False},
        {"number": 1, "do": "install-rules", "profile": "--help", "flows": False},
        {"number": 1, "do": "install-rules", "profile": "alone", "flows": 1},
        {"number": 1, "do": "install-rules", "profile": "alone", "flows": "/etc/shadow"},
        {"number": 1, "do": "install-rules", "profile": "alone", "flows": False, "script": "/tmp/x"},
        {"number": 1, "do": "remove-rules", "force": "yes"},
        {"number": 1, "do": "fence", "peer": "b", "deadline_ms": 0},
        {"number": 1, "do": "fence", "peer": "b", "deadline_ms": 10.5},
        {"number": 1, "do": "fence", "peer": "b", "deadline_ms": 600_001},
        {"number": 1, "do": "fence", "peer": ["b"], "deadline_ms": 10},
        {"number": 1, "do": "fence", "peer": "b", "deadline_ms": 10, "command": ["id"]},
        {"number": 1, "do": "address", "add": None},
        {"number": 1, "do": "address", "add": True, "address": "192.0.2.9"},
        {"number": 1, "do": "sender", "interval_ms": 1},
        [1, "check-rules"],
        None,
    ],
    ids=str,
)
def test_whatever_else_is_refused(table: Any) -> None:
    with pytest.raises(Refused):
        decode_request(json.dumps(table).encode())


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = {
    "do": st.sampled_from(
        ["install-rules", "check-rules", "look-at-host", "remove-rules", "fence", "address", "sender"]
    )
    | _ANYTHING,
    "number": st.integers(0, 9) | _ANYTHING,
}
_MORE = st.sampled_from(["profile", "flows", "force", "peer", "deadline_ms", "add"]) | st.text(max_size=8)


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda fixed, more: json.dumps({**more, **fixed}).encode(),
        st.fixed_dictionaries(_FIELDS),
        st.dictionaries(_MORE, _ANYTHING | st.sampled_from(["backup", "alone", True, 5000]), max_size=3),
    )
)
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        number, request = decode_request(data)
    except Refused:
        return
    # What was understood says nothing that a request of ours could not say.
    assert decode_request(encode_request(number, request)) == (number, request)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Refused):
        decode_request(b"[" * MAX_MESSAGE)


@given(st.integers(0, 1 << 62), st.integers(-2, 255), st.text())
def test_an_answer_survives_the_way(number: int, status: int, said: str) -> None:
    answer = Reply(number, status, said.encode(errors="replace").decode())
    assert decode_reply(encode_reply(answer)) == answer


def test_of_a_long_answer_the_beginning_fits() -> None:
    data = encode_reply(Reply(1, 3, "missing: " + "\u2603" * 50_000))
    assert len(data) <= MAX_MESSAGE
    assert decode_reply(data).said.startswith("missing: \u2603")


# ------------------------------------------------------------------------------------------ inherited connections


def read(fd: int, most: int = 10) -> tuple[Any, ...]:
    try:
        return read_flows(fd, SERVICE, PORTS, most)
    finally:
        os.close(fd)


def test_connections_survive_the_way() -> None:
    assert read(flow_file(FLOWS)) == FLOWS
    assert read(flow_file(())) == ()
    many = [(b"\x0a\x00\x00\x01", 1 + n, SERVICE, 80) for n in range(60_000)]
    assert list(read(flow_file(many), 60_000)) == many


@pytest.mark.parametrize(
    "flow",
    [
        (b"\x0a\x4d\x00\x01", 40000, SERVICE, 22),
        (b"\x0a\x4d\x00\x01", 0, SERVICE, 80),
        (b"\x00\x00\x00\x00", 40000, SERVICE, 80),
        (b"\x7f\x00\x00\x01", 40000, SERVICE, 80),
        (b"\xe0\x00\x00\x01", 40000, SERVICE, 80),
    ],
)
def test_connections_that_can_not_be_the_services_are_refused(flow: tuple[bytes, int, bytes, int]) -> None:
    with pytest.raises(Refused):
        read(flow_file((*FLOWS, flow)))


def test_too_many_connections_are_refused() -> None:
    with pytest.raises(Refused):
        read(flow_file(FLOWS), 1)


def _pipe() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


def _memfd(data: bytes, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@pytest.mark.parametrize(
    "make",
    [
        _pipe,
        lambda: os.open("/dev/zero", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: _memfd(bytes(8), fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),  # could change while it is read
        lambda: _memfd(b"\x0a\x4d\x00\x01\x9c\x40\x00", ALL),  # a part of one
    ],
)
def test_only_a_sealed_file_of_whole_connections_is_read(make: Any) -> None:
    with pytest.raises(Refused):
        read(make())
