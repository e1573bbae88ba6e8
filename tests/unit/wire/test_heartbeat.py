"""The body of a heartbeat, byte by byte."""

from __future__ import annotations

import pytest

from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.heartbeat import HeartbeatBody


def test_a_heartbeat_byte_by_byte() -> None:
    body = HeartbeatBody(1, 2, 3, 4, 5, 6, 7, 8, 9)
    pinned = "01 02 03 00000004 00000005 0006 0000000000000007 0000000000000008 00000009"
    assert body.encode().hex() == pinned.replace(" ", "")
    assert HeartbeatBody.decode(body.encode()) == body
    assert HeartbeatBody.decode(body.encode() + b"later") == body


def test_loop_age_saturates() -> None:
    assert HeartbeatBody.decode(HeartbeatBody(1, 2, 3, 4, 5, 10**9, 7, 8, 9).encode()).loop_age_ms == 0xFFFF


def test_a_short_heartbeat_is_refused() -> None:
    encoded = HeartbeatBody(1, 2, 3, 4, 5, 6, 7, 8, 9).encode()
    for size in range(len(encoded)):
        with pytest.raises(MalformedDatagram, match="bad-heartbeat"):
            HeartbeatBody.decode(encoded[:size])
