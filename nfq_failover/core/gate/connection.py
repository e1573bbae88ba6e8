"""One connection on the host that serves: its state, and the parts that each have their own.

What our TCP has said is in `own` (own_tcp.py), what the client may be told in `acks` (ack_gate.py), what is kept of the
client's stream in `retained` (retained.py), and how it ends in `end` (end_gate.py). The SYN-ACK waits until the replica
can continue the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from nfq_failover.constants import ACK, FIN, RST
from nfq_failover.core.gate.ack_gate import AckGate
from nfq_failover.core.gate.distance import Distance
from nfq_failover.core.gate.end_gate import EndGate
from nfq_failover.core.gate.held_data import HeldData
from nfq_failover.core.gate.own_tcp import OwnTcp
from nfq_failover.core.gate.retained import Retained
from nfq_failover.core.outbox import Outbox
from nfq_failover.errors import InternalError
from nfq_failover.wire.records import Confirm, EndKind, Open, Opened
from nfq_failover.wire.segment import FlowKey, Segment

END_LINGER_S = 2.0  # three repeats of the client's FIN: 0.2, 0.6 and 1.4 s after the first
CATCH_UP_S = 0.5  # how long acknowledgements are held for a backup that is behind
CATCH_UP_FIRST_S = 2.0  # how long they are not, after that; doubled each time
CATCH_UP_MAX_S = 60.0
FEED_LINGER_S = (
    10.0  # how long a replica may stand still that lacks the end of a connection which our TCP has forgotten
)
FED_HOLD_S = 2.0  # how long acknowledgements wait for a replica that is only fed, and takes nothing

SYN_UNSEEN = "opened before the rules were there"
BEFORE_BACKUP = "opened before the backup joined"
NOT_READY = "replica not ready"
STANDS_STILL = "the replica does not take what the client sends"
BEHIND = "the replica is too far behind"
GIVEN_UP = "the replica was too far behind, and was given up"
NOBODY_GOES_ON = "the backup's application stands still"
AWAITED: Final = frozenset((NOT_READY, STANDS_STILL, BEHIND, NOBODY_GOES_ON))
"""Reasons that may pass: the backup goes on with the replica, and the connection is protected once it has caught up."""


class Gate(Enum):
    """Where a connection stands on the host that serves."""

    SYN_HELD = "syn-held"
    CATCHING_UP = "catching-up"
    PROTECTED = "protected"
    FED = "fed"  # not protected, but the replica is to get what the client sends
    UNPROTECTED = "unprotected"
    HANDED = "handed-over"  # see core/gate/handover.py: nothing is ever sent for it
    CLOSED = "closed"


_OVER = "RST, our TCP has forgotten it, or a new connection has taken its place"

GATE_MOVES: Final = {
    (Gate.SYN_HELD, Gate.PROTECTED): "the replica is ready",
    (Gate.SYN_HELD, Gate.UNPROTECTED): "deadline, no replica goes on, options differ, TCP-MD5 or TCP-AO, no backup",
    (Gate.SYN_HELD, Gate.CLOSED): "RST, or a new connection has taken its place",
    (Gate.UNPROTECTED, Gate.CATCHING_UP): "the replica was late or behind, and may lack what the client was told",
    (Gate.UNPROTECTED, Gate.PROTECTED): "the replica was late, and lacks nothing",
    (Gate.UNPROTECTED, Gate.CLOSED): _OVER,
    (Gate.CATCHING_UP, Gate.PROTECTED): "the replica has caught up",
    (Gate.CATCHING_UP, Gate.UNPROTECTED): "not in time, backup gone for good, replica lost, bytes lost",
    (Gate.CATCHING_UP, Gate.CLOSED): _OVER,
    (Gate.PROTECTED, Gate.FED): "the replica's output differs, or ends elsewhere; the backup's MTU has fallen",
    (Gate.CATCHING_UP, Gate.FED): "the replica's output differs",
    (Gate.UNPROTECTED, Gate.FED): "the replica was late, and its output differs",
    (Gate.FED, Gate.UNPROTECTED): "backup gone for good, replica lost, bytes lost",
    (Gate.FED, Gate.CLOSED): _OVER,
    (Gate.PROTECTED, Gate.UNPROTECTED): "backup gone for good, replica lost or too far behind, bytes lost",
    (Gate.PROTECTED, Gate.HANDED): "its server has failed, and it alone moves",
    (Gate.PROTECTED, Gate.CLOSED): _OVER,
    (Gate.HANDED, Gate.UNPROTECTED): "the backup never had it: given back",
}
"""Which state may follow which, and what leads there. A connection begins in one of `GATE_STARTS`."""

GATE_STARTS: Final = {
    Gate.SYN_HELD: "SYN-ACK of our TCP",
    Gate.UNPROTECTED: "found open when the daemon started",
}


class GatedConnection:
    """Holds the state of one connection. `reason`: why it is not protected. `gated`: acknowledgements are held back,
    since the replica may go on with the connection. `fed`: its replica can't, but is to get what the client sends.
    `distance`: how far the replica is behind; `held_data`: what the client has to wait for because of that.
    `missing_from`: from here on no replica will get what the client sends; None if that is no matter. `missed`: the
    client has sent something there, which `counts`, or is only warned of. `written_to`: how far the client has sent
    bytes then, for all that was copied. `client_reset`: its client has reset it, for all that was copied.

    `told_served`: the backup has heard that it has no replica. `shadowed`: the backup has an entry of it, though it
    can't continue it. `retry_s`: how long to wait for the backup's next answer. `syn_ack` is the packet that is held;
    `end` is there once either server has ended its stream.
    """

    __slots__ = (
        "_lacked",
        "acks",
        "backup_established",
        "both_ended",
        "catch_up_at",
        "catch_up_s",
        "client_reset",
        "conn",
        "counts",
        "distance",
        "end",
        "fed",
        "flow",
        "gated",
        "gone_at",
        "held_data",
        "missed",
        "missing_from",
        "open",
        "opened_at",
        "own",
        "reason",
        "retained",
        "retry_s",
        "shadowed",
        "state",
        "syn_ack",
        "told_served",
        "waits_since",
        "written_to",
    )

    def __init__(
        self, opening: Open, now: float, state: Gate = Gate.SYN_HELD, reason: str = "opening", rcv_edge: int = 0
    ) -> None:
        """`rcv_edge`: the right window edge that our TCP's SYN-ACK allows. Raises `InternalError` for a state in which
        no connection begins."""
        if state not in GATE_STARTS:
            raise InternalError(f"no connection begins {state.value}")
        self.flow: FlowKey = opening.flow
        self.open = opening
        self.conn = opening.conn
        self.state = state
        self.reason = reason
        self.gated = self.fed = False
        self.waits_since: float | None = None  # for a replica that is fed, and takes nothing
        self.own = OwnTcp(opening, rcv_edge, now)
        self.retained = Retained(self.own)
        self.acks = AckGate(self.own, self.retained)
        self.distance = Distance(self.own, self.acks)
        self.held_data = HeldData(opening, self.acks)
        self.end: EndGate | None = None
        self.shadowed = False
        self.backup_established = self.both_ended = False
        self.syn_ack: bytearray | None = None
        self.opened_at = now
        self.retry_s = 0.0
        self.catch_up_at = now
        self.catch_up_s = CATCH_UP_FIRST_S
        self.gone_at: float | None = None
        self._lacked: tuple[int, float] | None = None  # how far the replica was since then, once our TCP was gone
        self.missing_from: int | None = None
        self.client_reset = False
        self.counts = self.missed = False
        self.told_served = False
        self.written_to = 0

    def enter(self, state: Gate, reason: str) -> None:
        """Change the state: nothing else does. Raises `InternalError` for a move that `GATE_MOVES` does not have."""
        if (self.state, state) not in GATE_MOVES:
            raise InternalError(f"connection {self.conn}: no move from {self.state.name} to {state.name} ({reason})")
        self.state, self.reason = state, reason
        self.gated = state in (Gate.PROTECTED, Gate.CATCHING_UP)
        self.fed = state is Gate.FED
        if state is not Gate.PROTECTED:
            self.distance.speed_up()  # nobody would ever release what is held for the replica from now on
        if self.gated or self.fed:
            self.acks.shut(lenient=state is not Gate.PROTECTED)
        else:
            self.acks.open()

    @property
    def awaited(self) -> bool:
        """Whether the connection is not protected now, and may be as soon as the replica has caught up."""
        return self.reason in AWAITED

    def explain(self, reason: str) -> None:
        """The connection stays unprotected, for another reason than before."""
        self.reason = reason

    def forget_backup(self, reason: str) -> None:
        """The backup that had an entry of the connection is gone; a new one knows nothing of it."""
        self.reason = reason
        self.shadowed = False

    def note_shadowed(self) -> None:
        """The backup keeps its entry of a connection that it can't continue, until it is told that all is over."""
        self.shadowed = True

    def note_told_served(self, told: bool = True) -> None:
        """The backup hears that the connection has no replica, or is told no more of it."""
        self.told_served = told

    # ------------------------------------------------------------------------------------ what our TCP sends

    def refuses(self, seg: Segment) -> bool:
        """Whether a reset of our TCP is no end of the stream but refuses what came instead of the handshake's last ACK.
        It passes as it is: it has to say what it refuses (RFC 9293 section 3.10.7.1), and proves no failure."""
        if self.own.established or (self.end is not None and self.end.held):
            return False  # after an end that is held, our TCP answers whatever comes like that
        return not seg.flags & ACK or seg.seq != self.own.snd_nxt_seq

    def note_client_reset(self, seg: Segment) -> None:
        """Look at the copy of a client's RST: our TCP may have taken it unless it lies before what it has got."""
        if self.own.client.offset(seg.seq) >= self.own.rcv_nxt:
            self.client_reset = True

    def outlived_by(self, seg: Segment) -> bool:
        """Whether a reset of our TCP only says that it has forgotten a connection that is over on both sides: the
        client has its last acknowledgement, and acknowledges our FIN. It does so twice if our TCP has repeated the FIN
        while it was held, and the second time finds nobody."""
        own, passed = self.own, self.end is not None and self.end.passed
        over = passed and own.fin_sent and self.retained.client_ended and self.acks.told_ack >= own.rcv_nxt
        return over and not seg.flags & ACK and seg.seq == own.snd_nxt_seq

    def note_ack(self, seg: Segment, now: float) -> None:
        """Learn from a segment that is not sent (its FIN is held): what it acknowledges is owed."""
        self.own.learn(seg, now)
        self.acks.owe(now)

    @property
    def holds_end(self) -> bool:
        """Whether our server has ended and the client does not know."""
        return self.end is not None and self.end.held

    def begin_end(self, now: float) -> EndGate:
        """One of the two servers has ended its stream."""
        self.end = EndGate(now)
        return self.end

    def release_end(self, out: Outbox) -> None:
        """Send the FIN or RST that was held, with what may be acknowledged now."""
        end = self.end
        if end is None or end.passed:
            return
        self.held_data.release_all(out)
        end.confirm()
        if end.kind is not EndKind.OPEN:
            self.acks.send_end(out, RST if end.kind is EndKind.RST else FIN, end.at)

    def hold_syn_ack(self, packet: bytes | bytearray) -> None:
        """Keep the SYN-ACK until the replica is ready, instead of an earlier one."""
        self.syn_ack = bytearray(packet)

    def release_syn_ack(self, out: Outbox) -> None:
        """Send the SYN-ACK that was held."""
        if self.syn_ack is None:
            return
        seg = Segment(self.syn_ack)
        wnd = self.acks.promise_syn_ack(seg.wnd)
        self.own.learn_syn_ack(seg, wnd)
        seg.set_wnd(wnd)
        seg.seal()
        out.outward(bytes(seg.buf))

    # ------------------------------------------------------------------------------------ what the backup says

    def accept_edge(self, record: Opened) -> None:
        """The replica's TCP has a window."""
        self.acks.accept_edge(self.own.client.offset(record.rcv_edge))

    def opened(self, record: Opened, out: Outbox) -> None:
        """The replica can continue the connection: let the SYN-ACK go."""
        self.accept_edge(record)
        self.retry_s = 0.0
        if self.state is Gate.SYN_HELD:
            self.enter(Gate.PROTECTED, "")
            self.release_syn_ack(out)

    def confirm(self, record: Confirm, out: Outbox, now: float) -> None:
        """The backup holds more."""
        acks = self.acks
        before = acks.confirmed
        if not acks.confirm(record):
            return
        if record.established:
            self.backup_established = True
        if acks.confirmed > before:
            self.retry_s = 0.0
            self.waits_since = None
        self.retained.forget_settled(acks.confirmed, now)
        if self.fed and not acks.holds and acks.caught_up:
            acks.shut(lenient=True)
        if acks.holds:
            self.release_data(out)  # it says what has been confirmed, too
            acks.release(out, now)

    def release_data(self, out: Outbox) -> None:
        """The backup has told something new: send the data that need not wait any more."""
        if self.held_data:
            self.held_data.release(self.distance.sent_seq, out)

    def back_off(self, first_s: float, most_s: float) -> float:
        """Returns how long to wait before the backup is asked the next time: twice as long as the last time."""
        self.retry_s = min(max(self.retry_s * 2, first_s), most_s)
        return self.retry_s

    # ------------------------------------------------------------------------------------ protection ends or begins

    def unprotect(self, reason: str, out: Outbox) -> None:
        """Hold nothing back any more."""
        if self.state in (Gate.UNPROTECTED, Gate.HANDED, Gate.CLOSED):
            return
        held = self.state is Gate.SYN_HELD
        self.enter(Gate.UNPROTECTED, reason)
        if held:
            self.release_syn_ack(out)
        else:
            self.held_data.release_all(out)
            self.acks.let_go(out)
        self.release_end(out)

    def feed(self, reason: str, out: Outbox) -> None:
        """The replica can't continue the connection, but is to get what the client sends: the client is told no more
        than the backup has, so that a replica that is slower slows it down, but see `feed_on`."""
        self.enter(Gate.FED, reason)
        self.held_data.release_all(out)
        self.release_end(out)

    def feed_on(self, out: Outbox, now: float) -> None:
        """The replica is still to get something. One that takes nothing for some time is not waited for: the client
        goes on, and what it sends is kept."""
        if not self.acks.holds:
            return
        if not self.acks.waiting:
            self.waits_since = None
        elif self.waits_since is None:
            self.waits_since = now
        elif now - self.waits_since >= FED_HOLD_S:
            self.acks.open()
            self.acks.let_go(out)
            self.waits_since = None

    @property
    def lacks(self) -> bool:
        """Whether a replica that the client does not wait for has still to get what our TCP has taken: we keep that."""
        return (self.fed or self.awaited) and self.acks.confirmed < self.own.rcv_nxt

    def lacks_still(self, now: float) -> bool:
        """Whether it is to get that now that our TCP has forgotten the connection. It is waited for as long as it goes
        on, since what it does not get it has missed for good."""
        if self._lacked is None or self._lacked[0] < self.acks.confirmed:
            self._lacked = self.acks.confirmed, now
        return self.lacks and now - self._lacked[1] < FEED_LINGER_S

    def let_go(self, reason: str, out: Outbox, now: float) -> None:
        """The client does not wait for the replica any more, which goes on all the same."""
        self.unprotect(reason, out)
        self.distance.turn_to(waits=False)
        self._try_later(now)

    def protect_late(self, now: float, agrees: Callable[[int], bool]) -> bool:
        """The replica can continue a connection that was let go unprotected. True if it is protected now.

        A busy client would always be told more than the backup has: while the backup catches up it is told no more. A
        backup that was told not to continue the connection must have heard of its change of mind. And what the two
        servers have said must be the same: `agrees(seq)` says whether all of it before `seq` was compared, and is.
        """
        if self.state not in (Gate.UNPROTECTED, Gate.CATCHING_UP):
            return False
        distance = self.distance
        said = distance.agrees_at if self.state is Gate.CATCHING_UP else distance.furthest_seq
        if self.acks.caught_up and distance.agreed and agrees(said):
            self.enter(Gate.PROTECTED, "")
            return True
        near = not distance.turn or (distance.near and agrees(distance.returns_at))
        if self.state is Gate.UNPROTECTED and now >= self.catch_up_at and near:
            self.enter(Gate.CATCHING_UP, self.reason)
            distance.turn_to(waits=True)
            self.catch_up_at = now + CATCH_UP_S
        return False

    def give_up_catching_up(self, out: Outbox, now: float) -> bool:
        """Let go again, if the backup could not catch up in time. The next time comes later, and later."""
        if self.state is not Gate.CATCHING_UP or now < self.catch_up_at:
            return False
        if self.distance.turn:
            self.let_go(self.reason, out, now)
        else:
            self.unprotect(self.reason, out)
            self._try_later(now)
        return True

    def _try_later(self, now: float) -> None:
        self.catch_up_at = now + self.catch_up_s
        self.catch_up_s = min(self.catch_up_s * 2, CATCH_UP_MAX_S)

    def hand_over(self, reason: str) -> None:
        """Be silent about the connection: what was held is discarded."""
        self.enter(Gate.HANDED, reason)
        self.held_data.discard()
        self.acks.discard()

    def give_back(self, reason: str, out: Outbox) -> None:
        """The backup never had a connection that was handed over: it is ours again, unprotected."""
        self.enter(Gate.UNPROTECTED, reason)
        self.acks.let_go(out)
        self.release_end(out)

    # ------------------------------------------------------------------------------------ what no replica gets

    def miss_from(self, offset: int | None, counts: bool = False) -> None:
        """From `offset` on no replica will get what the client sends."""
        self.missing_from, self.counts, self.missed = offset, counts, False
        self.written_to = 0

    def note_written(self, stop: int) -> None:
        """The client has sent bytes before `stop`, which our TCP may take."""
        self.written_to = max(self.written_to, stop)

    def has_missed(self) -> bool:
        """Whether our TCP has taken bytes of the client that no replica will get; told once. A FIN alone is none."""
        start = self.missing_from
        if start is None or self.missed or self.own.rcv_nxt <= start:
            return False
        self.missed = self.written_to > start or self.own.rcv_nxt - start > 1
        return self.missed

    # ------------------------------------------------------------------------------------ when both have ended

    @property
    def living(self) -> bool:
        """Whether anything is still to come of it; if not, it is only remembered."""
        both = self.own.fin_sent and (self.both_ended or self.retained.client_ended)
        reset = self.end is not None and self.end.passed and self.end.kind is EndKind.RST
        return not both and not reset and self.gone_at is None

    def note_ended(self) -> None:
        """Our TCP says that both ends have sent their FIN."""
        self.both_ended = True

    # A client that got our FIN without the acknowledgement of its own repeats its FIN until that comes. But our TCP has
    # said it with its FIN, is gone when that is acknowledged, and answers a client that it does not know with a reset.

    @property
    def keeps_last_ack(self) -> bool:
        """Whether it is on us to acknowledge the client's FIN, and to repeat that."""
        return self.acks.holds and self.acks.fin_clamped and self.own.fin_sent and self.retained.client_ended

    def lingers(self, now: float) -> bool:
        """Whether we have to remember for the client's sake what our TCP has forgotten."""
        gone_s = self.gone_for(now)
        return self.keeps_last_ack and (self.acks.told_ack < self.own.rcv_nxt or gone_s < END_LINGER_S)

    def gone_for(self, now: float) -> float:
        """How long our TCP has been known to have forgotten it."""
        if self.gone_at is None:
            self.gone_at = now
        return now - self.gone_at

    def repeat_last_ack(self, out: Outbox) -> None:
        """The client has repeated its FIN."""
        if self.acks.confirmed >= self.own.rcv_nxt:
            self.acks.send_ack(out, self.own.rcv_nxt, [])
