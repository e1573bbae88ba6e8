"""Who serves: the states of a host and what moves it from one to another.

The rule: a host makes itself heard from the service address only if (1) a living peer has agreed, in an authenticated
session, that it is the one, or (2) the peer was fenced, or the operator says that it is off, or (3) a witness has let
it act alone and the peer's lease has ended, or (4) the configuration accepts a split brain. So two hosts that boot
together elect one, and one that boots alone waits.

A daemon that dies is not a host that dies: one that served unprotected, on this boot, goes on at once when its daemon
is back (RESUMED). Nobody else serves then: a peer begins to serve only with our consent (heartbeats that say that we do
not serve: none has left since), after it has fenced us (this boot would be over), or because the operator or the
configuration allows it whatever we do. If it does serve, its heartbeat has the later epoch, and we step down.

A host starts in WAITING, silent. Two hosts of which neither serves compare their `Candidate`: the one that holds the
protected connections goes first, then the one with the later epoch on disk, then the one that served in it, then the
one with `prefer_primary`, then the lesser name. The winner stores the next epoch and serves (UNPROTECTED until its
backup is armed).

On the backup, silence of the primary leads through CHECKING (our own link), FENCING and STORING (the new epoch) to
serving. A host that is cut off itself stays in CHECKING, with its shadows, until it could have been heard for a
detection time, or until it is too late to continue anything (LINK_DOWN); anything else that fails on the way leads to
REFUSED, which is logged as an error and where the shadows end. A host in REFUSED tries again now and then (RETRYING) as
long as the primary is silent, and serves without the old connections if that succeeds. Where there is a witness, ASKING
comes after CHECKING (see core/pair/pact.py); without a fence the backup also outlasts the primary's lease. It asks
about a primary that has yielded, too, if that one may have let go what we lack, but not for longer than a lease.

On the primary, silence of the backup leads to BACKUP_LOST: nothing unconfirmed is acknowledged until the backup's time
to act has passed, and then the primary is UNPROTECTED. A primary that was paused for longer than the detection time is
in DOUBT: nothing leaves it until the peer has answered. So is one whose lease ended before the witness had answered.

A primary whose application has failed while its backup is well falls silent, YIELDED: the backup, which learns that
from its heartbeat, takes over without a fence. The host does not join again before its application is well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from nfq_failover.errors import InternalError


class Role(IntEnum):
    """What a host is to the service."""

    JOINING = 0
    BACKUP = 1
    PRIMARY = 2
    LEAVING = 3


class State(IntEnum):
    """The states of a host; the numbers are those in the heartbeat."""

    WAITING = 0
    BOOT_FENCING = 1
    CLAIMING = 2
    SHADOWING = 3
    CHECKING = 4
    FENCING = 5
    STORING = 6
    REFUSED = 7
    UNPROTECTED = 8
    ARMING = 9
    PROTECTED = 10
    BACKUP_LOST = 11
    DOUBT = 12
    LEAVING = 13
    YIELDED = 14
    RETRYING = 20
    ASKING = 21

    @property
    def role(self) -> Role:
        """The role that goes with the state."""
        return _ROLES[self]

    @property
    def label(self) -> str:
        """The name shown to people."""
        return self.name.lower().replace("_", "-")


_ROLES = {
    **dict.fromkeys((State.WAITING, State.BOOT_FENCING, State.CLAIMING, State.YIELDED), Role.JOINING),
    **dict.fromkeys((State.SHADOWING, State.CHECKING, State.FENCING, State.STORING, State.REFUSED), Role.BACKUP),
    **dict.fromkeys((State.RETRYING, State.ASKING), Role.BACKUP),
    **dict.fromkeys((State.UNPROTECTED, State.ARMING, State.PROTECTED, State.BACKUP_LOST, State.DOUBT), Role.PRIMARY),
    State.LEAVING: Role.LEAVING,
}


class Input(Enum):
    """What can move a host."""

    PEER_SERVES = "the peer serves, in an epoch that is not older than ours"
    ELECTED = "neither serves and we go first"
    ALONE = "nobody answered for the boot wait, and the configuration says to fence then"
    CLAIMED = "the operator says that the peer is off"
    RESUMED = "this host served unprotected on this boot, and only its daemon has restarted"
    STORED = "the new epoch is on disk"
    STORE_FAILED = "the new epoch could not be stored"
    PEER_SILENT = "no heartbeat for the detection time"
    PEER_YIELDED = "the primary has restarted or leaves: it does not serve any more"
    UNSURE = "the primary does not serve any more, and the witness knows whether it has let go what we lack"
    PEER_BACK = "heartbeats are there again"
    LINK_UP = "we could hear the peer, and it us"
    LINK_DOWN = "we are cut off ourselves, and have been for too long"
    NO_FENCE = "there is no fence, and a split brain is not accepted"
    ACCEPTED = "there is no fence, and a split brain is accepted"
    FENCED = "the peer is known to be off"
    FENCE_FAILED = "the fence did not succeed in time"
    BACKUP_JOINED = "a backup is there"
    ARMED = "rules are tight, the backup has agreed to this generation of connections"
    BACKUP_HARMLESS = "the backup can no longer take over"
    PAUSED = "we were paused for longer than the detection time"
    REASSURED = "the peer has answered after the pause, and does not serve"
    OUTDATED = "the peer serves in a newer epoch"
    APP_FAILED = "our application has failed, and the backup can go on"
    APP_WELL = "our application is well again"
    RETRY = "the primary is still silent: everything once more, but for its connections"
    ASK = "our own link is up, and the witness decides"
    GRANTED = "the witness lets us act alone"
    DENIED = "the witness has let the peer act alone"
    OUTLASTED = "the witness lets us act alone, and the primary's lease has ended"
    EXPIRED = "our lease has ended: the backup's votes are too old"
    STOP = "clean stop"


S, I = State, Input  # noqa: E741

UNHEALTHY = 8
"""A heartbeat flag, next to those of `Candidate`: the sender's application has failed its health checks."""

