"""The shadow's part in comparing the two servers' output: what may go on with the primary's stream, and what may not.

The primary sends hashes of what its server has sent (core/gate/digests.py); here they meet the replica's output, which
is kept until then. Blocks whose hashes differ are compared byte by byte: the primary is asked for them. So a
*difference* is a run of bytes that is known exactly; it has ended when `AGREE_BYTES` in a row are equal again.

- A difference that has ended is only counted: both streams have the same length before it and behind it (the `Date`
  of an HTTP response).
- One that reaches `divergence_run_bytes` makes the connection *diverged*, as do lengths that stay different
  (lengths.py): it is given up, on both hosts.
- The primary's bytes that are known are *kept instead of the replica's*, where the client has not acknowledged them: it
  goes on seeing one server, also in what our TCP sends once more.
- At a takeover a connection is reset whose last difference has not ended. What the primary has sent and the replica has
  still to send is withheld until it has been compared. Where it differs, or differed so late that the bytes have not
  come, the client decides: it is asked what it has. If it has all of the primary's bytes there, or will never need
  them, all is well; if it does not say so in time, it is reset.

A connection that was let go (core/gate/pace.py) is compared all the while: it is protected again only when everything
was compared. If a part of it can't be, it is given up.

With the policy `strict` any difference makes the connection diverged.
"""

from __future__ import annotations

from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.comparison import Comparison, differing_runs
from nfq_failover.core.shadow.connection import Die, Shadow, ShadowConnection
from nfq_failover.core.shadow.lengths import Lengths
from nfq_failover.core.shadow.parts import Parts
from nfq_failover.core.shadow.resending import INITIAL_SEGMENTS
from nfq_failover.core.shadow.unknown import ask, differing, hear
from nfq_failover.core.tcp.hashes import block_hashes, hash_seed
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.records import DIGEST_BLOCK, MAX_UNSEEN, BytesAsked, BytesSent, Digest, DigestSeen
from nfq_failover.wire.segment import Segment

UNKNOWN_BYTES = 2 * DIGEST_BLOCK  # a difference of some bytes may lie in two blocks of which nobody knows more
GAP_PENDING = MAX_UNSEEN + 1  # with this many digests behind a gap the primary no longer repeats what is missing
NOT_COMPARED = "the server's output was not compared while its client did not wait for the replica"


def _goes_on(compare: Comparison) -> str:
    """A difference that has not ended."""
    start = compare.compared if compare.last is None else compare.last[0]
    return f"the replica's output differs from byte {start} on (encrypted or random?)"


