"""The ends of all protected connections of this host: they are held here, and the backup is asked about them until it
is clear who has failed. The rules are in end_gate.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nfq_failover.constants import ACK, FIN, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.gate.end_gate import ASK_MAX_S, EndGate, Judgement
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import End, EndAsked, EndKind
from nfq_failover.wire.segment import Segment
from nfq_failover.wire.seqnum import MASK, diff

ASK_FIRST_S = 0.01


@dataclass(frozen=True, slots=True)
class ApplicationFailed:
    """A finding: our application has ended a connection that its replica goes on with. `alone`: only the connection is
    to move, not the service."""

    connection: GatedConnection
    reason: str
    alone: bool


class EndQuestions:
    """Asks the backup about the ends that are not decided, by connection number, again and again until stopped."""

    def __init__(self, out: Outbox, ask: Callable[[int], EndAsked | None]) -> None:
        """`ask` makes the question for a connection, or None once there is no point in it."""
        self._out = out
        self._ask = ask
        self._timers: TimerQueue[int] = TimerQueue()
        self._waits: dict[int, float] = {}

    def start(self, conn: int, now: float) -> None:
        """Ask now, and again until `stop`."""
        self._waits[conn] = ASK_FIRST_S
        self._put(conn, now)

    def stop(self, conn: int) -> None:
        """Ask no more about this connection."""
        self._waits.pop(conn, None)
        self._timers.cancel(conn)

    def clear(self) -> None:
        """Ask no more about any connection."""
        self._waits.clear()
        self._timers.clear()

    def _put(self, conn: int, now: float) -> None:
        question = self._ask(conn)
        if question is None:
            self.stop(conn)
            return
        self._out.record(question)
        wait = self._waits[conn]
        self._waits[conn] = min(2 * wait, ASK_MAX_S)
        self._timers.set(conn, now + wait)

    def on_timer(self, now: float) -> None:
        """Repeat what was not decided."""
        for conn in self._timers.pop_due(now):
            self._put(conn, now)

    def poll_timeout(self) -> float | None:
        """Returns the earliest deadline."""
        return self._timers.next()


class GateEnds:
    """Judges the ends of all connections. `numbers` is the gate's table by connection number.

    `part(connection, reason, now)` gives a connection up, and lets its replica be fed on; `close(connection, reason,
    now)` forgets it after an RST; `replicas_hang()` says whether no replica seems to go on, `replica_whole()` whether
    the backup's application has got all that clients have sent. What was found of our application is put into
    `findings`, again with each answer of the backup, as long as nothing has come of it.
    """

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        numbers: dict[int, GatedConnection],
        part: Callable[[GatedConnection, str, float], None],
        close: Callable[[GatedConnection, str, float], None],
        *,
        replicas_hang: Callable[[], bool],
        replica_whole: Callable[[], bool],
    ) -> None:
        self.out = out
        self.numbers = numbers
        self.findings: deque[ApplicationFailed] = deque()
        self._settings = settings
        # What the backup has told unasked, it may have told before it had our digests: if the streams differ, nobody
        # has failed.
        self._failures = 1 if settings.divergence == "off" else 2
        self._well_at: float | None = None
        self._part = part
        self._close = close
        self._replicas_hang = replicas_hang
        self._replica_whole = replica_whole
        self.questions = EndQuestions(out, self._question)

    @property
    def _deadline_s(self) -> float:
        return self._settings.end_deadline_ms / 1000

    @property
    def _alone(self) -> bool:
        return self._settings.on_app_failure == "connection"

    def note_well(self, began_at: float) -> None:
        """A check of our application has ended well; this is when it began."""
        self._well_at = began_at

    # ------------------------------------------------------------------------------------ what our TCP sends

    def outbound(self, connection: GatedConnection, event: PacketQueued, seg: Segment, now: float) -> bool:
        """Look at a segment of a protected connection. True: it was judged here. Else it goes on as usual, perhaps
        changed: without the FIN that is held, or at the byte before it."""
        end = connection.end
        if end is not None and end.passed:
            return False
        if not seg.flags & (FIN | RST):
            if end is None or not end.held or diff(seg.seq, end.at) <= 0:
                return False
            return self._before_end(seg, end)
        if end is None:
            end = connection.begin_end(now)
        first = not end.held
        kind = EndKind.RST if seg.flags & RST else EndKind.FIN
        # A bare RST answers a client's segment, with the number that the client expects (RFC 9293 section 3.10.7.1).
        at = (seg.seq_end - 1) & MASK if kind is EndKind.FIN else connection.own.snd_nxt_seq
        end.hold(kind, at, now, kind is EndKind.RST and not seg.flags & ACK)
        if first and end.judge(connection.own.snd_nxt_seq, self._taken(connection), self._deadline_s) is Judgement.SAME:
            end.confirm()  # the replica was first
            connection.held_data.release_all(self.out)
            self.questions.stop(connection.conn)
            return False
        if first:
            self.questions.start(connection.conn, now)
        if kind is EndKind.FIN and seg.payload_len:
            return self._before_end(seg, end)
        if kind is EndKind.FIN:
            seg.set_flags(seg.flags & ~FIN)
            connection.note_ack(seg, now)
        self.out.drop(event.queue, event.packet_id, "end-held")
        return True

    def _before_end(self, seg: Segment, end: EndGate) -> bool:
        """Let a segment go without the end that is held."""
        if seg.flags & FIN:
            seg.set_flags(seg.flags & ~FIN)
        else:
            seg.set_seq(end.at)
        seg.mark_changed()
        return False

    # ------------------------------------------------------------------------------------ what the backup says

    def _question(self, conn: int) -> EndAsked | None:
        connection = self.numbers.get(conn)
        if connection is None or connection.end is None or connection.state is not Gate.PROTECTED:
            return None
        end = connection.end
        if end.passed:
            return None
        return EndAsked(conn, end.at if end.held else connection.own.snd_nxt_seq, end.kind)

    @staticmethod
    def _taken(connection: GatedConnection) -> int:
        return connection.own.client.seq(connection.own.rcv_nxt)

    def on_end(self, record: End, now: float) -> None:
        """The backup has told where its replica's stream is."""
        connection = self.numbers.get(record.conn)
        if connection is None or connection.state is not Gate.PROTECTED:
            return
        end = connection.end
        if end is None:
            if record.kind is EndKind.OPEN:
                return
            end = connection.begin_end(now)
        if end.passed:
            return
        first = end.replica is None
        end.answered(record, now)
        alive = self._alive(end)
        seqs = connection.own.snd_nxt_seq, self._taken(connection)
        judgement = end.judge(*seqs, self._deadline_s, alive, self._replicas_hang(), connection.client_reset)
        if judgement is Judgement.SAME:
            self.questions.stop(connection.conn)
            self._release(connection, end, now)
        elif judgement is Judgement.REPLICA_FAILED:
            self._give_up(connection, self._replica_fault(connection, end), now)
        elif judgement is Judgement.APPLICATION_FAILED:
            if end.count_failure() >= self._failures:
                self._failed(connection, end, now)
        elif first and not end.held:
            self.questions.start(connection.conn, now)

    def _alive(self, end: EndGate) -> bool:
        """Whether our application has passed a check that began after the replica's end; without checks it has."""
        if not self._settings.health_checked or end.ended_at is None:
            return True
        return self._well_at is not None and self._well_at > end.ended_at

    @staticmethod
    def _replica_fault(connection: GatedConnection, end: EndGate) -> str:
        replica = end.replica
        if end.held and end.bare and connection.client_reset:
            return "the client has reset the connection, and the replica has not got that"
        if replica is None or replica.kind is EndKind.OPEN:
            return "the replica is too far behind the server's end"
        ahead = diff(replica.seq, end.at if end.held else connection.own.snd_nxt_seq)
        how = "reset" if replica.kind is EndKind.RST else "closed"
        if ahead < 0:
            return f"the replica has {how} the connection {-ahead} bytes early"
        return f"the replica has {how} the connection, the server has not"

    def _failed(self, connection: GatedConnection, end: EndGate, now: float) -> None:
        ended = "reset" if end.kind is EndKind.RST else "closed"
        may_move = self._alone or self._replica_whole() or self._all_ended()
        if self._settings.on_app_failure == "off" or not may_move:
            self._give_up(connection, f"the server has {ended} the connection, its replica has not", now)
            return
        if self._alone:
            reason = f"the server has {ended} it, its replica has not"
        else:
            reason = f"the application has failed: it has {ended} connection {connection.conn} "
            reason += f"(client port {connection.flow[1]}), its replica has not"
        self.findings.append(ApplicationFailed(connection, reason, self._alone))

    def _all_ended(self) -> bool:
        """Whether our server has ended everything at once. An application that has missed input may well go on where
        ours ends: a single such end proves nothing of ours, and the service must not move to that one for it."""
        held = sum(c.end is not None and c.end.held for c in self.numbers.values())
        return held > 1 and all(
            c.own.fin_sent or (c.end is not None and (c.end.held or c.end.passed)) for c in self.numbers.values()
        )

    def _give_up(self, connection: GatedConnection, reason: str, now: float) -> None:
        self.questions.stop(connection.conn)
        self._part(connection, reason, now)

    def _release(self, connection: GatedConnection, end: EndGate, now: float) -> None:
        connection.release_end(self.out)
        if end.kind is EndKind.RST:
            self._close(connection, "reset by the server", now)

    def holds(self, connection: GatedConnection) -> bool:
        """Whether an end is held: such a connection must be remembered though our TCP may have forgotten it."""
        return connection.end is not None and connection.end.held

    def clear(self) -> None:
        """Forget everything."""
        self.questions.clear()
        self.findings.clear()