TRANSITIONS: dict[tuple[State, Input], State] = {
    (S.WAITING, I.PEER_SERVES): S.SHADOWING,
    (S.WAITING, I.ELECTED): S.CLAIMING,
    (S.WAITING, I.ALONE): S.BOOT_FENCING,
    (S.WAITING, I.CLAIMED): S.CLAIMING,
    (S.WAITING, I.RESUMED): S.UNPROTECTED,
    (S.BOOT_FENCING, I.FENCED): S.CLAIMING,
    (S.BOOT_FENCING, I.FENCE_FAILED): S.WAITING,
    (S.BOOT_FENCING, I.PEER_SERVES): S.SHADOWING,
    (S.CLAIMING, I.STORED): S.UNPROTECTED,
    (S.CLAIMING, I.STORE_FAILED): S.WAITING,
    (S.CLAIMING, I.PEER_SERVES): S.SHADOWING,
    (S.SHADOWING, I.PEER_SILENT): S.CHECKING,
    (S.SHADOWING, I.PEER_YIELDED): S.STORING,
    (S.SHADOWING, I.UNSURE): S.ASKING,
    (S.CHECKING, I.PEER_BACK): S.SHADOWING,
    (S.CHECKING, I.LINK_UP): S.FENCING,
    (S.CHECKING, I.LINK_DOWN): S.REFUSED,
    (S.CHECKING, I.NO_FENCE): S.REFUSED,
    (S.CHECKING, I.ACCEPTED): S.STORING,
    (S.CHECKING, I.PEER_YIELDED): S.STORING,
    (S.FENCING, I.ACCEPTED): S.STORING,
    (S.FENCING, I.FENCED): S.STORING,
    (S.FENCING, I.FENCE_FAILED): S.REFUSED,
    (S.STORING, I.STORED): S.UNPROTECTED,
    (S.STORING, I.STORE_FAILED): S.REFUSED,
    (S.CHECKING, I.ASK): S.ASKING,
    (S.CHECKING, I.UNSURE): S.ASKING,
    (S.ASKING, I.PEER_BACK): S.REFUSED,
    (S.ASKING, I.PEER_YIELDED): S.STORING,
    (S.ASKING, I.DENIED): S.REFUSED,
    (S.ASKING, I.GRANTED): S.FENCING,
    (S.ASKING, I.OUTLASTED): S.STORING,
    (S.ASKING, I.CLAIMED): S.STORING,
    (S.REFUSED, I.RETRY): S.RETRYING,
    (S.RETRYING, I.PEER_SERVES): S.SHADOWING,
    (S.RETRYING, I.PEER_BACK): S.REFUSED,
    (S.RETRYING, I.LINK_DOWN): S.REFUSED,
    (S.RETRYING, I.LINK_UP): S.FENCING,
    (S.RETRYING, I.ACCEPTED): S.STORING,
    (S.RETRYING, I.CLAIMED): S.STORING,
    (S.REFUSED, I.PEER_SERVES): S.SHADOWING,
    (S.REFUSED, I.ELECTED): S.STORING,
    (S.REFUSED, I.CLAIMED): S.STORING,
    (S.UNPROTECTED, I.BACKUP_JOINED): S.ARMING,
    (S.ARMING, I.ARMED): S.PROTECTED,
    (S.ARMING, I.BACKUP_HARMLESS): S.UNPROTECTED,
    (S.ARMING, I.PEER_SILENT): S.UNPROTECTED,
    (S.PROTECTED, I.PEER_SILENT): S.BACKUP_LOST,
    (S.PROTECTED, I.BACKUP_HARMLESS): S.UNPROTECTED,
    (S.PROTECTED, I.PAUSED): S.DOUBT,
    (S.BACKUP_LOST, I.PEER_BACK): S.PROTECTED,
    (S.BACKUP_LOST, I.BACKUP_HARMLESS): S.UNPROTECTED,
    (S.BACKUP_LOST, I.PAUSED): S.DOUBT,
    (S.DOUBT, I.REASSURED): S.PROTECTED,
    (S.DOUBT, I.BACKUP_HARMLESS): S.UNPROTECTED,
    (S.DOUBT, I.PAUSED): S.DOUBT,
    (S.PROTECTED, I.APP_FAILED): S.YIELDED,
    (S.YIELDED, I.APP_WELL): S.WAITING,
    (S.YIELDED, I.CLAIMED): S.CLAIMING,
    (S.PROTECTED, I.EXPIRED): S.DOUBT,
    (S.BACKUP_LOST, I.EXPIRED): S.DOUBT,
    (S.BACKUP_LOST, I.GRANTED): S.UNPROTECTED,
    (S.BACKUP_LOST, I.DENIED): S.WAITING,
    (S.DOUBT, I.GRANTED): S.UNPROTECTED,
    (S.DOUBT, I.DENIED): S.WAITING,
    **{(s, I.OUTDATED): S.WAITING for s in S if s.role is Role.PRIMARY},
    **{(s, I.STOP): S.LEAVING for s in S},
}
"""(state, input) -> next state. A pair that is not here is our own bug."""


