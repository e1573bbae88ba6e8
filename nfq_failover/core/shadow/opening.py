"""How a connection begins in the shadow: the primary describes it, the client's SYN is built and delivered, and the
replica's SYN-ACK gives the translation."""

from __future__ import annotations

from nfq_failover.constants import ACK, OPT_MSS, OPT_SACK_PERMITTED, OPT_TIMESTAMPS, OPT_WSCALE, SYN
from nfq_failover.core.events import PacketQueued
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.settings import Settings
from nfq_failover.core.shadow.connection import Die, Forget, Shadow, ShadowConnection
from nfq_failover.core.shadow.missing import MissingReplicas
from nfq_failover.core.shadow.repair import Repair
from nfq_failover.core.shadow.strays import Strays
from nfq_failover.core.tcp.syn import strip
from nfq_failover.core.tcp.translation import Translation
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.build import build_segment
from nfq_failover.wire.records import Open, Opened
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.tcp_options import NEGOTIABLE, SynOptions, without

MAX_FORGOTTEN = 4096
MAX_WAITING = 4096
_GRANTS = {True: "yes", False: "no"}


def client_syn(opening: Open) -> bytearray:
    """The client's SYN, as a packet, without what the primary did not grant."""
    keep = {OPT_MSS}
    if opening.wscale is not None:
        keep.add(OPT_WSCALE)
    if opening.sack_permitted:
        keep.add(OPT_SACK_PERMITTED)
    if opening.tsval is not None:
        keep.add(OPT_TIMESTAMPS)
    options = without(opening.syn_options, frozenset(keep))
    client, port, server, server_port = opening.flow
    return build_segment((client, port), (server, server_port), opening.irs, 0, SYN, opening.syn_wnd, options)


