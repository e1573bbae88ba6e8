"""What goes into a node and what comes out of it.

`Node.handle(event, now)` takes one input; `Node.poll_effect()` gives the effects, oldest first, until None;
`Node.poll_timeout()` gives the earliest deadline. `now` is seconds of a monotonic clock (float); the wall clock is
never needed. Every `PacketQueued` gets exactly one `Verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Queue(IntEnum):
    """The two diversions: packets for the service (IN), packets from it (OUT)."""

    IN = 0
    OUT = 1


class Profile(Enum):
    """Which set of firewall rules the host should have; the names are the rules script's `--role`."""

    BACKUP = "backup"  # both directions queued, no bypass, silence guard on
    PRIMARY = "primary"  # protected primary: OUT queued without bypass, tap on
    ALONE = "alone"  # unprotected primary: queued with bypass, tap on, guard off


# ------------------------------------------------------------------------------------------------ inputs


@dataclass(slots=True)
class PacketQueued:
    """A packet waits in a queue for its verdict.

    `checksum_pending`: the TCP checksum is not filled in yet (offloaded), so it can't and need not be verified.
    `gso`: a super-segment that the kernel will still cut, writing all checksums itself.
    `complete`: False when the kernel gave us only a part of the packet; such a packet can't be rewritten.
    """

    queue: Queue
    packet_id: int
    packet: bytearray
    checksum_pending: bool = False
    gso: bool = False
    complete: bool = True


@dataclass(slots=True)
class FrameCopied:
    """The primary saw an inbound packet that carries data or FIN (a copy, beside the path; no verdict)."""

    packet: bytearray
    checksum_pending: bool = False


@dataclass(slots=True)
class CopiesLost:
    """`count` inbound copies were lost for want of buffer space."""

    count: int


@dataclass(slots=True)
class DatagramsLost:
    """The kernel dropped `count` sync datagrams: the socket's buffer was full."""

    count: int


@dataclass(slots=True)
class QueueOverrun:
    """The kernel dropped packets of a queue, or messages to us (ENOBUFS)."""

    queue: Queue
    count: int


@dataclass(slots=True)
class DatagramReceived:
    """A sync datagram from `source` (address, port)."""

    source: tuple[str, int]
    data: bytes


@dataclass(slots=True)
class TimerFired:
    """Time has passed; also sent as a tick so that a node can see its own pauses."""


@dataclass(slots=True)
class LinkChecked:
    """Answer to `CheckLink`."""

    ok: bool
    detail: str


@dataclass(slots=True)
class FenceFinished:
    """Answer to `Fence`: `ok` only if the peer is known to be off."""

    peer: str
    ok: bool
    detail: str


@dataclass(slots=True)
class WitnessAnswered:
    """Answer to `AskWitness`, if one comes: whether we may act alone, of the pacts up to `number`."""

    number: int
    granted: bool
    detail: str = ""


@dataclass(slots=True)
class EpochStored:
    """Answer to `StoreEpoch`: the record is on disk (`ok`), or it is not."""

    epoch: int
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class RulesApplied:
    """Answer to `ApplyRules`."""

    profile: Profile
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class RulesLost:
    """A periodic check found our rules missing or changed; the shell is putting them back."""

    detail: str


@dataclass(slots=True)
class FlowsGone:
    """Of the connections asked for by `QueryFlows`, the kernel no longer has a socket for these."""

    flows: list[tuple[bytes, int, bytes, int]]


@dataclass(slots=True)
class FlowsListed:
    """Answer to `ListFlows`."""

    flows: list[tuple[bytes, int, bytes, int]]


@dataclass(slots=True)
class HealthChecked:
    """One check of the application on this host has come to an end, `took_s` seconds after its beginning.

    `detail` says what was wrong.
    """

    ok: bool
    detail: str = ""
    took_s: float = 0.0


@dataclass(slots=True)
class OperatorCommand:
    """`claim` (the operator says that the peer is off), `shutdown` (clean stop)."""

    name: str


Event = (
    PacketQueued
    | FrameCopied
    | CopiesLost
    | DatagramsLost
    | QueueOverrun
    | DatagramReceived
    | TimerFired
    | LinkChecked
    | FenceFinished
    | WitnessAnswered
    | EpochStored
    | RulesApplied
    | RulesLost
    | FlowsGone
    | FlowsListed
    | HealthChecked
    | OperatorCommand
)

# ----------------------------------------------------------------------------------------------- effects


@dataclass(slots=True)
class Verdict:
    """The final word on a queued packet. `packet`: the rewritten packet, whole, or None to leave it as it is.

    An accepted packet leaves with our mark set, so the silence guard lets it pass.
    """

    queue: Queue
    packet_id: int
    accept: bool
    packet: bytearray | None = None


@dataclass(slots=True)
class Inject:
    """Send a whole IP packet, sealed, past our own rules: outward to the client, or inward into the local TCP.

    Which of the two follows from the destination address; `inward` says it for readers and tests.
    """

    packet: bytes | bytearray
    inward: bool


@dataclass(slots=True)
class SendDatagram:
    """Send a sync datagram."""

    destination: tuple[str, int]
    data: bytes


@dataclass(slots=True)
class PublishHeartbeat:
    """What the heartbeat sender shall say from now on (see core/pair/monitor.py); one per change, not per heartbeat."""

    peer: str
    destination: tuple[str, int]
    template: bytes  # opaque to the shell: HeartbeatTemplate.encode()


@dataclass(slots=True)
class CheckLink:
    """Is our own link up? Answered by `LinkChecked`."""


@dataclass(slots=True)
class Fence:
    """Make sure that `peer` is off, within `deadline_ms`. Answered by `FenceFinished`."""

    peer: str
    deadline_ms: int


@dataclass(slots=True)
class AskWitness:
    """Ask the witness for the right to act alone (core/pair/pact.py), once; repeated until `WitnessAnswered`."""

    low: int
    high: int


@dataclass(slots=True)
class StoreEpoch:
    """Put (epoch, role) on disk, durably. Answered by `EpochStored`."""

    epoch: int
    role: str


@dataclass(slots=True)
class Remember:
    """Write these bytes at these offsets of the record for the daemon's next life (core/shadow/checkpoint.py), now:
    what comes after this effect may only happen when they outlive the process."""

    writes: tuple[tuple[int, bytes], ...]


@dataclass(slots=True)
class ApplyRules:
    """Bring the firewall rules to a profile.

    `inherited` lists the flows that were taken over and are still open: their packets need translation, so their
    diversion must never carry bypass.
    """

    profile: Profile
    inherited: tuple[tuple[bytes, int, bytes, int], ...] = ()


@dataclass(slots=True)
class OwnAddress:
    """Be heard (True: answer ARP for the service address and announce it, `announce` times), or don't (False)."""

    own: bool
    announce: int = 0


@dataclass(slots=True)
class QueryFlows:
    """Which of these connections does the kernel no longer know? Answered by `FlowsGone`."""

    flows: list[tuple[bytes, int, bytes, int]]


@dataclass(slots=True)
class ListFlows:
    """Which connections does the kernel have at the service's ports? Answered by `FlowsListed`, unless it can't."""


@dataclass(slots=True)
class Log:
    """A structured log line; level is debug, info, warning or error (alarm)."""

    level: str
    event: str
    fields: dict[str, object] = field(default_factory=dict)


Effect = (
    Verdict
    | Inject
    | SendDatagram
    | PublishHeartbeat
    | CheckLink
    | Fence
    | AskWitness
    | StoreEpoch
    | Remember
    | ApplyRules
    | OwnAddress
    | QueryFlows
    | ListFlows
    | Log
)
