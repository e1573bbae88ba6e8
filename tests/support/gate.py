"""A connection behind the gate, for tests of what happens to it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nfq_failover.core.gate.digests import FLUSH_S
from nfq_failover.core.tcp.hashes import block_hashes, hash_seed, make_marks
from nfq_failover.wire.records import Digest, DigestSeen, Opened
from tests.support.transcript import (
    FLOW,
    After,
    GateTranscript,
    Sent,
    client_seq,
    confirmed,
    opening,
    server,
    server_bytes,
    server_seq,
    settings,
    syn,
    syn_ack,
)

HELD = "drop ack-held"
TS = (2_000_010, 1_010)
SEED = hash_seed(settings().key)


class Gated(GateTranscript):
    """A protected connection after its handshake: scale 2, both right edges at 40000, timers quiet."""

    def __init__(self, options: bytes | None = None, edge: int = 40000, wscale: int | None = 2, **changes: Any) -> None:
        super().__init__(**changes)
        self >> syn() << "pass"
        tsval = 2_000_000 if options is None else None
        self >> syn_ack(options=options) << "drop syn-ack-held"
        self << opening(tsval=tsval, wscale=wscale, sack_permitted=options is None)
        self >> Opened(1, True, client_seq(edge)) << "client [S.] -1 ack 0 wnd 8000"
        self >> confirmed(0, edge)
        self >> server(0, wnd=edge // 4 if wscale else edge) << "pass"
        self >> After(0.05) << "query"
        self.gate = self.side.flows[FLOW]


def ack(at: int, edge: int = 40000, **more: Any) -> Sent:
    """A pure ACK of the primary's TCP at the end of what it has sent."""
    return server(more.pop("start", 0), ack=at, wnd=(edge - at) // 4, ts=more.pop("ts", TS), **more)


class Digesting(GateTranscript):
    """A protected connection whose output is digested."""

    def __init__(self, policy: str = "default", **changes: Any) -> None:
        super().__init__(divergence=policy, **changes)
        self >> syn() << "pass"
        self >> syn_ack() << "drop syn-ack-held" << opening()
        self >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
        self >> confirmed(0, 40000)

    def flush(self) -> None:
        """The timer of the digests."""
        self >> After(FLUSH_S + 0.0001)
        if "query" in self.effects:
            self.effects.remove("query")


def digest(start: int, length: int, data: bytes | None = None, *, cuts: tuple[int, ...] = ()) -> Digest:
    """What the primary says of its output, by default the replica's, too. `cuts`: where new segments of it begin."""
    data = server_bytes(start, length) if data is None else data
    hashes = tuple(block_hashes([data], SEED))
    pieces = [data[left:right] for left, right in pairwise((0, *(cut - start for cut in cuts), length)) if right]
    return Digest(1, server_seq(start), length, hashes, make_marks(pieces, SEED))


def seen(upto: int, differences: int = 0, is_open: bool = False) -> DigestSeen:
    return DigestSeen(1, server_seq(upto), differences, is_open)