class Openings:
    """Opens connections in the table's `flows` and `numbers`.

    `forgotten` are the latest numbers of connections that are over, oldest first: an `Open` that was repeated, and
    overtaken by what came later, opens none of them again. One waits whose port's last connection still has a replica
    that reads; the primary may have ceased to ask for it by then, but does not cease to say where it is.
    """

    def __init__(
        self,
        settings: Settings,
        out: Outbox,
        flows: dict[FlowKey, ShadowConnection],
        numbers: dict[int, ShadowConnection],
        timers: TimerQueue[int],
        repair: Repair,
        strays: Strays,
        missing: MissingReplicas,
        *,
        unconfirmed: dict[int, ShadowConnection],
        die: Die,
        forget: Forget,
    ) -> None:
        """`flows`, `numbers`, `timers` (by number) and `unconfirmed` are the table's; `die` and `forget` are its ways
        to end a connection."""
        self._settings = settings
        self.out = out
        self._flows = flows
        self._numbers = numbers
        self._timers = timers
        self._repair = repair
        self._strays = strays
        self._missing = missing
        self._unconfirmed = unconfirmed
        self._die = die
        self._forget = forget
        self.forgotten: dict[int, None] = {}
        self._waiting: dict[int, Open] = {}
        self._mss: int | None = None

    def fit_host(self, mss: int | None) -> None:
        """Our interface takes segments of this size (RFC 9293 section 3.7.1), whatever clients are told; None: any."""
        self._mss = mss
        if mss is not None:
            for connection in self._flows.values():
                connection.header.fit(mss)

    def on_open(self, record: Open, now: float) -> None:
        """The primary's TCP has answered a client: make ours do the same."""
        have = self._numbers.get(record.conn)
        if have is not None:
            if have.state in (Shadow.SHADOW, Shadow.FED):
                self.out.record(Opened(have.conn, True, have.inward.confirm_edge()))
            elif have.state is Shadow.DEAD:
                self.out.record(Opened(have.conn, False, 0, have.reason))
            return
        if record.conn in self.forgotten:
            return
        self._waiting.pop(record.conn, None)
        old = self._flows.get(record.flow)
        if old is not None:
            if old.state in (Shadow.SHADOW, Shadow.FED) and old.inward.lagging and old.inward.unread:
                self._waits(record)  # our application has still to read what that client has sent
                return
            if old.map is not None:
                old.reset_own(self.out)  # our TCP may still hold the old connection
            self._forget(old)
        if len(self._flows) >= self._settings.max_connections:
            self.out.counters["connection-refused"] += 1
            self.out.record(Opened(record.conn, False, 0, "the backup's table is full"))
            return
        if self._mss is not None and record.mss > self._mss:
            why = f"the primary tells its client an MSS of {record.mss}, and the backup's interface takes {self._mss}"
            self.out.record(Opened(record.conn, False, 0, why))
            return
        connection = ShadowConnection(record, self._settings, now)
        if self._mss is not None:
            connection.header.fit(self._mss)
        self.out.inward(client_syn(record))
        self._flows[record.flow] = self._numbers[record.conn] = connection
        self._missing.opened(connection)
        self._timers.set(record.conn, now + connection.syn_retry_s)

    def _waits(self, record: Open) -> None:
        self._waiting[record.conn] = record
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def waits(self, conn: int, now: float) -> bool:
        """Whether a connection that is not in the table is to be in it: perhaps it is now."""
        record = self._waiting.pop(conn, None)
        if record is not None:
            self.on_open(record, now)
        return record is not None

    def repeat(self, connection: ShadowConnection, now: float) -> None:
        """Our TCP has not answered: deliver the client's SYN again."""
        wait_s = connection.syn_again()
        self.out.inward(client_syn(connection.open))
        self._timers.set(connection.conn, now + wait_s)

    def over(self, conn: int) -> None:
        """A connection's number will not be used again."""
        self.forgotten[conn] = None
        self._waiting.pop(conn, None)
        if len(self.forgotten) > MAX_FORGOTTEN:
            del self.forgotten[next(iter(self.forgotten))]

    def clear(self) -> None:
        """A primary that has restarted counts from the beginning."""
        self.forgotten.clear()
        self._waiting.clear()

    # ------------------------------------------------------------------------------------ packets

    def refused(self, connection: ShadowConnection) -> None:
        """Our TCP answers the client's SYN by a reset: it may listen soon."""
        self._missing.refused(connection)
        self.out.record(Opened(connection.conn, False, 0, ""))

    def client_syn(self, event: PacketQueued, seg: Segment, connection: ShadowConnection) -> None:
        """A client's SYN for a connection that there is."""
        if connection.state is not Shadow.ACTIVE or seg.flags & ACK:
            self.out.drop(event.queue, event.packet_id, "syn-of-shadow")  # the primary describes it by `Open`
            return
        if connection.handed and connection.ended:
            self.out.drop(event.queue, event.packet_id, "ended")  # the port is used again: the primary deals with that
            self._forget(connection)
            return
        self.out.accept(event.queue, event.packet_id, seg.buf if strip(seg, NEGOTIABLE) else None)

    def replica_syn_ack(self, event: PacketQueued, seg: Segment, connection: ShadowConnection, now: float) -> bool:
        """Our TCP sends a SYN, or a SYN-ACK. False: it is not of this connection, which is forgotten then."""
        out = self.out
        ours = seg.flags & ACK and (seg.ack - 1) & 0xFFFFFFFF == connection.open.irs
        if connection.state is Shadow.ACTIVE:
            mapping = connection.mapping
            if not ours or seg.seq != mapping.own.seq(-1):
                self._forget(connection)  # the port was reused, natively
                return False
            if connection.output.snd_una >= 0 or connection.inward.held > 0:
                out.drop(event.queue, event.packet_id, "syn-ack-late")  # the client has one: our TCP has missed its ACK
                connection.inject_ack(out)
                return True
            connection.resending.outward_syn_ack(mapping, event, seg, out)
            return True
        out.drop(event.queue, event.packet_id, "replica-silent")
        if not ours or connection.state is Shadow.DEAD:
            return True
        if connection.map is not None and seg.seq == connection.map.own.seq(-1):
            if connection.output.snd_una >= 0:
                connection.inject_ack(out)  # our TCP has missed the client's ACK
            return True
        if connection.state is Shadow.FED:
            self._die(connection, "the replica has begun anew", now)
            return True
        self._replica_answers(connection, seg, now)
        return True

    def _replica_answers(self, connection: ShadowConnection, seg: Segment, now: float) -> None:
        """The replica's SYN-ACK: now the translation is known."""
        opening = connection.open
        granted = SynOptions.parse(seg.options())
        primary = (opening.wscale is not None, opening.sack_permitted, opening.tsval is not None)
        backup = (granted.wscale is not None, granted.sack_permitted, granted.tsval is not None)
        if primary != backup:
            names = zip(("window scaling", "SACK", "timestamps"), primary, backup, strict=True)
            which = ", ".join(
                f"{name} ({_GRANTS[one]}, {_GRANTS[other]})" for name, one, other in names if one != other
            )
            self._die(connection, f"the hosts grant different TCP options (primary, backup): {which}", now)
            return
        ts = None if opening.tsval is None or granted.tsval is None else (opening.tsval, granted.tsval)
        mapping = Translation(opening.iss, seg.seq, opening.wscale or 0, granted.wscale or 0, ts, now)
        connection.answered(mapping, seg.wnd)
        self._missing.answered(connection)
        self._strays.forget(connection.conn)
        inward, output = connection.inward, connection.output
        inward.order.wait_anew(now)
        if output.snd_una >= 0 or inward.lagging:
            output.established()
            connection.inject_ack(self.out)
            self._unconfirmed[connection.conn] = connection
        self._repair.watch_lag(connection, now)
        self.out.record(Opened(connection.conn, True, inward.client.seq(inward.rcv_edge)))
