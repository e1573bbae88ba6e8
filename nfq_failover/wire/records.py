"""The records that primary and backup exchange inside sync datagrams (see wire/sync.py for their encoding).

Every record may be lost: the side that waits repeats its question until the answer supersedes it. `conn` is a number
that the primary gives each connection; it is never reused within a session. Sequence numbers are as the client sees
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the heartbeat sender, a small process that must start fast, does without the packet code
    from nfq_failover.wire.segment import FlowKey


@dataclass(frozen=True, slots=True)
class Open:
    """Primary -> backup: a connection is being opened. Repeated until `Opened`.

    `tsval` is the TSval of the primary's SYN-ACK, None without timestamps; `wscale` the primary's window shift, None
    without window scaling; `syn_wnd` and `syn_options` are the client's SYN as the primary's TCP was shown it.
    """

    conn: int
    flow: FlowKey
    irs: int  # client's initial sequence number
    iss: int  # primary's initial sequence number, as the client sees it
    tsval: int | None
    wscale: int | None
    mss: int
    sack_permitted: bool
    syn_wnd: int
    syn_options: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """Backup -> primary: answer to `Open`. `ready`: the replica can continue the connection; else `reason`.

    `edge`: the right edge that the backup's TCP accepts (meaningful if ready).
    """

    conn: int
    ready: bool
    edge: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Primary -> backup: my TCP has taken the client's bytes before `rcv_nxt`. Always answered by `Confirm`.

    `established`: the client has completed the handshake.
    """

    conn: int
    rcv_nxt: int
    established: bool


@dataclass(frozen=True, slots=True)
class Confirm:
    """Backup -> primary: I hold every byte before `cum`, and those in `ranges` (at most 4, left <= byte < right).

    A FIN counts as a byte. `edge`: the right edge that the backup's TCP accepts.
    """

    conn: int
    cum: int
    edge: int
    ranges: tuple[tuple[int, int], ...] = ()
    established: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Backup -> primary: send me the bytes [start, end) that your TCP has taken. Repeated until they are there."""

    conn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Data:
    """Primary -> backup: bytes that were missing; `fin` if the client's FIN follows them. At most 1300 bytes."""

    conn: int
    seq: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Primary -> backup: my TCP no longer has this connection. Repeated until `Closed`."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Backup -> primary: answer to `Close`."""

    conn: int


@dataclass(frozen=True, slots=True)
class Unprotected:
    """Either way: this connection can't be continued by the backup, and why. Answered by `UnprotectedSeen`."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnprotectedSeen:
    """Answer to `Unprotected`."""

    conn: int


class EndKind(IntEnum):
    """How the server's stream of a connection has ended."""

    OPEN = 0  # it has not
    FIN = 1
    RST = 2


@dataclass(frozen=True, slots=True)
class EndAsked:
    """Primary -> backup: where is the end of your replica's stream? Always answered by `End`.

    `seq` and `kind` are the primary's: the first byte that its server has not sent (the FIN's or RST's own number, if
    it has ended).
    """

    conn: int
    seq: int
    kind: EndKind


@dataclass(frozen=True, slots=True)
class End:
    """Backup -> primary: the replica has sent everything before `seq`, and has ended there, or not.

    `taken`: the first byte of the client's stream that the replica's TCP has not taken. `well`: the replica's
    application has passed a health check since the primary's server ended (or nobody checks it).
    """

    conn: int
    seq: int
    taken: int
    kind: EndKind
    well: bool = True


DIGEST_BLOCK = 1280
"""Bytes per hash. Less than a usual segment: a replica that may send one segment can always complete a block."""
MAX_HASHES = 128


@dataclass(frozen=True, slots=True)
class Digest:
    """Primary -> backup: hashes (XXH3, 64 bits) of what my server has sent, one for each `DIGEST_BLOCK` bytes from
    `seq` on, the last one for what is left of `length`. Repeated until `DigestSeen` has passed it.

    Without hashes: these bytes can't be compared. A `length` of 0 says only that the server's output is digested.
    """

    conn: int
    seq: int
    length: int
    hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DigestSeen:
    """Backup -> primary: every byte before `compared` has been compared, and they differed in so many places."""

    conn: int
    compared: int
    differences: int


@dataclass(frozen=True, slots=True)
class BytesAsked:
    """Backup -> primary: what has your server sent in [start, end)? At most `DIGEST_BLOCK` bytes."""

    conn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BytesSent:
    """Primary -> backup: what my server has sent from `seq` on; empty if that is not known any more."""

    conn: int
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SentAsked:
    """Backup -> primary: how far has your server sent? The client acknowledges more than we know of."""

    conn: int


@dataclass(frozen=True, slots=True)
class SentUpTo:
    """Primary -> backup: answer to `SentAsked`. `seq`: the first number that the server has not sent."""

    conn: int
    seq: int


@dataclass(frozen=True, slots=True)
class AckAsked:
    """Backup -> primary: my server repeats what follows `seq`, so the client's acknowledgement of it may be lost: make
    the client say it again (a keep-alive probe, RFC 9293 section 3.8.4). `seq`: the first number that the client has
    not acknowledged, for all that I know."""

    conn: int
    seq: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Primary -> backup: my server's end of this one connection has failed, and I am silent about it for good: go on
    with it. Repeated until `HandedOver`, and then slowly, to see that it still goes on.

    `irs` and `iss`, as in `Open`, tell it from others of the same addresses; `at`: the first byte that my server has
    not sent.
    """

    conn: int
    flow: FlowKey
    irs: int
    iss: int
    at: int


class Handed(IntEnum):
    """What became of a connection that was handed over."""

    ACTIVE = 0  # the backup's server has it
    REFUSED = 1  # the backup never had it, and never will
    OVER = 2  # it has ended


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Backup -> primary: answer to `HandOver`; `OVER` is told unasked, too."""

    conn: int
    state: Handed
    reason: str = ""


Record = (
    Open
    | Opened
    | Progress
    | Confirm
    | Missing
    | Data
    | Close
    | Closed
    | Unprotected
    | UnprotectedSeen
    | EndAsked
    | End
    | Digest
    | DigestSeen
    | BytesAsked
    | BytesSent
    | SentAsked
    | SentUpTo
    | AckAsked
    | HandOver
    | HandedOver
)
