"""The takeover: the clients of all connections hear their replica from now on, or that their connection is over."""

from __future__ import annotations

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.backoff import BackoffRevert
from nfq_failover.core.shadow.connection import Die, Forget, Shadow, ShadowConnection
from nfq_failover.core.shadow.divergence import Divergence
from nfq_failover.core.shadow.feeding import Feeding
from nfq_failover.core.shadow.holding import Holding
from nfq_failover.core.shadow.lengths import Lengths
from nfq_failover.core.shadow.recovery import Recovery
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.shadow.resets import Resets
from nfq_failover.core.shadow.strays import Stray, Strays, unanswered
from nfq_failover.core.shadow.wholeness import Wholeness
from nfq_failover.core.tcp.input_count import InputCount
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import diff

NEVER_READY = "the replica was never ready"
RESET_EARLY = "its client's reset has come before its bytes"
LATE = "the replica was late or behind, and had not caught up"


class Takeover:
    """Takes connections over, and looks after what their clients do then."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        flows: dict[FlowKey, ShadowConnection],
        numbers: dict[int, ShadowConnection],
        repair: Repair,
        divergence: Divergence,
        lengths: Lengths,
        feeding: Feeding,
        resets: Resets,
        strays: Strays,
        wholeness: Wholeness,
        holding: Holding,
        *,
        die: Die,
        forget: Forget,
    ) -> None:
        """`flows` and `numbers` are the table's; `die` and `forget` are its ways to end a connection."""
        self._settings = settings
        self.out = out
        self._flows = flows
        self._repair = repair
        self._divergence = divergence
        self._lengths = lengths
        self._feeding = feeding
        self._resets = resets
        self._strays = strays
        self._wholeness = wholeness
        self._holding = holding
        self._die = die
        self._forget = forget
        self._brought = InputCount()
        self.backoff = BackoffRevert(numbers, out)
        self.recovery = Recovery(numbers, out)

    def take_over(self, now: float) -> tuple[int, int]:
        """Every connection is ours now. Returns how many go on, and how many are reset."""
        self._brought.clear()
        going, reset = 0, 0
        taken: list[ShadowConnection] = []
        for connection in list(self._flows.values()):
            if connection.state is Shadow.ACTIVE:
                going += connection.living  # it was handed over before
                continue
            if connection.ended and self._left_behind(connection):
                self._forget(connection)
                continue
            over = connection.closing.closed_at is not None or connection.inward.reset_by_client
            if connection.state is Shadow.SHADOW and not over and not connection.ended:
                reason = LATE if connection.late else self._divergence.at_takeover(connection, now)
                if reason:
                    self._feeding.begin(connection, reason, now, tell=False)
            if over and not connection.ended:
                if connection.inward.reset_by_client and connection.inward.unread:
                    self._wholeness.lacks(connection.conn, connection.flow, RESET_EARLY)
                if not self._feeding.drains(connection):
                    self._forget(connection)  # the client has been told the end, or has told it
            elif connection.state is Shadow.SHADOW:
                self.be_heard(connection, now)
                taken.append(connection)
                going += connection.living
            elif connection.state in (Shadow.DEAD, Shadow.FED):
                self.cut(connection, now)
                reset += 1
            elif connection.unready is not None or connection.flow in self._strays.flows:
                self._lacks(connection)
                connection.give_up(NEVER_READY)  # its client has seen a SYN-ACK all the same
                self.cut(connection, now)
                reset += 1
            else:
                self._forget(connection)  # for all that is known its client waits for a SYN-ACK: the next SYN is native
                self._resets.tell(unanswered(connection.open), now)
        reset += self._cut_strays(now)
        if self._settings.revert_backoff:
            self.backoff.begin(taken, now)
        return going, reset

    def be_heard(self, connection: ShadowConnection, now: float) -> None:
        """The client of one connection in the shadow hears us from now on."""
        connection.take_over(self.out, now)
        self._brought.begin(connection.flow, connection.inward.held)
        self._repair.watch_lag(connection, now)
        self._holding.goes_on(connection, now)
        self.recovery.begin(connection, now)
        self._lengths.behind(connection, now)

    def over(self, connection: ShadowConnection) -> None:
        """A connection is forgotten."""
        if self._brought.follows(connection.flow):
            self._brought.end(connection.flow, connection.inward.rcv_nxt)

    def brought(self) -> tuple[int, int]:
        """How many of the connections that were taken over have brought something until now, and how many bytes."""
        for connection in self._flows.values():
            if connection.state is Shadow.ACTIVE:  # perhaps from before the daemon's start: it counts from now on
                self.over(connection)
                self._brought.begin(connection.flow, connection.inward.rcv_nxt)
        return self._brought.connections, self._brought.size

    def cut(self, connection: ShadowConnection, now: float) -> None:
        """Tell the client of a connection that can't be continued that it is over."""
        self._lacks(connection)
        connection.cut()
        stray = self._strays.flows.get(connection.flow)
        if stray is not None and stray.told.conn == connection.conn:
            connection.acceptance.primary_has_sent(connection.seen.offset(stray.told.seq))
        self._resets.tell(connection, now)
        self.out.mishaps.note("connection reset at the takeover", connection.reason, connection.flow, now)
        if connection.state is Shadow.FED:
            self._feeding.drain(connection, now)

    def _left_behind(self, connection: ShadowConnection) -> bool:
        """Whether its client has gone on, by a connection from the same port that has no replica."""
        stray = self._strays.flows.get(connection.flow)
        return stray is not None and _later(stray, connection)

    def _cut_strays(self, now: float) -> int:
        """Tell the clients of connections that never had a replica. Returns how many there are."""
        found = [
            stray
            for stray in self._strays.take()
            if (have := self._flows.get(stray.flow)) is None or _later(stray, have)
        ]
        for stray in found:
            self._resets.tell(stray, now)
            self.out.mishaps.note("connection reset at the takeover", "it had no replica", stray.flow, now)
        return len(found)

    def _lacks(self, connection: ShadowConnection) -> None:
        """Note if bytes are missing that the client has sent, and will not send again."""
        hole = connection.inward.inbound.has_islands or connection.gap.primary_rcv_nxt > connection.inward.held
        if hole and connection.state is not Shadow.DEAD:
            self._wholeness.lacks(connection.conn, connection.flow, "bytes were lost at the takeover")

    def cut_dead(self, now: float) -> None:
        """This host serves: clients of connections that can't be continued may be told so."""
        for connection in self._flows.values():
            if connection.state in (Shadow.DEAD, Shadow.FED) and not connection.heard and not connection.ended:
                self.cut(connection, now)

    def heard_client(
        self,
        connection: ShadowConnection,
        mapping: Translation,
        offset: int,
        seg: Segment,
        before: int,
        ends: bool,
        now: float,
    ) -> None:
        """A client has sent `seg`, at `offset` of its stream; it had acknowledged everything before `before`. `ends`:
        it has nothing beyond what it acknowledges now."""
        resending = connection.resending
        if resending.next is not None:
            resending.on_client_ack(mapping, connection.output.snd_una - max(before, 0), self.out, now)
        self.recovery.heard(connection, before, now)
        if connection.output.snd_una > before or ends:
            self._divergence.client_has(connection, now)
            self._lengths.behind(connection, now)
        if seg.payload_len and resending.stuck(offset, now, self._settings.hole_deadline_ms / 1000):
            self._die(connection, "bytes were acknowledged that this host never had", now)
            self._resets.tell(connection, now)  # not from `seg`: its ACK number is already the replica's


def _later(stray: Stray, connection: ShadowConnection) -> bool:
    """Whether the primary has numbered it after that connection, which had the same port."""
    return diff(stray.told.conn, connection.conn) > 0
