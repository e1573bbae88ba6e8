"""A connection in the primary's shadow, and the segments that its two ends send."""

from __future__ import annotations

from typing import Any

from nfq_failover.wire.records import Opened
from tests.support.transcript import (
    FLOW,
    OWN_TS,
    SEEN_TS,
    After,
    Sent,
    ShadowTranscript,
    client,
    client_seq,
    confirmed,
    granted,
    opening,
    server,
)

SILENT = "drop replica-silent"
EDGE = 40000


def answer(wnd: int = 5000, wscale: int | None = 3, ts: int | None = OWN_TS, sack: bool = True, **more: Any) -> Sent:
    """The replica's SYN-ACK."""
    return server(-1, ack=0, flags="S.", wnd=wnd, options=granted(wscale, ts, sack), **more)


def replica(start: int = 0, length: int = 0, ack: int = 0, edge: int = EDGE, **more: Any) -> Sent:
    """A segment of the replica's TCP, 60 ms after its SYN-ACK."""
    ts = more.pop("ts", (OWN_TS + 60, 1001))
    return server(start, length, ack, (edge - ack) // 8, ts=ts, **more)


def from_client(start: int = 0, length: int = 0, ack: int | None = 0, **more: Any) -> Sent:
    """A segment of the client, which echoes the primary's SYN-ACK."""
    ts = more.pop("ts", (1001, SEEN_TS))
    wnd = more.pop("wnd", 500)
    return client(start, length, ack, wnd, ts=ts, **more)


class Shadowing(ShadowTranscript):
    """A connection 60 ms after its handshake: the replica takes bytes up to 40000."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self >> opening() << "kernel [S] -1 wnd 64240"
        self >> answer() << SILENT << Opened(1, True, client_seq(5000))
        self >> from_client() << f"pass [.] 0 ack 0 wnd 500 ts 1001/{OWN_TS}" << confirmed(0, 5000)
        self.now += 0.0105
        self >> replica(ts=(OWN_TS + 10, 1001)) << SILENT << confirmed(0, EDGE)
        self >> After(0.0505) << "query"
        self.shadow = self.side.flows[FLOW]
