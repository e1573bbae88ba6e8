"""Connections whose server has failed on this host alone, and that the backup goes on with, one by one.

The service address stays here. What makes two senders on one connection impossible:

- from `start` on nothing of the connection leaves this host: what was held is discarded, what our TCP says is dropped.
  Only then the backup is told;
- what the backup has taken is never taken back. Only if it says that it never had it (`Handed.REFUSED`) the connection
  is ours again, unprotected.

Our TCP is reset, for the client; its answers to the client's segments are dropped. The client's segments reach the
backup as before, by the tap. The backup is asked again and again whether the connection goes on. When the protection
has ended and nobody answers, the connection is lost: the client is made to ask, and our TCP, which does not know it,
answers with RST.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nfq_failover.constants import ACK, RST
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.gate.connection import GatedConnection
from nfq_failover.core.gate.digests import GateDigests
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.records import Handed, HandedOver, HandOver
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import MASK

ASK_FIRST_S = 0.01
ASK_MAX_S = 0.2  # until the backup has it
WATCH_S = 5.0
WATCH_UNPROTECTED_S = 0.5
LOST_AFTER_S = 5.0  # without protection, and without an answer
PROBES = 4
PROBE_S = 0.6  # Linux answers at most twice a second (tcp_invalid_ratelimit)


@dataclass(slots=True)
class HandedConnection:
    """Remembers one connection that is handed over. `asked` is the question to the backup; `connection` is there
    until the backup has it. Once it is lost, `probes` are sent to the client `probes_left` more times, so that it
    asks."""

    asked: HandOver
    connection: GatedConnection | None
    probes: tuple[bytes, ...]
    answered_at: float
    wait_s: float = ASK_FIRST_S
    lost: bool = False
    probes_left: int = PROBES

    @property
    def reason(self) -> str:
        """Why it is not protected, as people are told."""
        if self.lost:
            return "handed over to the backup, and lost with it"
        return "being handed over to the backup" if self.connection else "handed over to the backup: goes on there"


def _probes(connection: GatedConnection) -> tuple[bytes, ...]:
    """Segments that the client answers with an acknowledgement (RFC 9293 section 3.10.7.4, first), whatever it has got
    meanwhile. Kernels differ in whether they look at one with old timestamps, or at one without."""
    own = connection.own
    client, client_port, server, server_port = connection.flow
    ends = (server, server_port), (client, client_port)
    numbers = (own.snd_nxt_seq - 1) & MASK, own.client.seq(own.rcv_nxt), ACK, 0
    plain = bytes(build_segment(*ends, *numbers, b"", b""))
    if not own.timestamps:
        return (plain,)
    return plain, bytes(build_segment(*ends, *numbers, ack_options((own.tsval, own.tsecr), []), b""))


class Handovers:
    """Hands connections over, and remembers them by flow.

    `tracked` and `numbers` are the gate's tables, by flow and by number. `unprotect(connection, reason, now)` gives up
    one that can't be handed over; `give_back(connection, reason, now)` takes one back that the backup has refused.
    """

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        tracked: dict[FlowKey, GatedConnection],
        numbers: dict[int, GatedConnection],
        digests: GateDigests,
        unprotect: Callable[[GatedConnection, str, float], None],
        give_back: Callable[[GatedConnection, str, float], None],
    ) -> None:
        self.out = out
        self.flows: dict[FlowKey, HandedConnection] = {}
        self._settings = settings
        self._by_number: dict[int, HandedConnection] = {}
        self._numbers = numbers
        self._tracked = tracked
        self._digests = digests
        self._unprotect = unprotect
        self._give_back = give_back
        self._timers: TimerQueue[int] = TimerQueue()
        self._unprotected_since: float | None = None

    def start(self, connection: GatedConnection, reason: str, now: float) -> None:
        """Be silent about the connection from now on, and give it to the backup. Without room it is unprotected."""
        flow, conn = connection.flow, connection.conn
        if len(self.flows) >= self._settings.max_connections:
            self.out.counters["hand-over-full"] += 1
            self._unprotect(connection, "too many connections were handed over", now)
            return
        connection.hand_over(reason)
        self._tracked.pop(flow, None)
        self._digests.hand_over(conn)
        asked = HandOver(conn, flow, connection.open.irs, connection.open.iss, connection.own.snd_nxt_seq)
        handed = HandedConnection(asked, connection, _probes(connection), now)
        self.flows[flow] = self._by_number[conn] = handed
        self.out.counters["handed-over"] += 1
        self.out.log("warning", "connection handed over to the backup", conn=conn, reason=reason)
        self._ask(handed, now)

    # ------------------------------------------------------------------------------------ packets

    def outbound(self, event: PacketQueued, seg: Segment) -> bool:
        """Judge a segment that our TCP sends. False: it is of a connection that was not handed over."""
        handed = self.flows.get((seg.dst, seg.dport, seg.src, seg.sport))
        if handed is None:
            return False
        if handed.lost and seg.flags & RST:
            self.out.accept(event.queue, event.packet_id)
            return True
        self.out.drop(event.queue, event.packet_id, "handed-over")
        if handed.connection is None:
            self.out.reset_unknown(seg)
        return True

    def inbound_syn(self, event: PacketQueued, seg: Segment) -> bool:
        """Judge a client's SYN. True: the other host's TCP answers it (RFC 9293 section 3.10.7.4, fourth)."""
        handed = self.flows.get((seg.src, seg.sport, seg.dst, seg.dport))
        if handed is None:
            return False
        if handed.lost:
            self._forget(handed)
            return False
        self.out.drop(event.queue, event.packet_id, "handed-over")
        return True

    # ------------------------------------------------------------------------------------ the backup

    def _ask(self, handed: HandedConnection, now: float) -> None:
        self.out.record(handed.asked)
        self._timers.set(handed.asked.conn, now + handed.wait_s)

    def on_handed(self, record: HandedOver, now: float) -> None:
        """The backup has told what has become of one."""
        handed = self._by_number.get(record.conn)
        if handed is None or handed.lost:
            return
        handed.answered_at = now
        if record.state is Handed.ACTIVE:
            self._taken(handed, now)
        elif record.state is Handed.OVER:
            self._taken(handed, now)
            self._forget(handed)
        elif handed.connection is None:
            self._lose(handed, record.reason, now)
        else:
            self._forget(handed, still=True)
            self._tracked[handed.asked.flow] = handed.connection
            self._give_back(handed.connection, record.reason or "refused by the backup", now)

    def _taken(self, handed: HandedConnection, now: float) -> None:
        """The backup has the connection: our own TCP is reset, at the byte that it expects as far as we know. Whatever
        it still sends is answered with another reset (`outbound`)."""
        connection = handed.connection
        if connection is None:
            return
        handed.connection = None
        self._digests.forget(connection.conn)
        self._numbers.pop(connection.conn, None)
        self._reset_own(connection)
        handed.wait_s = WATCH_S
        self._timers.set(handed.asked.conn, now + WATCH_S)

    def _reset_own(self, connection: GatedConnection) -> None:
        client, client_port, server, server_port = connection.flow
        seq = connection.own.client.seq(connection.own.rcv_nxt)
        self.out.inward(build_segment((client, client_port), (server, server_port), seq, 0, RST, 0))

    def _lose(self, handed: HandedConnection, reason: str, now: float) -> None:
        self.out.counters["handed-over-lost"] += 1
        self.out.log("error", "a connection that was handed over is lost", conn=handed.asked.conn, reason=reason)
        if handed.connection is not None:
            self._taken(handed, now)
        handed.lost = True
        self._probe_client(handed, now)

    def _probe_client(self, handed: HandedConnection, now: float) -> None:
        if not handed.probes_left:
            self._forget(handed)
            return
        handed.probes_left -= 1
        for packet in handed.probes:
            self.out.outward(packet)
        self._timers.set(handed.asked.conn, now + PROBE_S)

    def _forget(self, handed: HandedConnection, still: bool = False) -> None:
        """It is handed over no more. `still`: it is an ordinary connection again."""
        conn = handed.asked.conn
        self.flows.pop(handed.asked.flow, None)
        self._by_number.pop(conn, None)
        self._timers.cancel(conn)
        if not still:
            self._numbers.pop(conn, None)
            self._digests.forget(conn)

    def clear(self) -> None:
        """Forget everything: this host does not serve any more."""
        self.flows.clear()
        self._by_number.clear()
        self._timers.clear()

    # ------------------------------------------------------------------------------------ time

    def on_timer(self, protecting: bool, now: float) -> None:
        """Ask again, and find what is lost, unless (`protecting`) the backup may take everything over."""
        if protecting:
            self._unprotected_since = None
        elif self._unprotected_since is None:
            self._unprotected_since = now
            for conn in self._by_number:
                self._timers.set_earlier(conn, now)
        since = self._unprotected_since
        for conn in self._timers.pop_due(now):
            handed = self._by_number[conn]
            if handed.lost:
                self._probe_client(handed, now)
            elif since is not None and now - max(since, handed.answered_at) >= LOST_AFTER_S:
                self._lose(handed, "the backup does not answer any more", now)
            else:
                if handed.connection is not None:
                    handed.wait_s = min(2 * handed.wait_s, ASK_MAX_S)
                else:
                    handed.wait_s = WATCH_S if since is None else WATCH_UNPROTECTED_S
                self._ask(handed, now)

    def poll_timeout(self) -> float | None:
        """Returns the earliest deadline."""
        return self._timers.next()