class Divergence:
    """The comparisons of all connections. `numbers` are the connections by number; `lengths` watches those of their
    outputs; `die` gives one up."""

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        numbers: dict[int, ShadowConnection],
        lengths: Lengths,
        die: Die,
    ) -> None:
        self.out = out
        self._lengths = lengths
        self._numbers = numbers
        self._die = die
        self._seed = hash_seed(settings.key)
        self._strict = settings.divergence == "strict"
        self._settings = settings
        self._timers: TimerQueue[int] = TimerQueue()
        self._parts = Parts(numbers, self._ask, self._seen, self._diverged) if self._strict else None

    # ------------------------------------------------------------------------------------ what the primary says

    def on_digest(self, record: Digest, now: float) -> None:
        """What the primary's server has sent."""
        connection = self._numbers.get(record.conn)
        if connection is None or connection.map is None or connection.state is not Shadow.SHADOW:
            return
        compare = connection.output.compare
        start = connection.map.seen.offset(record.seq)
        end = start + record.length
        if compare is None:  # we don't compare: there is nothing to be repeated
            self.out.record(DigestSeen(record.conn, connection.map.seen.seq(end), 0))
            return
        if not compare.add(start, end, record.hashes, record.marks):
            self.out.counters["digest-no-room"] += 1
        if compare.asked is not None:
            self._ask(connection, compare.asked)
        if self._advance(connection, compare, now):
            self._lengths.moved(connection, compare, now)
            if compare.compared >= end or (self._strict and max(compare.compared, compare.told) > start):
                self._seen(connection, compare)
            if self._parts is not None:
                self._parts.watch(connection, compare, now)

    def on_bytes(self, record: BytesSent, now: float) -> None:
        """The bytes that the primary was asked for."""
        connection = self._numbers.get(record.conn)
        compare = None if connection is None else connection.output.compare
        if connection is None or compare is None or connection.state is not Shadow.SHADOW:
            return
        if compare.asked is None:
            if self._parts is not None:
                self._parts.on_bytes(connection, compare, record, now)
            return
        start, end = compare.asked
        mine = connection.output.outbound.read(start, end - start)
        if connection.mapping.seen.offset(record.seq) != start or len(record.data) not in (0, end - start):
            return
        compare.answered()
        known = len(mine) == end - start and bool(record.data)
        if known:
            runs = differing_runs(mine, record.data)
            if not self._strict and connection.output.heal(start, record.data):
                self.out.counters["difference-healed"] += len(runs)
        else:
            self.out.counters["difference-unknown"] += 1
            runs = self._unknown(connection, compare, start, end)
        reason = self._note(connection, compare, start, end, runs, known)
        if reason:
            self._diverged(connection, reason, now)
        elif self._advance(connection, compare, now):
            self._seen(connection, compare)

    def _ask(self, connection: ShadowConnection, block: tuple[int, int]) -> None:
        seq = connection.mapping.seen.seq
        self.out.record(BytesAsked(connection.conn, seq(block[0]), seq(block[1])))

    def _seen(self, connection: ShadowConnection, compare: Comparison) -> None:
        told = connection.mapping.seen.seq(compare.tell())
        self.out.record(DigestSeen(connection.conn, told, compare.differences, not compare.in_step))

    # ------------------------------------------------------------------------------------ comparing

    def sent_more(self, connection: ShadowConnection, now: float) -> bool:
        """The replica has sent something. False: the connection was given up."""
        compare = connection.output.compare
        if compare is None:
            return True
        self._lengths.heard_replica(now)
        if compare.pending:
            if not self._advance(connection, compare, now):
                return False
            if not compare.pending and not self._caught_up(connection, compare, now):
                return False
            if self._parts is not None and compare.pending and not compare.after:
                if compare.compared > compare.told:
                    self._seen(connection, compare)
                self._parts.watch(connection, compare, now)
            if compare.after:
                self._send_on(connection, compare, now)
        self._lengths.moved(connection, compare, now)
        return True

    def _caught_up(self, connection: ShadowConnection, compare: Comparison, now: float) -> bool:
        """Everything that the primary has told was compared."""
        if not compare.after:
            self._seen(connection, compare)
            return True
        if not compare.in_step:
            connection.output.stop_comparing()
            self._diverged(connection, _goes_on(compare), now)
            return False
        if not compare.doubts:
            connection.output.stop_comparing()
        return True

    def client_has(self, connection: ShadowConnection, now: float) -> None:
        """After a takeover the client has acknowledged more: what was in doubt may be so no more."""
        compare = connection.output.compare
        if compare is not None and (compare.pending or self._caught_up(connection, compare, now)):
            self._send_on(connection, compare, now)

    def client_said(self, connection: ShadowConnection, seg: Segment, ack: int, now: float) -> bool:
        """After a takeover the client has sent `seg`, which acknowledges everything before `ack`. Returns whether it
        has said that it has nothing beyond."""
        compare = connection.output.compare
        if compare is None or not hear(connection, compare, seg, ack, self._settings.hole_deadline_ms / 2000, now):
            return False
        compare.client_ends(ack)
        return True

    def _send_on(self, connection: ShadowConnection, compare: Comparison, now: float) -> None:
        """After a takeover: send what may be sent, or ask the client."""
        connection.resending.resend(connection.mapping, self.out, INITIAL_SEGMENTS, now)
        ask(connection, compare, self.out, now)

    def _advance(self, connection: ShadowConnection, compare: Comparison, now: float) -> bool:
        """Compare what can be. False: the connection was given up."""
        reason = self._compare_on(connection, compare)
        if reason:
            self._diverged(connection, reason, now)
        return not reason

    def _compare_on(self, connection: ShadowConnection, compare: Comparison) -> str:
        """Compare what can be. Returns why the connection has to be given up, if so."""
        # Ends: each turn drops a digest, or moves `compared` on (it never goes back) to the end of the first one.
        while compare.pending and compare.asked is None:
            start, end, _, _ = compare.pending[0]
            if end <= compare.compared:
                compare.pending.pop(0)
                continue
            if start > compare.compared:
                if not compare.after and (self._strict or len(compare.pending) < GAP_PENDING):
                    return ""  # the one in between will be repeated
                self.out.counters["digest-lost"] += 1
                if connection.was_late and not compare.after:
                    return NOT_COMPARED
                compare.skip(start)
            before = compare.compared
            reason = self._compare_first(connection, compare)
            if reason:
                return reason
            if compare.compared == before:
                break
        connection.output.trim()
        return ""

    def _compare_first(self, connection: ShadowConnection, compare: Comparison) -> str:
        """Compare the oldest digest, as far as the replica is. Returns why the connection has to be given up."""
        start, end, hashes, _ = compare.pending[0]
        output = connection.output.outbound
        if connection.output.fin_out is not None and connection.output.fin_out < end:
            return self._ended_early(connection, compare, connection.output.fin_out)
        have = min(connection.output.end, output.end)
        if not hashes or compare.compared < output.start:
            return self._skip_to(connection, compare, output.start if hashes else end)
        first = (compare.compared - start) // DIGEST_BLOCK
        blocks = len(hashes) if have >= end else (have - start) // DIGEST_BLOCK
        if blocks <= first:
            gone = min(connection.inward.own_una, connection.output.end)
            if output.end < gone:  # there was no room for it, and the replica's TCP will not send it again
                return self._skip_to(connection, compare, gone)
            return ""
        at = compare.compared
        stop = min(end, start + blocks * DIGEST_BLOCK)
        mine = block_hashes(output.pieces(at, stop - at), self._seed)
        for own, theirs in zip(mine, hashes[first:blocks], strict=True):
            after = min(end, at + DIGEST_BLOCK)
            if own != theirs:
                compare.advance(at)
                if not compare.after:
                    self._ask(connection, compare.ask(at, after))
                    return ""
                runs = self._unknown(connection, compare, at, after)
                reason = self._note(connection, compare, at, after, runs, known=False)
                if reason:
                    return reason
            at = after
        compare.advance(stop)
        return ""

    def _skip_to(self, connection: ShadowConnection, compare: Comparison, offset: int) -> str:
        """What the first digest says of the bytes before an offset is not compared; nor the rest of the block. Returns
        why the connection has to be given up, if so."""
        start, end, hashes, _ = compare.pending[0]
        self.out.counters["digest-not-compared"] += 1
        if connection.was_late and not compare.after:
            return NOT_COMPARED
        blocks = -(-(offset - start) // DIGEST_BLOCK)
        compare.skip(min(end, start + blocks * DIGEST_BLOCK) if hashes else end)
        return ""

    def _ended_early(self, connection: ShadowConnection, compare: Comparison, end: int) -> str:
        """The replica has ended where the server goes on. If that is all, core/gate/end_gate.py judges it as an end."""
        if compare.after:
            return f"the replica has ended at byte {end}, the server has sent {compare.sent}"
        if compare.compared < end:
            self._ask(connection, compare.ask(compare.compared, min(compare.compared + DIGEST_BLOCK, end)))
            return ""
        return "" if compare.in_step else _goes_on(compare)

    def _note(
        self,
        connection: ShadowConnection,
        compare: Comparison,
        start: int,
        end: int,
        runs: list[tuple[int, int]],
        known: bool = True,
    ) -> str:
        """The block [start, end) was compared. Returns why the connection has to be given up, if so. Of one whose bytes
        are not `known` a single byte may differ, so one or two of them are no reason: what follows will tell."""
        compare.advance(end)
        limit = self._settings.divergence_run_bytes + (0 if known else UNKNOWN_BYTES)
        for left, right in runs:
            if compare.differs(start + left, start + right):
                self.out.counters["difference"] += 1
                if compare.differences == 1:
                    self.out.log(
                        "debug", "output differs", conn=connection.conn, byte=start + left, length=right - left
                    )
            if not known and start + right > connection.output.snd_una:
                compare.doubt(start + left, start + right)
            if compare.last is not None and compare.last[1] - compare.last[0] >= limit:
                first, stop = compare.last
                return f"the replica's output differs from byte {first} to {stop} (encrypted or random?)"
            if self._strict:
                return f"the replica's output differs at byte {start + left} (policy: strict)"
        return ""

    def _unknown(
        self, connection: ShadowConnection, compare: Comparison, start: int, end: int
    ) -> list[tuple[int, int]]:
        """Where a block of the first digest differs whose bytes nobody can tell any more, from its start on."""
        first, _, _, marks = compare.pending[0]
        runs = differing(connection.output.outbound, first, marks, (start, end), self._seed)
        return [(left - start, right - start) for left, right in runs]

    def _diverged(self, connection: ShadowConnection, reason: str, now: float) -> None:
        self._timers.cancel(connection.conn)
        self._lengths.give_up(connection, f"diverged: {reason}", now)

    # ------------------------------------------------------------------------------------ the end, the takeover

    def settled(self, connection: ShadowConnection) -> bool:
        """Whether all that the replica has sent was compared, and agrees: an early end may come of a difference."""
        compare = connection.output.compare
        if compare is None:
            return True
        return compare.in_step and compare.asked is None and compare.compared >= connection.output.end

    def may_tell_end(self, connection: ShadowConnection, now: float) -> bool:
        """Whether the ends of the two streams may be compared: not before we know that what is before them agrees.
        If it does not, the connection is given up here: then nobody's application has failed."""
        compare = connection.output.compare
        if compare is None or connection.state is not Shadow.SHADOW:
            return True
        if compare.asked is not None:
            return False  # the question will be repeated
        if compare.in_step or compare.pending or compare.last is None:
            return True
        self._diverged(connection, _goes_on(compare), now)
        return False

    def why_reset(self, connection: ShadowConnection) -> str:
        """What to say of a replica that has reset its connection: a TLS server does when it can't read its client."""
        compare = connection.output.compare
        if connection.state is Shadow.FED:
            return f"{connection.reason}; it has reset the connection"
        if compare is None or (compare.in_step and compare.compared >= connection.output.end):
            return "the replica reset the connection"
        if compare.in_step and compare.asked is None:
            return "the replica reset the connection, and its output was not compared yet: see 'nfq-failover probe'"
        self.out.counters["diverged"] += 1
        return f"diverged: {_goes_on(compare)}; it has reset the connection"

    def compared_to(self, connection: ShadowConnection, at: int) -> bool:
        """Whether everything before an offset was compared, as far as both servers have sent it."""
        compare = connection.output.compare
        if compare is None or not compare.started:
            return True
        return compare.asked is None and compare.compared >= min(at, connection.output.end)

    def forget(self, conn: int) -> None:
        """No more deadline for this number."""
        self._timers.cancel(conn)
        self._lengths.forget(conn)

    def at_takeover(self, connection: ShadowConnection, now: float) -> str:
        """Why a connection can't be taken over; empty if it can. From here on the primary can't be asked."""
        compare = connection.output.compare
        self._timers.cancel(connection.conn)
        self._lengths.forget(connection.conn)
        if compare is None or connection.map is None:
            return ""
        if compare.asked is not None:  # the answer will not come
            block = compare.asked
            compare.answered()
            runs = self._unknown(connection, compare, *block)
            if reason := self._note(connection, compare, *block, runs, known=False):
                return f"diverged: {reason}"
        compare.primary_is_gone()
        if compare.pending:
            compare.skip(max(compare.pending[0][0], compare.compared))
            if reason := self._compare_on(connection, compare):  # what waited for a digest that will never come
                return f"diverged: {reason}"
        if not compare.pending and not compare.in_step:
            return f"diverged: {_goes_on(compare)}"
        if compare.pending or compare.doubts:
            self._timers.set(connection.conn, now + self._settings.hole_deadline_ms / 1000)
            compare.watch((connection.output.outbound.end, compare.compared), now)
        else:
            connection.output.stop_comparing()
        return ""

    def _withheld_too_long(self, connection: ShadowConnection, compare: Comparison, now: float) -> None:
        state = connection.output.outbound.end, compare.compared
        if state == compare.watched and compare.doubts:
            at, end = compare.doubts[0]
            reason = f"the replica's output differs at byte {at}, which the client may have from the server"
            self._diverged(connection, f"{reason}: it has acknowledged {connection.output.snd_una} of {end}", now)
            return
        if state == compare.watched and state[0] > state[1]:
            self._diverged(connection, "the replica does not complete what the server had sent", now)
            return
        compare.watch(state, now)
        self._timers.set(connection.conn, now + self._settings.hole_deadline_ms / 1000)

    def clear(self) -> None:
        """No more deadlines."""
        self._timers = TimerQueue()
        if self._parts is not None:
            self._parts.clear()
        self._lengths.clear()

    def on_timer(self, now: float) -> None:
        """Deadlines."""
        for conn in self._timers.pop_due(now):
            connection = self._numbers.get(conn)
            compare = None if connection is None else connection.output.compare
            if connection is None or compare is None or connection.state is Shadow.DEAD:
                continue
            if compare.after:
                self._withheld_too_long(connection, compare, now)
        if self._parts is not None:
            self._parts.on_timer(now)

    def poll_timeout(self) -> float | None:
        """The earliest deadline."""
        parts = self._parts.poll_timeout() if self._parts is not None else None
        deadlines = [d for d in (self._timers.next(), parts) if d is not None]
        return min(deadlines, default=None)
