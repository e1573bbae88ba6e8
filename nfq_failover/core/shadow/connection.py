"""One connection in the shadow: the replica's TCP beside the primary's, and after a takeover in its place.

`OPENING`: the client's SYN, as the primary described it, has been delivered; the replica's SYN-ACK is awaited.
`SHADOW`: the client's segments are logged, translated and delivered; the replica's output is kept until the client has
acknowledged it to the primary, and goes nowhere. `ACTIVE`: after the takeover, the output goes to the client. `FED`:
the replica can't continue the connection, but goes on getting what the client sends, since other connections may depend
on what its application makes of that (feeding.py). `DEAD`: the replica can't continue the connection, nor be fed.
Clients of the latter two are told by RST after a takeover.

What belongs to one subject is a part of its own: `header` (the client's newest header), `inward` (the client's stream),
`output` (the server's), `acceptance` (which ACKs are believed), `gap` (how far the replica is behind), `end` (who knows
of the replica's end), `closing` (what is left to do), `resending` (what the client hears after a takeover), `resync`
(after a restart of the daemon).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Final

from nfq_failover.constants import ACK, RST
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.acceptance import Acceptance
from nfq_failover.core.shadow.closing import Closing
from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.gap import Gap
from nfq_failover.core.shadow.header import ClientHeader
from nfq_failover.core.shadow.inward import Inward
from nfq_failover.core.shadow.output import Output
from nfq_failover.core.shadow.replica_end import ReplicaEnd
from nfq_failover.core.shadow.resending import Resending
from nfq_failover.core.shadow.resets import places
from nfq_failover.core.shadow.resync import Resync
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.errors import InternalError
from nfq_failover.wire.records import Open
from nfq_failover.wire.segment import Segment

SYN_RETRY_FIRST_S = 0.02
SYN_RETRY_MAX_S = 0.5


class Shadow(Enum):
    """The states of a connection in the shadow."""

    OPENING = "opening"
    SHADOW = "shadow"
    ACTIVE = "active"
    FED = "fed"
    DEAD = "dead"


LISTENS: Final = frozenset((Shadow.SHADOW, Shadow.FED))
"""What the client sends is logged and confirmed in these states."""
HEARD: Final = frozenset((Shadow.ACTIVE, Shadow.FED, Shadow.DEAD))
"""After a takeover, clients of connections in these states hear this host, if only that all is over."""

SHADOW_MOVES: Final[dict[tuple[Shadow, Shadow], str]] = {
    (Shadow.OPENING, Shadow.SHADOW): "SYN-ACK of the replica",
    (Shadow.OPENING, Shadow.DEAD): "the hosts grant different options, two versions, or the primary gave it up",
    (Shadow.SHADOW, Shadow.SHADOW): "another SYN-ACK of the replica: its TCP has begun anew",
    (Shadow.SHADOW, Shadow.ACTIVE): "takeover, or handed over alone",
    (Shadow.SHADOW, Shadow.FED): "its output differs, or the primary can't protect it: the input goes on",
    (Shadow.SHADOW, Shadow.DEAD): "replica reset or closed, two versions, or the primary went on unprotected",
    (Shadow.FED, Shadow.DEAD): "replica reset or closed, input lost, or all was delivered when the connection ended",
    (Shadow.ACTIVE, Shadow.FED): "diverged, and its replica has still to get what the client was told is there",
    (Shadow.ACTIVE, Shadow.DEAD): "hole that can't be filled, diverged, lost while the daemon was away (RST)",
}
"""Every move that a connection may make -> what leads to it. docs/design/states.py draws it."""

SHADOW_STARTS: Final[dict[Shadow, str]] = {
    Shadow.OPENING: "the primary describes it, the client's SYN is delivered",
    Shadow.ACTIVE: "restart of the daemon: it goes on",
    Shadow.DEAD: "restart of the daemon: it can't go on",
}
"""How a connection may begin."""

SHADOW_STOPS: Final[dict[Shadow, str]] = {
    Shadow.OPENING: "takeover: the next SYN is native; a client that has its SYN-ACK is told",
    Shadow.SHADOW: "another generation, or over before the takeover",
    Shadow.ACTIVE: "our TCP has forgotten it",
    Shadow.FED: "over on the primary, and all was delivered",
    Shadow.DEAD: "reset after a takeover, or over on the primary",
}
"""When a connection is forgotten."""


class ShadowConnection:
    """State of one connection; `map` is None until the replica has answered.

    `conn` is its number, the primary's or, if it alone was handed over, one of our own; `handed` is the primary's then
    (core/shadow/handover.py). `seen` is the server's stream as the client numbers it. `heard`: its client hears us.
    `restored`: it is from an earlier life of the daemon.
    `unready`: what the client had acknowledged, and its right edge, before the replica has answered.
    `turn`: whether the client waits for us (even), as the primary last said (wire/records/pace.py).
    """

    __slots__ = (
        "_asked_at",
        "_compares_since",
        "acceptance",
        "closing",
        "conn",
        "end",
        "flow",
        "gap",
        "handed",
        "header",
        "heard",
        "inward",
        "map",
        "open",
        "opened_at",
        "output",
        "reason",
        "resending",
        "restored",
        "resync",
        "seen",
        "state",
        "syn_retry_s",
        "turn",
        "unready",
    )

    def __init__(
        self, opening: Open, settings: Settings, now: float, state: Shadow = Shadow.OPENING, reason: str = ""
    ) -> None:
        """`state` and `reason`: how it goes on after a restart of the daemon. Raises `InternalError` for a state in
        which no connection begins."""
        if state not in SHADOW_STARTS:
            raise InternalError(f"no connection begins in {state.name}")
        self.open = opening
        self.flow = opening.flow
        self.conn = opening.conn
        self.state = state
        self.reason = reason
        self.opened_at = now
        self.syn_retry_s = SYN_RETRY_FIRST_S
        self.unready: tuple[int, int] | None = None
        self.seen = SeqSpace(opening.iss)
        self.map: Translation | None = None
        self.heard = self.restored = False
        self.handed = 0
        self.turn = 0
        self._asked_at = 0.0
        self._compares_since: float | None = None
        self.header = ClientHeader(opening, now)
        self.output = Output(settings.max_unacked_bytes, None if settings.divergence == "off" else Comparison())
        self.inward = Inward(opening, settings.max_log_bytes, self.header, self.output)
        self.acceptance = Acceptance(opening.tsval is not None)
        self.gap = Gap()
        self.end = ReplicaEnd()
        self.closing = Closing()
        self.resending = Resending(opening, self.header, self.inward, self.output)
        self.resync = Resync()

    # ------------------------------------------------------------------------------------ states

    def enter(self, state: Shadow, reason: str = "") -> None:
        """Go on in another state. `reason`: why it can't be continued, as people are told. Raises `InternalError` for
        a move that there is not."""
        if (self.state, state) not in SHADOW_MOVES:
            raise InternalError(f"connection {self.conn}: no move from {self.state.name} to {state.name} ({reason})")
        self.state, self.reason = state, reason

    def answered(self, mapping: Translation, wnd: int) -> None:
        """The replica has answered the client's SYN."""
        self.map = mapping
        self.seen = mapping.seen
        self.inward.opened(wnd)
        self.enter(Shadow.SHADOW)
        if self.unready is not None and self.unready[0] > max(self.output.snd_una, 0):
            self.seen.follow(self.unready[0])
            self.output.acknowledged(self.unready[0])  # it may say nothing for a long time

    def take_over(self, out: Outbox, now: float) -> None:
        """The client hears us from now on."""
        self.enter(Shadow.ACTIVE)
        self.heard = True
        self.resending.begin(self.mapping, self.ended, out, now)

    @property
    def taken_over(self) -> bool:
        """Whether it goes on here with all others, not handed over alone: then a new connection from its port is this
        host's as well, and its SYN must be seen by the gate."""
        return self.state is Shadow.ACTIVE and not self.handed

    def give_up(self, reason: str) -> None:
        """It is not continued, but remembered: nothing needs the two streams any more."""
        if self.state is Shadow.DEAD:
            self.reason = reason  # the latest counts
        else:
            self.enter(Shadow.DEAD, reason)
        self.inward.forget_bytes()
        self.output.forget_bytes()

    def feed(self, reason: str) -> None:
        """It is not continued, but its replica goes on getting what the client sends: what it answers is of no use."""
        self.enter(Shadow.FED, reason)
        if self.output.compare is not None:
            self.acceptance.primary_has_sent(self.output.compare.sent)
        self.output.discard()
        self.inward.order.let_go()

    def cut(self) -> None:
        """The client is let know that the connection is over."""
        self.heard = True

    def end_with_host(self) -> None:
        """It was taken over in an earlier life of the daemon, on a host that did not go on serving: it can't be
        continued."""
        self.give_up("the host did not go on serving after the daemon's restart")
        self.heard = False
        self.resync.give_up()

    def restore(self, mapping: Translation | None, handed: int) -> None:
        """It was taken over in an earlier life of the daemon; the parts have been restored."""
        self.heard = self.restored = True
        self.handed = handed
        self.output.stop_comparing()
        if mapping is not None:
            self.map = mapping
            self.seen = mapping.seen

    @property
    def mapping(self) -> Translation:
        """The translation of a connection that the replica has answered."""
        if self.map is None:
            raise InternalError("no translation before the replica's SYN-ACK")
        return self.map

    @property
    def ended(self) -> bool:
        """Both directions have ended and both ends have said so."""
        inward, output = self.inward, self.output
        return (
            inward.fin_in is not None
            and output.fin_out is not None
            and inward.rcv_nxt > inward.fin_in
            and output.acknowledged_to > output.fin_out
        )

    @property
    def over(self) -> bool:
        """Nobody expects it to go on: it has ended, or the primary, or the client, has ended it."""
        return self.ended or self.closing.closed_at is not None or self.inward.reset_by_client

    @property
    def living(self) -> bool:
        """Whether anything is still to come of it, here or on the primary; if not, it is only remembered."""
        cut = self.heard and (self.state in (Shadow.DEAD, Shadow.FED) or self.output.rst_out is not None)
        return not self.over and not cut

    def linger(self, now: float) -> float:
        """For how long our TCP has been known to be rid of the finished connection; like TIME_WAIT, it is kept for a
        client that repeats its FIN (RFC 9293 section 3.10.7.4, eighth)."""
        gone_s = self.closing.gone_for(now)
        return math.inf if self.state is Shadow.DEAD else gone_s

    @property
    def misses_input(self) -> bool:
        """Whether bytes of the client are left that our TCP has not taken, or never had, though the primary's has them.
        What lies behind a hole that the primary has, too, nobody has read."""
        return self.inward.inbound.end > self.inward.rcv_nxt or self.gap.primary_rcv_nxt > self.inward.held

    @property
    def late(self) -> bool:
        """The client does not wait for us, and may have been told more than we have."""
        return self.inward.late or bool(self.turn & 1)

    @property
    def was_late(self) -> bool:
        """The client has not waited for us for some time, now or earlier."""
        return self.inward.was_late or self.turn > 0

    def note_turn(self, turn: int) -> None:
        """The primary has told whether the client waits for us; perhaps by an old record."""
        self.turn = max(self.turn, turn)

    def syn_again(self) -> float:
        """The client's SYN is delivered again. Returns how long to wait before the next time."""
        self.syn_retry_s = min(self.syn_retry_s * 2, SYN_RETRY_MAX_S)
        return self.syn_retry_s

    # ------------------------------------------------------------------------------------ handed over alone

    def renumber(self, conn: int, now: float) -> None:
        """It gets a number of our own."""
        self.conn = conn
        self._asked_at = now

    def hand_over(self, number: int) -> None:
        """It alone was handed over to us by the primary, which knows it by `number`."""
        self.handed = number
        self.closing.told()

    def adopt(self) -> None:
        """This host serves: it is ours as if it had been taken over with everything else."""
        self.handed = 0
        self._compares_since = None

    def asked_for(self, now: float) -> None:
        """The primary has asked for the connection that it has handed over."""
        self._asked_at = now

    def unasked_for(self, since: float, now: float) -> float:
        """How many seconds ago, after `since`, the primary has last asked for it."""
        return now - max(self._asked_at, since)

    def compares_for(self, now: float) -> float:
        """How many seconds the handover has been waiting for the comparison."""
        if self._compares_since is None:
            self._compares_since = now
        return now - self._compares_since

    # ------------------------------------------------------------------------------------ segments

    def note_client(self, mapping: Translation, seg: Segment, ack: int, now: float) -> None:
        """Learn from the header of a client's segment, which acknowledges everything before `ack`."""
        output = self.output
        newest = ack >= output.snd_una
        if ack > output.snd_una:
            mapping.seen.follow(ack)
            output.acknowledged(ack)
        self.header.note(seg, newest, now)
        if seg.ts_off:
            mapping.note_seen_tsecr(seg.tsecr, now)

    def note_unready(self, seg: Segment, ack: int) -> None:
        """Learn from a client that has its SYN-ACK, though the replica has not answered: where it would be reset, and
        what the replica will have to be told."""
        if self.unready is None or ack >= self.unready[0]:
            self.unready = ack, ack + (seg.wnd << self.header.wscale)

    def inject(self, out: Outbox, offset: int, data: bytes = b"", flags: int = ACK) -> None:
        """Deliver a segment that we build ourselves to our TCP, with the client's newest acknowledgement."""
        self.inward.inject(self.mapping, out, offset, data, flags)

    def inject_ack(self, out: Outbox) -> None:
        """Tell our TCP what the client has acknowledged."""
        self.inward.inject(self.mapping, out, self.inward.rcv_nxt)

    def reset_own(self, out: Outbox) -> None:
        """Reset our own TCP's connection."""
        self.inward.inject(self.mapping, out, self.inward.rcv_nxt, flags=RST | ACK)

    def reset_places(self) -> list[int]:
        """The sequence numbers that the client may expect next, the most probable one first."""
        output, header = self.output, self.header
        sent = self.acceptance.primary_sent if output.compare is None else output.compare.sent
        una = max(output.snd_una, 0)
        edge = una + (header.wnd << header.wscale)
        if self.unready is not None and self.unready[0] >= una:
            una, edge = self.unready
        if self.heard and not output.discarded:
            sent = max(sent, min(output.snd_nxt, edge))
        start = self.open.iss + 1
        return places(*((start + at) & 0xFFFFFFFF for at in (una, sent, edge)))

    def reset_ack(self) -> int:
        """The client's next sequence number, as far as this host knows."""
        return self.inward.client.seq(self.inward.held)

    @property
    def perhaps_opening(self) -> bool:
        """Whether its client may be in SYN-SENT: no, it has said something, or its server has."""
        return False

    def stamps(self) -> tuple[int, int] | None:
        """TSval and TSecr of a segment to the client, as new as is known; None without timestamps."""
        return None if self.open.tsval is None else (self.header.tsecr, self.header.tsval)


GiveUp = Callable[[ShadowConnection, str], None]
"""Gives a connection up, for a reason that people are told."""
Die = Callable[[ShadowConnection, str, float], None]
"""As `GiveUp`, and tells the primary; the last argument is `now`."""
Forget = Callable[[ShadowConnection], None]
"""Drops all state of a connection."""
