"""How far the replica of one connection is behind: in the client's stream, in the server's, and in time.

Time is measured by marks, as round-trip times are: a mark is where our TCP was at some moment, and the replica's lag is
the age of the mark for as long as the replica has not come there. The clock is that of core/gate/pace.py, which stands
still while nothing is heard of the backup: a host that is silent is not a replica that is slow.
"""

from __future__ import annotations

from nfq_failover.core.gate.ack_gate import AckGate
from nfq_failover.core.gate.own_tcp import OwnTcp
from nfq_failover.wire.records import PaceTold
from nfq_failover.wire.seqnum import diff

NEAR_BYTES = 256 << 10  # a replica that is no further behind than this can catch up while a client is held


class Distance:
    """Where one replica is, beside our TCP and our server.

    `turn` is odd while the client does not wait for the replica, and `turn_seen` the latest that the backup knows of
    (wire/records/pace.py). `taken`: the first byte of the client's stream that the replica's TCP lacks; `sent_seq`: the
    end of what the replica has sent. `watched`: core/gate/pace.py looks at it from time to time. `asked_at`: when the
    backup was last asked. `latest_s`: how late the replica was at the last look. `slow`: what our server sends waits
    for the replica (held_data.py), since `slow_at`. `returns_at`: the end of what the server had sent when the
    connection was let go; `agrees_at`: the end of what either server had sent when the client began to wait for the
    replica again.
    """

    __slots__ = (
        "_acks",
        "_in_at",
        "_in_mark",
        "_in_was",
        "_out_at",
        "_out_mark",
        "_out_was",
        "_own",
        "_own_widest",
        "_replica_widest",
        "_starved_at",
        "_suspected",
        "agrees_at",
        "asked_at",
        "latest_s",
        "returns_at",
        "sent_seq",
        "slow",
        "slow_at",
        "taken",
        "turn",
        "turn_seen",
        "watched",
    )

    def __init__(self, own: OwnTcp, acks: AckGate) -> None:
        self._own = own
        self._acks = acks
        self.turn = self.turn_seen = 0
        self.taken = 0
        self.sent_seq = self._out_mark = self.returns_at = self.agrees_at = own.snd_nxt_seq
        self._in_mark = 0
        self._in_at = self._out_at = self._in_was = self._out_was = 0.0
        self._starved_at: float | None = None
        self._own_widest = self._replica_widest = 0
        self.watched = self._suspected = self.slow = False
        self.slow_at = self.latest_s = 0.0
        self.asked_at = 0.0

    # ------------------------------------------------------------------------------------ what the backup says

    def told(self, record: PaceTold) -> bool:
        """The backup has told where its replica is. Returns whether it has sent more."""
        offset = self._own.client.offset
        taken, edge = offset(record.taken), offset(record.rcv_edge)
        self.turn_seen = max(self.turn_seen, record.turn)
        self.taken = max(self.taken, taken)
        self._acks.accept_edge(edge)
        return self.sent(record.sent)

    def sent(self, seq: int) -> bool:
        """The replica has sent everything before `seq`. Returns whether that is news."""
        if diff(seq, self.sent_seq) <= 0:
            return False
        self.sent_seq = seq
        return True

    # ------------------------------------------------------------------------------------ how far it is

    @property
    def bytes_in(self) -> int:
        """Bytes of the client that our TCP has taken, and the backup does not have."""
        return max(self._own.rcv_nxt - self._acks.confirmed, 0)

    @property
    def bytes_out(self) -> int:
        """Bytes that our server has sent, and the replica has not, as far as we have been told."""
        return max(diff(self._own.snd_nxt_seq, self.sent_seq), 0)

    @property
    def starved(self) -> bool:
        """Whether the client may send nothing because of the replica, and not because of our own application.

        Both applications may have stopped reading, and either TCP's buffer may be full first. So what matters is
        whether ours has left unread less than half as much as the replica's has.
        """
        own, acks = self._own, self._acks
        if not acks.starving:
            return False
        unread = self._own_widest - (own.rcv_edge - own.rcv_nxt)
        return 2 * unread < self._replica_widest - max(acks.backup_edge - acks.confirmed, 0)

    @property
    def bytes_behind(self) -> int:
        """Bytes of both streams."""
        return self.bytes_in + self.bytes_out

    def watch(self, clock: float) -> None:
        """Measure from now on."""
        self.watched = True
        self._suspected = False
        own = self._own
        self._in_mark, self._out_mark = own.rcv_nxt, own.snd_nxt_seq
        self._in_at = self._out_at = clock
        self._in_was = self._out_was = 0.0
        self._starved_at = None
        self._note_windows()

    def unwatch(self) -> None:
        """There is nothing to measure."""
        self.watched = self.slow = False
        self.latest_s = 0.0

    def slow_down(self, clock: float) -> None:
        """The replica is late: what our server sends waits for it."""
        self.slow, self.slow_at = True, clock

    def speed_up(self) -> None:
        """Nothing waits for the replica any more."""
        self.slow = False

    def suspect(self) -> bool:
        """The replica may stand still. Returns whether that is news since the connection is watched."""
        news, self._suspected = not self._suspected, True
        return news

    def note_asked(self, now: float) -> None:
        """The backup is asked where the replica is."""
        self.asked_at = now

    def _note_windows(self) -> None:
        own, acks = self._own, self._acks
        self._own_widest = max(self._own_widest, own.rcv_edge - own.rcv_nxt)
        self._replica_widest = max(self._replica_widest, acks.backup_edge - acks.confirmed)

    def lags(self, clock: float, now: float) -> tuple[float, float, float]:
        """Returns how late the replica is in the client's stream and in the server's, and for how long the client has
        had to wait for its window."""
        lags = self._lag_in_s(clock), self._lag_out_s(clock, now), self._starved_s(clock)
        self.latest_s = max(lags)
        return lags

    def _lag_in_s(self, clock: float) -> float:
        """How late the client's stream is: the age of the mark that the backup has not confirmed, or that of the mark
        before, if there is more to confirm since."""
        if self._acks.confirmed >= self._in_mark:
            self._in_was = clock - self._in_at if self.bytes_in else 0.0
            self._in_mark, self._in_at = self._own.rcv_nxt, clock
        return max(clock - self._in_at, self._in_was)

    def _lag_out_s(self, clock: float, now: float) -> float:
        """As `_lag_in_s`, of the server's stream and what the replica has sent.

        A client that answers neither is no fault of the replica: its TCP may have had a smaller congestion window when
        the client fell silent, and sends no more before that is over.
        """
        unheard = self._own.unheard(self.sent_seq, now)
        if unheard or diff(self.sent_seq, self._out_mark) >= 0:
            self._out_was = clock - self._out_at if self.bytes_out and not unheard else 0.0
            self._out_mark, self._out_at = self._own.snd_nxt_seq, clock
        return max(clock - self._out_at, self._out_was)

    def _starved_s(self, clock: float) -> float:
        self._note_windows()
        if not self.starved:
            self._starved_at = None
        elif self._starved_at is None:
            self._starved_at = clock
        return 0.0 if self._starved_at is None else clock - self._starved_at

    @property
    def caught_up(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.bytes_in and not self.bytes_out and not self._acks.starving

    # ------------------------------------------------------------------------------------ turns

    @property
    def let_go(self) -> bool:
        """Whether the client does not wait for the replica any more."""
        return bool(self.turn & 1)

    @property
    def agreed(self) -> bool:
        """Whether the backup knows that the client waits for the replica."""
        return self.turn == self.turn_seen and not self.let_go

    def turn_to(self, waits: bool) -> None:
        """The client waits for the replica from now on, or does not. One that never was let go has no turns."""
        if waits:
            self.turn += self.turn & 1
            self.agrees_at = self.furthest_seq
            return
        self.turn += not self.turn & 1
        self.returns_at = self._own.snd_nxt_seq

    @property
    def furthest_seq(self) -> int:
        """The end of what either server has sent, as far as we have been told."""
        own, replica = self._own.snd_nxt_seq, self.sent_seq
        return own if diff(own, replica) >= 0 else replica

    @property
    def near(self) -> bool:
        """Whether a replica that was let go is worth waiting for again: it has sent what the server had sent when that
        was decided, its TCP has room, and it is not far behind."""
        own, acks = self._own, self._acks
        if diff(self.sent_seq, self.returns_at) < 0 or acks.backup_edge <= self.taken or self.starved:
            return False
        return max(own.rcv_nxt - self.taken, self.bytes_out) <= NEAR_BYTES
