"""What must hold at every packet, and at the end. A failure is an AssertionError that says what and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from nfq_failover.constants import FIN, RST, SYN
from nfq_failover.core.events import Log, Profile
from nfq_failover.core.gate.connection import Gate, GatedConnection
from nfq_failover.core.ports import covers
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.shadow.missing import CODE as MISSING
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.wire.icmp import IcmpError, is_icmp
from nfq_failover.wire.segment import FlowKey, Segment
from nfq_failover.wire.seqnum import diff
from nfq_failover.wire.tcp_options import SynOptions

from . import bounds
from .apps import Client, twisted
from .host import SimHost
from .promises import Promises, Seen
from .scenario import PROBE_PORT, PUSH


def _begins_to_serve(log: Log) -> bool:
    """Whether a log line says that its host serves from now on."""
    move = log.fields.get("before"), log.fields.get("after")
    return log.event == "state" and move in (("claiming", "unprotected"), ("storing", "unprotected"))


@dataclass
class Checks(Promises):
    """Watches everything that leaves from the service address, and judges the end."""

    heard: dict[int, tuple[str, int]] = field(default_factory=dict)
    refused: dict[FlowKey, str] = field(default_factory=dict)  # the application was not up yet, the backup too late

    def emitted(self, host: SimHost, packet: bytes) -> None:
        """A packet leaves a server's network card."""
        if is_icmp(bytearray(packet)):
            self._unreachable(host, IcmpError(bytearray(packet)))
            return
        seg = Segment(bytearray(packet))
        assert seg.checksum_ok(), f"{host.name} sends a wrong checksum: {seg}"
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        self._one_host(host, flow, seg)
        if seg.flags & SYN:
            self._syn_ack(host, flow, seg)
            return
        seen = self.flows.get(flow)
        if seg.flags & RST:
            shadow = host.node.shadow.flows.get(flow)
            late = shadow is not None and shadow.heard and shadow.state is Shadow.DEAD  # the takeover came too late
            fresh = seen is None or seen.client is not self.world.clients.get(flow)
            nobody = not host.kernel.listeners or (flow, seg.ack) in host.kernel.refused  # when its SYN came
            down = nobody and (host.application.well or fresh)
            down = down or (fresh and flow in host.application.broken)
            down = down or (flow[3] == PUSH and host.plan.deaf)
            if late or down:
                self.refused[flow] = host.name
        if seen is None:
            assert seg.flags & RST or self._asks_unanswered(host, flow, seg), f"{host.name}: {seg} before any SYN-ACK"
            return
        client = seen.client
        gate = host.node.gate.flows.get(flow)
        seen.protected = gate is not None and gate.state is Gate.PROTECTED
        if seg.flags & (FIN | RST) and flow in host.application.broken and host.node.gate.missed.reason:
            seen.promised, seen.excused = False, "its process had ended, and its replica's host has missed input"
        if seg.flags & RST:
            seen.resets += 1
            alone = client.aborted or client.tcp.state in ("time-wait", "closed")
            assert alone or self.excuse or not seen.promised, f"{host.name} resets a living, promised connection: {seg}"
            return
        if self.excuse:
            return  # which of two hosts' numbers are the client's, is its own choice; what it has read is checked
        if gate is not None and gate.state is Gate.SYN_HELD and client is not self.world.clients[flow]:
            # Of a connection whose SYN-ACK is held, about some stray segment of the last one from this port: a client
            # in SYN_SENT takes no notice of it (RFC 9293 section 3.10.7.3).
            assert seg.is_pure_ack and seg.ack == gate.own.client.seq(0), f"{host.name} sends {seg} before the SYN-ACK"
            return
        if self._asks(host, flow, seg, client) or self._asks_earlier(host, flow, seg):
            return  # the present one takes nothing from it, and answers (RFC 9293 section 3.10.7.4, first)
        self._numbers(host, seen, seg, client)
        self._gated(host, flow, seen, seg)

    @staticmethod
    def _asks(host: SimHost, flow: FlowKey, seg: Segment, client: Client) -> bool:
        """Whether a client that is told that its connection is over is asked where it is: before its window, with
        timestamps and without."""
        tcp = client.tcp
        asks = seg.is_pure_ack and host.node.shadow.resets.tells(flow)
        return asks and tcp.state != "syn-sent" and tcp.theirs.offset(seg.seq) < tcp.rcv_nxt

    def _asks_unanswered(self, host: SimHost, flow: FlowKey, seg: Segment) -> bool:
        """Whether a client that is told that its connection is over is asked where it is, and has no SYN-ACK, for all
        that is known here. In SYN-SENT it takes no notice of what acknowledges its SYN (RFC 9293 section 3.10.7.3); one
        that has believed the reset answers with its own."""
        tcp = self.world.clients[flow].tcp
        asks = seg.is_pure_ack and host.node.shadow.resets.tells(flow)
        return asks and tcp.state in ("syn-sent", "closed") and tcp.ours.offset(seg.ack) == 0

    def _asks_earlier(self, host: SimHost, flow: FlowKey, seg: Segment) -> bool:
        """Whether the client of an earlier connection from this port, which the host tells that it is over, is asked
        where it is."""
        if not (seg.is_pure_ack and host.node.shadow.resets.tells(flow)):
            return False
        earlier = [self.past[client] for at, client in self.world.past if at == flow and client in self.past]
        return any(0 <= each.client_space.offset(seg.ack) <= len(each.client.out) + 1 for each in earlier)

    def seen(self, packet: bytes | bytearray) -> Seen | None:
        """The connection that a packet for a client belongs to now."""
        seg = Segment(bytearray(packet))
        return self.flows.get((seg.dst, seg.dport, seg.src, seg.sport))

    def returned(self, host: SimHost, packet: bytes, of: Seen | None) -> None:
        """A packet leaves that was judged when the daemon sent it; since then it has been in the queue, behind others.
        If the daemon still knows its connection, it has been brought up to date."""
        seg = Segment(bytearray(packet))
        flow = (seg.dst, seg.dport, seg.src, seg.sport)
        self._one_host(host, flow, seg)
        gate, shadow = host.node.gate.flows.get(flow), host.node.shadow.flows.get(flow)
        base = None if of is None else of.client_space.base  # a later connection from the port is another one
        known = gate is not None and gate.own.client.base == base
        known = known or (shadow is not None and shadow.inward.client.base == base)
        if known and of is not None and of is self.flows.get(flow) and not self.excuse and not seg.flags & (SYN | RST):
            assert seg.checksum_ok(), f"{host.name} sends a wrong checksum: {seg}"
            self._numbers(host, of, seg, of.client)

    def logged(self, host: SimHost, log: Log) -> None:
        """A host of this world has its rules before it serves, so it sees every SYN that its TCP answers.

        Except for one: a half-open connection may be left from a time when this host served before. Its SYN is
        forgotten, its SYN-ACK is repeated, and it is listed as unprotected.

        A primary that goes on without a backup protects nothing any more, also if no client hears it say anything.
        """
        assert log.fields.get("code") != MISSING, f"{host.name} misses replicas: {log.fields}"
        if log.event == "state" and log.fields.get("after") == "unprotected" and not _begins_to_serve(log):
            for seen in self.flows.values():
                seen.protected = False
        if log.fields.get("reason") != "opened before the rules were there":
            return
        client, client_port, server, server_port = host.node.gate.numbers[cast(int, log.fields["conn"])].flow
        opened_at = host.kernel.flows[(server, server_port), (client, client_port)].opened_at
        begins = (at for at, said in host.logs if _begins_to_serve(said))
        assert opened_at <= max(begins, default=0.0), f"{host.name} has not remembered a SYN: {log.fields}"

    def carried_out(self, host: SimHost, effects: int) -> None:
        """A host has carried out all effects of an input."""
        bounds.check(host, effects)

    def _unreachable(self, host: SimHost, error: IcmpError) -> None:
        """The quoted byte is the first one that the client has not been told to be here."""
        flow = (error.src, error.sport, error.dst, error.dport)
        self._one_host(host, flow, "an ICMP error")
        seen = self.flows[flow]
        if self.excuse or seen.excused:
            return
        quoted = seen.client_space.offset(error.seq)
        assert quoted == seen.ack, f"{host.name} quotes {quoted}, the client has been told {seen.ack}"

    def _one_host(self, host: SimHost, flow: FlowKey, what: object) -> None:
        """Invariant 2: in one epoch at most one host is heard, and after each boot in a new one (name, boot)."""
        epoch = host.node.members.epoch
        who = self.heard.setdefault(epoch, (host.name, host.life))
        now = (host.name, host.life)
        assert who == now, f"epoch {epoch}: {who} was heard, now {now}: {what}"
        if not self.world.split_brain:
            latest = max(self.heard)
            assert epoch == latest, f"{host.name} sends {what} in epoch {epoch}, but epoch {latest} has begun"

    def diverts(self, host: SimHost) -> None:
        """`host` has other rules: nobody clones to a host what that one's rules do not keep silent."""
        for one in (host, *self.world.others(host)):
            if one.profile is not Profile.PRIMARY or not one.running:
                continue
            for other in self.world.others(one):
                assert not other.up or covers(other.diverted, one.diverted), (
                    f"{one.name} clones ports {one.diverted}, and {other.name} diverts {other.diverted}"
                )

    def owns(self, host: SimHost) -> None:
        """`host` is to be heard from now on: nobody else that has power may be, and nobody's client may have been told
        more than `host` has."""
        others = self.world.others(host)
        for other in others:
            assert self.world.split_brain or not other.audible, (
                f"two owners: {host.name} in epoch {host.node.members.epoch},"
                f" {other.name} in {other.node.members.epoch}"
            )
        if self.world.split_brain:
            return
        self.took_over.add(host.name)
        if any(other.up for other in others):
            self._moved(host)
        for promised in self.flows.values():
            in_time = self.world.clock.now + host.jumped <= promised.promised_until  # it believes its clock
            if promised.promised and promised.survivor == host.name and not in_time:
                promised.promised, promised.excused = False, "taken over too late"
        for flow, shadow in host.node.shadow.flows.items():
            seen = self.flows.get(flow)
            if shadow.state is not Shadow.ACTIVE or shadow.resync.pending or seen is None or seen.let_go:
                continue  # resync: after a restart; our TCP is still to be asked what it has
            if (shadow.inward.client.base, shadow.mapping.seen.base) == (
                seen.client_space.base,
                seen.server_space.base,
            ):
                assert seen.ack <= shadow.inward.held, (
                    f"{flow} goes on: acknowledged {seen.ack}, {host.name} has {shadow.inward.held}"
                )

    def _syn_ack(self, host: SimHost, flow: FlowKey, seg: Segment) -> None:
        options = SynOptions.parse(seg.options())
        granted = (options.wscale, options.sack_permitted, options.tsval is not None)
        client_space, server_space = SeqSpace((seg.ack - 1) & 0xFFFFFFFF), SeqSpace(seg.seq)
        have = self.flows.get(flow)
        if have is not None and have.client_space.base == client_space.base:
            assert have.server_space.base == server_space.base or not have.promised, f"{host.name}: another ISS: {seg}"
            assert have.options == granted or not have.promised, f"{host.name}: granted options have changed: {seg}"
            if have.server_space.base == server_space.base:
                return
        if have is not None:
            self.past[have.client] = have
        self.flows[flow] = Seen(
            client_space,
            server_space,
            options.wscale or 0,
            options.tsval is not None,
            granted,
            self.world.clients[flow],
        )
        self.flows[flow].excused = self.excuse
        if have is not None and have.client_space.base == client_space.base:
            self.flows[flow].excused = self.excuse or have.excused  # the client may have taken the first answer
        if self.world.clients[flow].odd:
            self.flows[flow].excused = "its servers differ"
        if not host.application.well or flow in host.application.broken:
            self.flows[flow].excused = "opened while the application failed"
        if flow[1] >= PROBE_PORT and not self.excuse and not self.world.scenario.limits.max_connections:
            gate = host.node.gate.flows.get(flow)
            assert gate is not None and gate.state is Gate.PROTECTED, f"{flow} is not protected, though all is well"
        self.flows[flow].edge = seg.wnd
        self.flows[flow].tsval = options.tsval

    def _numbers(self, host: SimHost, seen: Seen, seg: Segment, client: Client) -> None:
        """Invariant 3: what the client sees goes on as it began."""
        where = f"{host.name} at {self.world.clock.now:.4f}: {seg}"
        start = seen.server_space.offset(seg.seq)
        payload = seg.payload()
        expected = client.expected[start : start + len(payload)]
        right = payload == expected or (client.odd and payload == twisted(expected))
        assert right, f"wrong bytes: {where}"
        if seg.flags & FIN:
            whole = start + len(payload) == len(client.expected)
            unpromised = client.aborted or (bool(seen.excused) and not seen.promised)
            broken = host.application.broken and unpromised
            assert whole or broken, f"FIN at the wrong place: {where}"
        ack = seen.client_space.offset(seg.ack)
        assert 0 <= ack <= len(client.out) + 1, f"acknowledges what was never sent: {where}"
        seen.acked = max(seen.acked, ack)
        if seen.excused:
            return
        shrink = max(1 << seen.wscale, ROUNDING_BYTES)  # what rounding had added, at most, may be taken back
        edge = ack + (seg.wnd << seen.wscale)
        assert ack >= seen.ack, f"ACK falls from {seen.ack} to {ack}: {where}"
        assert edge >= seen.edge - shrink, f"the right edge moves left from {seen.edge} to {edge}: {where}"
        seen.ack, seen.edge = max(ack, seen.ack), max(edge, seen.edge)
        if ack:
            seen.client_space.near = ack
        if seen.timestamps:
            assert seg.ts_off, f"no timestamp: {where}"
            assert seen.tsval is None or diff(seg.tsval, seen.tsval) >= 0, f"TSval falls from {seen.tsval}: {where}"
            seen.tsval = seg.tsval

    def _gated(self, host: SimHost, flow: FlowKey, seen: Seen, seg: Segment) -> None:
        """Invariant 1: while protected, nothing is acknowledged that a backup does not hold."""
        gate = host.node.gate.flows.get(flow)
        if gate is None or gate.state is not Gate.PROTECTED:
            return
        for other in self.world.others(host):
            if other.running and not self.world.crashed_lately(other):
                self._held(host, gate, other, seen, seg)

    def _held(self, host: SimHost, gate: GatedConnection, other: SimHost, seen: Seen, seg: Segment) -> None:
        flow = gate.flow
        shadow = other.node.shadow.flows.get(flow)
        assert shadow is not None and shadow.conn == gate.conn, (
            f"{flow} is called protected, {other.name} has no shadow"
        )
        if shadow.state is Shadow.DEAD:
            return  # it has said so; the news is on its way
        ack = seen.client_space.offset(seg.ack)
        assert ack <= shadow.inward.held, f"{host.name} acknowledges {ack}, the backup has {shadow.inward.held}: {seg}"
        held = [(0, max(shadow.inward.held, shadow.inward.rcv_nxt)), *shadow.inward.inbound.ranges(1000)]
        for left_seq, right_seq in seg.sack:
            left, right = seen.client_space.offset(left_seq), seen.client_space.offset(right_seq)
            inside = any(a <= left and right <= b for a, b in held)
            assert inside, f"SACK {left}-{right}, the backup has {held}: {seg}"

    # ------------------------------------------------------------------------------------ the end

    def final(self) -> None:
        """Every client that was promised a living connection has ended well; nobody has read a wrong byte."""
        for flow, client in [*self.world.past, *self.world.clients.items()]:
            seen = self.flows.get(flow)
            if seen is not None and seen.client is not client:
                seen = self.past.get(client)
            got = bytes(client.got)
            expected = client.expected[: len(got)]
            # How long a mixture is possible, test_sim_divergence.py measures.
            both = zip(got, expected, twisted(expected), strict=True) if client.odd else ()
            right = got == expected or (client.odd and all(byte in (one, other) for byte, one, other in both))
            assert right, f"port {flow[1]}: the client has read wrong bytes"
            if seen is not None:
                self._kept(flow, seen)
            excused = self.excuse or (seen is not None and seen.excused) or flow in self.refused
            state = f"{client.tcp.state}, {len(got)} of {len(client.expected)}, sent {client.sent}/{len(client.out)}"
            assert client.finished or excused, f"client port {flow[1]} -> {flow[3]} did not end well: {state}"
        for host in self.world.hosts:  # the servers
            for flow, apps in host.apps.items():
                sent = [client.out for at, client in [*self.world.past, *self.world.clients.items()] if at == flow]
                for app in apps:
                    read = bytes(app.read)
                    assert any(read == out[: len(read)] for out in sent), (
                        f"{host.name}: the server has read wrong bytes"
                    )
