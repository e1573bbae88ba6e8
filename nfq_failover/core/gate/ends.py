"""The primary's ends: holds them, asks the backup, and decides who has failed (see end_gate.py for the rules)."""

from __future__ import annotations

from collections.abc import Callable

from nfq_failover.constants import FIN, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import Gate, PrimaryConnection
from nfq_failover.core.gate.end_gate import EndGate, EndQuestions, Judgement
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.wire.records import End, EndAsked, EndKind
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff


class PrimaryEnds:
    """The ends of all connections. `numbers` is the primary's table by connection number.

    `unprotect(connection, reason, now)` gives a connection up; `close(connection, reason, now)` forgets it after an
    RST. `on_failure(reason)` is called when the application has failed; it returns whether the service moves: then
    nothing more is to leave this host. `hand_over(connection, reason, now)` is called instead if only the connection
    is to move; it returns whether it does.
    """

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        numbers: dict[int, PrimaryConnection],
        unprotect: Callable[[PrimaryConnection, str, float], None],
        close: Callable[[PrimaryConnection, str, float], None],
    ) -> None:
        self.out = out
        self.numbers = numbers
        self.on_failure: Callable[[str, float], bool] = lambda reason, now: False
        self.hand_over: Callable[[PrimaryConnection, str, float], bool] = lambda connection, reason, now: False
        self._moves = settings.on_app_failure != "off"
        self._alone = settings.on_app_failure == "connection"
        self._deadline_s = settings.end_deadline_ms / 1000
        # What the backup told unasked was before it had our digests: streams that differ are nobody's failure.
        self._failures = 1 if settings.divergence == "off" else 2
        self._checked = settings.health_checked
        self.well_at: float | None = None  # when a check of our application has last begun that ended well
        self._unprotect = unprotect
        self._close = close
        self.questions = EndQuestions(out, self._question)

    # ------------------------------------------------------------------------------------ what our TCP sends

    def outbound(self, connection: PrimaryConnection, event: PacketQueued, seg: Segment, now: float) -> bool:
        """Look at a segment of a protected connection. True: it was judged here. Else it goes on as usual, perhaps
        changed: without the FIN that is held, or at the byte before it."""
        gate = connection.end
        if gate is not None and gate.passed:
            return False
        if not seg.flags & (FIN | RST):
            if gate is None or not gate.held or diff(seg.seq, gate.at) <= 0:
                return False
            return self._before_end(event, seg, gate)
        if gate is None:
            gate = connection.end = EndGate(now)
        first = not gate.held
        kind = EndKind.RST if seg.flags & RST else EndKind.FIN
        # A bare RST answers a client's segment, with the number that the client expects (RFC 9293 section 3.10.7.1).
        at = (seg.seq_end - 1) & MASK if kind is EndKind.FIN else connection.snd_nxt
        gate.hold(kind, at, now)
        if first and gate.judge(connection.snd_nxt, self._taken(connection), self._deadline_s) is Judgement.SAME:
            gate.passed = True  # the replica was first
            self.questions.stop(connection.conn)
            return False
        if first:
            self.questions.start(connection.conn, now)
        if kind is EndKind.FIN and seg.payload_len:
            return self._before_end(event, seg, gate)
        if kind is EndKind.FIN:
            seg.set_flags(seg.flags & ~FIN)
            connection.note_ack(seg, now)
        self.out.drop(event.queue, event.packet_id, "end-held")
        return True

    def _before_end(self, event: PacketQueued, seg: Segment, gate: EndGate) -> bool:
        """Let a segment go without the end that is held."""
        if not event.complete:
            self.out.drop(event.queue, event.packet_id, "incomplete-packet")  # the kernel will send it again
            return True
        if seg.flags & FIN:
            seg.set_flags(seg.flags & ~FIN)
        else:
            seg.set_seq(gate.at)
        seg.changed = True
        return False

    # ------------------------------------------------------------------------------------ what the backup says

    def _question(self, conn: int) -> EndAsked | None:
        connection = self.numbers.get(conn)
        if connection is None or connection.end is None or connection.state is not Gate.PROTECTED:
            return None
        gate = connection.end
        if gate.passed:
            return None
        return EndAsked(conn, gate.at if gate.held else connection.snd_nxt, gate.kind)

    @staticmethod
    def _taken(connection: PrimaryConnection) -> int:
        return connection.client.seq(connection.kernel_ack)

    def on_end(self, record: End, now: float) -> None:
        """Where the replica's stream is."""
        connection = self.numbers.get(record.conn)
        if connection is None or connection.state is not Gate.PROTECTED:
            return
        gate = connection.end
        if gate is None:
            if record.kind is EndKind.OPEN:
                return
            gate = connection.end = EndGate(now)
        if gate.passed:
            return
        first = gate.replica is None
        gate.answered(record, now)
        alive = self._alive(gate)
        judgement = gate.judge(connection.snd_nxt, self._taken(connection), self._deadline_s, alive)
        if judgement is Judgement.SAME:
            self.questions.stop(connection.conn)
            self._release(connection, gate, now)
        elif judgement is Judgement.REPLICA_FAILED:
            self._give_up(connection, self._replica_fault(connection, gate), now)
        elif judgement is Judgement.APPLICATION_FAILED:
            gate.failures += 1
            if gate.failures >= self._failures:
                self._failed(connection, gate, now)
        elif first and not gate.held:
            self.questions.start(connection.conn, now)

    def _alive(self, gate: EndGate) -> bool:
        """Our application has passed a check that began after the replica's end. Without checks it is assumed."""
        if not self._checked or gate.ended_at is None:
            return True
        return self.well_at is not None and self.well_at > gate.ended_at

    @staticmethod
    def _replica_fault(connection: PrimaryConnection, gate: EndGate) -> str:
        replica = gate.replica
        if replica is None or replica.kind is EndKind.OPEN:
            return "the replica is too far behind the server's end"
        ahead = diff(replica.seq, gate.at if gate.held else connection.snd_nxt)
        how = "reset" if replica.kind is EndKind.RST else "closed"
        if ahead < 0:
            return f"the replica has {how} the connection {-ahead} bytes early"
        return f"the replica has {how} the connection, the server has not"

    def _failed(self, connection: PrimaryConnection, gate: EndGate, now: float) -> None:
        ended = "reset" if gate.kind is EndKind.RST else "closed"
        if not self._moves:
            self._give_up(connection, f"the server has {ended} the connection, its replica has not", now)
            return
        port = connection.flow[1]
        if self._alone:
            if self.hand_over(connection, f"the server has {ended} it, its replica has not", now):
                self.questions.stop(connection.conn)
            return
        reason = f"the application has failed: it has {ended} connection {connection.conn} (client port {port}), "
        self.on_failure(reason + "its replica has not", now)  # if it can't move now, the next answer asks again

    def _give_up(self, connection: PrimaryConnection, reason: str, now: float) -> None:
        self.questions.stop(connection.conn)
        self._unprotect(connection, reason, now)

    def _release(self, connection: PrimaryConnection, gate: EndGate, now: float) -> None:
        connection.release_end(self.out)
        if gate.kind is EndKind.RST:
            self._close(connection, "reset by the server", now)

    def holds(self, connection: PrimaryConnection) -> bool:
        """Whether an end is held: such a connection must be remembered though our TCP may have forgotten it."""
        return connection.end is not None and connection.end.held

    def clear(self) -> None:
        """Forget everything."""
        self.questions.clear()