def next_state(state: State, given: Input) -> State:
    """The state after `given`. Raises `InternalError` where the table has none."""
    try:
        return TRANSITIONS[state, given]
    except KeyError:
        raise InternalError(f"no transition from {state.name} on {given.name}") from None


@dataclass(frozen=True, slots=True)
class Candidate:
    """What decides between two hosts of which neither serves. The greater one goes first."""

    shadowing: bool
    stored_epoch: int
    served: bool
    preferred: bool
    name: str

    def goes_before(self, other: Candidate) -> bool:
        """Whether this one is to serve. Total and antisymmetric for different names."""
        mine = (self.shadowing, self.stored_epoch, self.served, self.preferred)
        theirs = (other.shadowing, other.stored_epoch, other.served, other.preferred)
        return mine > theirs or (mine == theirs and self.name < other.name)

    def flags(self) -> int:
        """The booleans as heartbeat flags."""
        return self.shadowing | self.served << 1 | self.preferred << 2

    @classmethod
    def from_heartbeat(cls, flags: int, stored_epoch: int, name: str) -> Candidate:
        """The peer's candidate."""
        return cls(bool(flags & 1), stored_epoch, bool(flags & 2), bool(flags & 4), name)


class Do(Enum):
    """What a node must do after a change of its host's state."""

    CHECK_LINK = "check whether it is we who are cut off"
    FENCE = "fence the peer"
    ASK = "ask the witness whether we may act alone"
    LEAVE_ADDRESS = "let others answer for the service address"
    TAKE_ADDRESS = "answer for the service address again"
    STORE = "store epoch and role"
    SERVE = "be heard, with no connections"
    RESUME = "be heard again, with the connections that were taken over before the daemon's restart"
    TAKE_OVER = "be heard, with the shadow connections"
    ARM = "tighten the rules"
    PROTECT = "open new connections towards the backup"
    RELEASE = "let everything go unprotected"
    SHADOW = "start with an empty shadow table"
    INVALIDATE = "the shadows can't be continued"
    SILENCE = "be silent, forget all connections"


_WELL = frozenset((S.SHADOWING, S.PROTECTED, S.ARMING, S.CLAIMING, S.LEAVING))
_FAILURES = frozenset((I.STORE_FAILED, I.FENCE_FAILED, I.LINK_DOWN, I.NO_FENCE, I.DENIED, I.OUTDATED, I.APP_FAILED))
_PEER_LOST = frozenset((I.FENCED, I.ACCEPTED, I.OUTLASTED))


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state, for the log and for people."""

    before: State
    after: State
    given: Input
    reason: str

    @property
    def level(self) -> str:
        """How loud it is in the log: `error` if protection is lost, or a person has to do something about a host;
        `warning` for what passes by itself, or was to be expected."""
        given, protecting = self.given, (S.PROTECTED, S.BACKUP_LOST, S.DOUBT)
        if given in _FAILURES or given in _PEER_LOST or self.after is S.REFUSED:
            return "error"
        if self.after is S.UNPROTECTED and self.before in protecting:
            return "error"
        return "info" if self.after in _WELL or given is I.APP_WELL else "warning"
