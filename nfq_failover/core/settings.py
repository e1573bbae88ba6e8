"""What the core needs to know about its host, its peers and its limits: the pure part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host of the same service."""

    name: str
    address: str
    port: int


@dataclass(slots=True, kw_only=True)
class Settings:
    """What the core is told. Times are in milliseconds, sizes in bytes. Defaults and bounds are the configuration's
    (`config.schema`): here is none.

    A node has one object of it, which all of its parts read when they need a value, and only `adopt` changes it.
    """

    name: str
    service: bytes  # packed address
    ports: tuple[tuple[int, int], ...]  # inclusive ranges
    peers: tuple[Peer, ...]  # in the order in which they follow this host in a ring: see core/pair/link.py
    key: bytes
    prefer_primary: bool  # breaks the tie when two hosts that never served boot together
    has_fence: bool
    split_brain_accepted: bool
    boot_alone: str  # wait | fence
    boot_wait_ms: int
    heartbeat_interval_ms: int
    heartbeat_count: int
    fence_deadline_ms: int
    fence_delay_ms: int  # before we act against the peer: of two hosts the one without it goes first
    fence_retry_ms: int  # after a refusal, doubled each time; 0: never again
    fence_retry_max_ms: int
    has_witness: bool
    witness_lease_ms: int  # 0: three times the detection time
    checks_target: bool  # our own link counts as up only if some other machine answers
    loop_stall_ms: int  # a peer whose packet loop has made no progress for this long is not alive
    tap: str  # clone | multicast: how the clients' packets come to the backup
    open_deadline_ms: int  # how long a SYN-ACK waits for the replica
    replica_slow_ms: int  # how late a replica must be before its client is slowed
    slow_backup: str  # wait | unprotect | drop: connections that have been slowed for as long as the patience lasts
    replica_patience_ms: int  # how long a client waits for a replica that is behind; 0: as long as it takes
    announce_count: int
    revert_backoff: bool  # at a takeover clients are made to repeat at once what they have sent to nobody
    max_connections: int
    max_log_bytes: int  # per connection, inbound journal
    max_unacked_bytes: int  # per connection, replica output the client has not acknowledged
    hole_deadline_ms: int  # after a takeover
    end_deadline_ms: int  # how long an end of the server's stream waits for the replica's
    service_state: str  # shared | none: what a connection's input may matter to
    on_app_failure: str  # service | connection | off: what moves
    divergence: str  # default | strict | off: how the two servers' output is compared
    divergence_run_bytes: int  # a difference of this length ends the protection
    out_of_step_ms: int  # how long one server may lack output that the other has sent
    health_checked: bool  # the shell checks the application's health
    health_failures: int  # failed checks in a row that make a failed application

    def adopt(self, other: Settings) -> None:
        """Become equal to `other`."""
        self.__init__(**{field.name: getattr(other, field.name) for field in fields(other)})  # type: ignore[misc]

    @property
    def detection_ms(self) -> int:
        """Silence after which a peer counts as lost."""
        return self.heartbeat_interval_ms * self.heartbeat_count

    @property
    def release_after_ms(self) -> int:
        """Silence after which a primary may acknowledge what its backup lacks: the backup's time to act is over.

        Detection plus fence deadline, plus a margin of one detection time for heartbeats in flight and clock rates. A
        primary that hangs is detected later, by as much as a loop may stall. Without a fence a backup takes over only
        from a primary that has yielded, or, if a split brain is accepted, at once and at any time.
        """
        if self.split_brain_accepted:
            return self.detection_ms
        fence = self.loop_stall_ms + self.fence_deadline_ms + self.fence_delay_ms if self.has_fence else 0
        return 2 * self.detection_ms + fence

    @property
    def may_act(self) -> bool:
        """Whether this host could ever take over from a primary that dies without having yielded."""
        return self.has_fence or self.has_witness or self.split_brain_accepted

    @property
    def lease_ms(self) -> int:
        """How long a primary that has a witness is heard without its backup's votes; 0 without a witness."""
        return (self.witness_lease_ms or 3 * self.detection_ms) if self.has_witness else 0

    def serves(self, port: int) -> bool:
        """Whether `port` belongs to the service."""
        return any(low <= port <= high for low, high in self.ports)
