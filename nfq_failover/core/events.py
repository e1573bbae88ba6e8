"""What goes into a node and what comes out of it.

`Node.handle(event, now)` takes one input; `Node.poll_effect()` gives the effects, oldest first, until None;
`Node.poll_timeout()` gives the earliest deadline. `now` is seconds of a monotonic clock (float); the wall clock is
never needed. Every `PacketQueued` gets exactly one `Verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from nfq_failover.core.concerns import Concern
from nfq_failover.core.settings import Settings

Sockets = frozenset[tuple[int, int]]
"""Listening sockets, each as (port, inode)."""


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
    """

    queue: Queue
    packet_id: int
    packet: bytearray
    checksum_pending: bool = False
    gso: bool = False


@dataclass(slots=True)
class FrameCopied:
    """The primary has seen an inbound packet that carries data or FIN. It is a copy, which needs no verdict."""

    packet: bytearray
    checksum_pending: bool = False


@dataclass(slots=True)
class CopiesLost:
    """`count` inbound copies have been lost for want of buffer space."""

    count: int


@dataclass(slots=True)
class DatagramsLost:
    """The kernel has dropped `count` sync datagrams: the socket's buffer was full."""

    count: int


@dataclass(slots=True)
class QueueOverrun:
    """The kernel has dropped packets of a queue, or messages to us (ENOBUFS)."""

    queue: Queue
    count: int


@dataclass(slots=True)
class PacketsWait:
    """Packets wait in a queue for longer than one turn of the loop: all that had come to it by `since` has been given
    as events, and nothing is said of what came later. None: nothing waits. Told when that changes."""

    queue: Queue
    since: float | None


@dataclass(slots=True)
class DatagramReceived:
    """A sync datagram has come from `source` (address, port)."""

    source: tuple[str, int]
    data: bytes


@dataclass(slots=True)
class HostFacts:
    """How this host is set up, as far as the core's settings don't say: (name, value) pairs, all of them each time.

    The core knows "mtu" (of the service's interface), "timestamps", "sack", "window-scaling" (what the kernel grants:
    "0" or "1"), "tap", "conntrack" and "witness"; the peer is told all.
    """

    facts: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class ClockRead:
    """The time of day, in seconds since 1970 (POSIX), is so far ahead of our monotonic clock."""

    ahead_s: float


@dataclass(slots=True)
class StrangerHeard:
    """A datagram has come to the sync channel that belongs to no session: from where no peer is expected (address,
    port), or a question. Not each one is told."""

    source: tuple[str, int]
    data: bytes


@dataclass(slots=True)
class Undelivered:
    """What was sent to a peer's sync channel (address, port) does not get there.

    `reason` is "nobody-listens", "no-host" or "prohibited", or our own kernel's words if `local`. Anybody may have said
    what is not local.
    """

    destination: tuple[str, int]
    reason: str
    local: bool = False


@dataclass(slots=True)
class TimerFired:
    """Time has passed; also sent as a tick so that a node can see its own pauses."""


@dataclass(slots=True)
class LinkChecked:
    """This answers `CheckLink`."""

    ok: bool
    detail: str


@dataclass(slots=True)
class ReachChecked:
    """What is needed here to talk to the peer (address, route, link, sends that succeed) is there, or `concern` says
    what is not. Told at every change, without being asked."""

    concern: Concern | None


@dataclass(slots=True)
class FenceFinished:
    """This answers `Fence`: `ok` only if the peer is known to be off."""

    peer: str
    ok: bool
    detail: str


@dataclass(slots=True)
class WitnessAnswered:
    """This answers `AskWitness`, if the witness does: whether we may act alone, of the pacts up to `number`."""

    number: int
    granted: bool
    detail: str = ""


@dataclass(slots=True)
class EpochStored:
    """This answers `StoreEpoch`: epoch and role are on disk (`ok`), or they are not."""

    epoch: int
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class RulesApplied:
    """This answers `ApplyRules`, with the same `ports`."""

    profile: Profile
    ok: bool
    detail: str = ""
    ports: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class RulesLost:
    """A periodic check has found our rules missing or changed; the shell is putting them back."""

    detail: str


@dataclass(slots=True)
class FlowsGone:
    """Of the connections asked for by `QueryFlows`, the kernel no longer has a socket for these.

    `ended`: of these it has one only for the client's sake (TIME-WAIT, LAST-ACK, CLOSING): both ends have sent a FIN.
    """

    flows: list[tuple[bytes, int, bytes, int]]
    ended: list[tuple[bytes, int, bytes, int]] = field(default_factory=list)


@dataclass(slots=True)
class FlowsListed:
    """This answers `ListFlows`. `queued`: the number of the last packet that had come to the output queue when the list
    was complete, None if that can't be told: what a connection had said that is not in the list has no later one."""

    flows: list[tuple[bytes, int, bytes, int]]
    queued: int | None = None


@dataclass(slots=True)
class HealthChecked:
    """One check of the application on this host has come to an end, `took_s` seconds after its beginning.

    `detail` says what was wrong.
    """

    ok: bool
    detail: str = ""
    took_s: float = 0.0


@dataclass(slots=True)
class HostChecked:
    """The self-check has looked: `concerns` are all that is wrong on this host now."""

    concerns: tuple[Concern, ...]


@dataclass(slots=True)
class ListenersSeen:
    """The sockets that listen at the service's ports; none: the application is not there. A new life of it has others.
    Comes when they have changed, and soon after the node has begun to want a look at them (`Node.wants_look`).

    `after_s`: what was seen before was last seen so long ago; 0 if this is the first look. `known`: the kernel has
    answered. `bound`: ports where every socket is bound to an interface other than lo, and that interface's name."""

    sockets: Sockets
    after_s: float = 0.0
    known: bool = True
    bound: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True)
class LinkKnown:
    """What this host knows of the service's segment has changed: the hardware address of its own interface, and its
    clients' neighbours as (address, hardware address)."""

    hardware: bytes
    neighbours: tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True)
class OperatorCommand:
    """An operator has said something: `claim` (the peer is off), `replica-is-whole` (the replica's application is as
    the server's) or `shutdown` (stop cleanly)."""

    name: str


@dataclass(slots=True)
class SettingsChanged:
    """The daemon has been given other settings; only such differ from the old ones as a running core may be given.
    Ports are never fewer than before."""

    settings: Settings


Event = (
    PacketQueued
    | FrameCopied
    | CopiesLost
    | DatagramsLost
    | QueueOverrun
    | PacketsWait
    | DatagramReceived
    | HostFacts
    | ClockRead
    | StrangerHeard
    | Undelivered
    | TimerFired
    | LinkChecked
    | ReachChecked
    | FenceFinished
    | WitnessAnswered
    | EpochStored
    | RulesApplied
    | RulesLost
    | FlowsGone
    | FlowsListed
    | HealthChecked
    | HostChecked
    | ListenersSeen
    | LinkKnown
    | OperatorCommand
    | SettingsChanged
)

# ----------------------------------------------------------------------------------------------- effects


@dataclass(slots=True)
class Verdict:
    """Give the final word on a queued packet. `packet`: the rewritten packet, whole, or None to leave it as it is.

    An accepted packet of our TCP leaves with our mark set, so the silence guard lets it pass.
    """

    queue: Queue
    packet_id: int
    accept: bool
    packet: bytearray | None = None


@dataclass(slots=True)
class Inject:
    """Send a whole IP packet, sealed, past our own rules: outward to the client, or inward into the local TCP.

    Which of the two follows from the destination address, too; outward it carries our mark.
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
    """Make the heartbeat sender say this from now on (see wire/heartbeat.py); one per change, not per heartbeat."""

    peer: str
    destination: tuple[str, int]
    template: bytes  # opaque to the shell: HeartbeatTemplate.encode()


@dataclass(slots=True)
class CheckLink:
    """Find out whether it is this host that is cut off. Answered by `LinkChecked`."""


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
class SaveCheckpoint:
    """Write these bytes at these offsets of the checkpoint for the daemon's next life (core/shadow/checkpoint.py), now:
    what comes after this effect may only happen when they outlive the process."""

    writes: tuple[tuple[int, bytes], ...]


@dataclass(slots=True)
class ApplyRules:
    """Bring the firewall rules to a profile.

    `inherited` lists the flows that were taken over and are still open: their packets need translation, so their
    diversion must never carry bypass. `ports` are those of the service that they are to divert; None: those that the
    daemon was started with.
    """

    profile: Profile
    inherited: tuple[tuple[bytes, int, bytes, int], ...] = ()
    ports: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class OwnAddress:
    """Be heard (True: answer ARP for the service address and announce it, `announce` times), or don't (False)."""

    own: bool
    announce: int = 0


@dataclass(slots=True)
class TellClients:
    """Have these clients, or the routers before them, learn that the service address is at this host now, also those
    that ignore announcements. Addresses, each once; what is sent to the clients themselves comes first."""

    clients: tuple[bytes, ...]


@dataclass(slots=True)
class SendProbe:
    """Send a segment that tries the tap, with this token (wire/tap_probe.py), to a hardware address; to the multicast
    tap's if it is empty. It is not answered."""

    token: int
    hardware: bytes


@dataclass(slots=True)
class QueryFlows:
    """Find out which of these connections the kernel no longer knows. Answered by `FlowsGone`."""

    flows: list[tuple[bytes, int, bytes, int]]


@dataclass(slots=True)
class ListFlows:
    """List the kernel's connections at the service's ports. Answered by `FlowsListed`, unless the kernel can't say."""


@dataclass(slots=True)
class Log:
    """Write a structured log line; the level is debug, info, warning or error (an alarm)."""

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
    | SaveCheckpoint
    | ApplyRules
    | OwnAddress
    | TellClients
    | SendProbe
    | QueryFlows
    | ListFlows
    | Log
)
