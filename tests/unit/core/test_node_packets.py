"""What a node does with packets, by its state: every one gets exactly one verdict, and doubt lets none out."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nfq_failover.core.events import (
    ApplyRules,
    Effect,
    FlowsGone,
    FrameCopied,
    Inject,
    OwnAddress,
    PacketQueued,
    Profile,
    QueryFlows,
    Queue,
    RulesApplied,
    TellClients,
    TimerFired,
    Verdict,
)
from nfq_failover.core.gate.connection import Gate
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Do, State
from nfq_failover.wire.records import Confirm, Opened, Served
from nfq_failover.wire.segment import Segment
from tests.support.transcript import (
    CLIENT,
    FLOW,
    IRS,
    ISS,
    ISS_OWN,
    OFFER,
    OWN_TS,
    SEEN_TS,
    SERVER,
    Sent,
    client,
    client_seq,
    granted,
    opening,
    server,
    settings,
    syn,
    syn_ack,
)


class LoneNode:
    """One node that nobody talks to, put into a state by hand."""

    def __init__(self, state: State, *doings: Do) -> None:
        self.now = 100.0
        self.node = Node(settings(service=SERVER[0]), random.Random(1).randbytes, 0, False, self.now)
        self.node.handle(TimerFired(), self.now)
        self.effects()
        self.node.members.state = state
        self.node.members.actions.extend(doings)
        self._id = 0

    def effects(self) -> list[Effect]:
        """All that has come out."""
        got = []
        while (effect := self.node.poll_effect()) is not None:
            got.append(effect)
        return got

    def packet(self, sent: Sent, raw: bytes | None = None) -> str:
        """What becomes of a packet: the verdict, and what is sent or injected besides."""
        self._id += 1
        queue = Queue.IN if sent.by == "client" else Queue.OUT
        packet = bytearray(raw) if raw is not None else sent.packet(ISS)
        self.node.handle(PacketQueued(queue, self._id, packet), self.now)
        verdicts, others = [], []
        for effect in self.effects():
            if isinstance(effect, Verdict):
                assert (effect.queue, effect.packet_id) == (queue, self._id)
                verdicts.append("pass" if effect.accept else "drop")
            elif isinstance(effect, Inject):
                others.append("inward" if effect.inward else "outward")
        assert len(verdicts) == 1
        return " ".join(verdicts + others)


@pytest.mark.parametrize("state", [s for s in State if s not in (State.UNPROTECTED, State.ARMING, State.PROTECTED)])
def test_only_a_host_that_serves_lets_unknown_connections_talk(state: State) -> None:
    host = LoneNode(state)
    if state is State.BACKUP_LOST:  # it still serves
        assert host.packet(client(-1, ack=None, flags="S")) == "pass"
        return
    assert host.packet(client(-1, ack=None, flags="S")) == "drop"
    assert host.packet(client(0, 100)) == "drop"
    assert host.packet(server(-1, ack=0, flags="S.")) == "drop"
    replica = host.packet(server(0, 100))
    assert replica in ("drop", "drop inward")  # the backup resets what it does not know
    assert host.packet(server(0, ack=None, flags="R")) == "drop"


def test_unprotected_host_lets_everything_pass() -> None:
    host = LoneNode(State.UNPROTECTED)
    assert host.packet(syn()) == "pass"
    assert host.packet(syn_ack()) == "pass"
    assert host.packet(client(0, 100)) == "pass"
    assert host.packet(server(0, 100, ack=100)) == "pass"


@pytest.mark.parametrize("state", list(State))
def test_malformed_packet_is_dropped_and_counted(state: State) -> None:
    host = LoneNode(state)
    assert host.packet(client(), raw=b"\x45" + bytes(30)) == "drop"
    assert host.node.out.counters["malformed-short"] == 1


class Protected(LoneNode):
    """A primary with one open, protected connection, of which 1000 bytes wait for the backup's confirmation."""

    def __init__(self) -> None:
        super().__init__(State.PROTECTED, Do.PROTECT)
        self.node.handle(RulesApplied(Profile.PRIMARY, True), self.now)
        self.effects()
        assert self.packet(syn()) == "pass"
        assert self.packet(syn_ack()) == "drop"
        self.node.gate.take(Opened(1, True, client_seq(60000)), self.now)
        self.effects()
        assert self.packet(server(0, 0, ack=1000, wnd=5000)) == "drop"
        self.confirm = Confirm(1, client_seq(1000), client_seq(60000), (), True)


def test_confirmation_releases_what_was_held() -> None:
    host = Protected()
    host.node._record(host.node.protector, host.confirm, host.now)
    assert [Segment(bytearray(e.packet)).ack for e in host.effects() if isinstance(e, Inject)] == [client_seq(1000)]


def test_what_no_tcp_has_sent_is_not_learnt_from() -> None:
    """A raw socket's segment of a protected connection, with a wrong checksum as a probe of the rules has it."""
    host = Protected()
    own = host.node.gate.numbers[1].own
    before = own.rcv_nxt, own.snd_nxt_seq
    assert host.packet(server(5000, ack=70000, corrupt=True)) == "drop"
    assert (own.rcv_nxt, own.snd_nxt_seq) == before
    assert host.node.out.counters["bad-checksum"] == 1
    assert host.packet(server(-1, ack=0, flags="S.", port=9, corrupt=True)) == "drop"
    assert len(host.node.gate.flows) == 1
    # A super-segment that another program has rewritten in a queue of its own: the card is to fill its checksum in.
    sent = server(0, 3000, corrupt=True).packet(ISS)
    host.node.handle(PacketQueued(Queue.OUT, 9, sent, checksum_pending=False, gso=True), host.now)
    assert [effect.accept for effect in host.effects() if isinstance(effect, Verdict)] == [True]


def test_syn_ack_that_our_tcp_repeats_is_none_of_the_daemons_though_it_looks_like_that() -> None:
    """What is taken out of it is not compared: the first one was told a smaller MSS."""
    host = LoneNode(State.PROTECTED)
    host.node.gate.start_protecting(host.now)
    host.node.gate.fit_backup(frozenset(), 1300, host.now)
    assert host.packet(syn()) == "pass"
    assert host.packet(syn_ack()) == "drop"
    host.node.gate.take(Opened(1, True, client_seq(40000)), host.now)
    (sent,) = [effect.packet for effect in host.effects() if isinstance(effect, Inject)]
    repeated = syn_ack().packet(ISS)
    assert host.node.out.injected.knows(repeated)
    host.node.handle(PacketQueued(Queue.OUT, 99, repeated), host.now)
    (verdict,) = [effect for effect in host.effects() if isinstance(effect, Verdict)]
    assert verdict.accept and verdict.packet == sent
    host.node.handle(PacketQueued(Queue.OUT, 100, bytearray(sent)), host.now)  # this is the daemon's
    assert host.effects() == [Verdict(Queue.OUT, 100, True, None)]


def test_first_packet_after_a_pause_finds_the_host_in_doubt() -> None:
    host = Protected()
    host.now += 1.0
    assert host.packet(server(0, 100, ack=1000, wnd=5000)) == "drop"
    assert host.node.members.state is State.DOUBT
    assert host.packet(server(0, ack=None, flags="R")) == "drop"
    assert host.packet(client(-1, ack=None, flags="S", port=41000)) == "drop"
    host.node._record(host.node.protector, host.confirm, host.now)
    host.node.handle(TimerFired(), host.now)
    host.node.handle(FlowsGone([]), host.now)
    host.node.handle(FrameCopied(client(0, 1000).packet(ISS)), host.now)
    assert not [e for e in host.effects() if isinstance(e, Inject)]


def test_nothing_is_due_for_ever_in_doubt() -> None:
    host = Protected()
    host.now += 1.0
    host.node.handle(TimerFired(), host.now)
    assert host.node.members.state is State.DOUBT
    assert (host.node.poll_timeout() or 0.0) > host.now


def shadowing() -> tuple[LoneNode, dict[str, Any]]:
    """The backup, with one connection; and what makes a segment the replica's."""
    host = LoneNode(State.SHADOWING)
    host.node.shadow.take(opening(), host.now)
    host.effects()
    own: dict[str, Any] = {"iss": ISS_OWN}
    assert host.packet(server(-1, ack=0, flags="S.", options=granted(3, OWN_TS), **own)) == "drop"
    assert host.packet(client(0, ack=0, ts=(1001, SEEN_TS))) == "pass"
    return host, own


def test_at_a_takeover_clients_are_told_where_the_address_is_after_what_is_resent_to_them() -> None:
    host, own = shadowing()
    assert host.packet(server(0, 100, ts=(OWN_TS + 1, 1001), **own)) == "drop"
    host.node.members.state = State.UNPROTECTED
    host.node.members.actions.append(Do.TAKE_OVER)
    host.node.members.may_continue = lambda now: True  # type: ignore[method-assign]
    host.node.handle(TimerFired(), host.now)
    effects = host.effects()
    (told,) = [effect for effect in effects if isinstance(effect, TellClients)]
    assert told.clients == (CLIENT[0],)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(OwnAddress) < kinds.index(Inject) < kinds.index(TellClients) < kinds.index(ApplyRules)
    assert len(kinds) - 1 - kinds[::-1].index(Inject) < kinds.index(TellClients)


def test_connections_taken_over_earlier_are_silent_in_doubt_too() -> None:
    host, own = shadowing()
    host.node.members.state = State.PROTECTED  # took over, and has a new backup
    host.node.shadow.take_over(host.now)
    host.effects()
    assert host.packet(server(0, 100, ts=(OWN_TS + 1, 1001), **own)) == "pass"
    host.node.members.state = State.DOUBT
    assert host.packet(server(100, 100, ts=(OWN_TS + 2, 1001), **own)) == "drop"
    assert host.packet(client(0, 100, ts=(1002, SEEN_TS))) == "drop"


def test_new_connection_from_the_port_of_one_that_was_taken_over_is_protected() -> None:
    host, own = shadowing()
    host.node.members.state = State.PROTECTED  # took over, and has a new backup
    host.node.shadow.take_over(host.now)
    host.node.gate.start_protecting(0.0)
    host.effects()
    again: dict[str, Any] = {"irs": IRS + 70000, "iss": ISS_OWN + 90000}
    assert host.packet(syn(**again)) == "pass"
    assert FLOW in host.node.shadow.flows  # our TCP may answer it with an ACK, of the old one
    assert host.packet(server(0, 0, ack=0, ts=(OWN_TS + 1, 1001), **own)) == "pass"
    assert host.packet(syn_ack(**again)) == "drop"
    opened = host.node.gate.flows[FLOW]
    assert opened.state is Gate.SYN_HELD
    assert opened.open.syn_options == OFFER
    assert not host.node.shadow.flows


def test_earlier_connection_of_our_tcp_does_not_answer_the_client_of_one_that_is_over() -> None:
    """The other host has had the later one from the same port; here our TCP still has the earlier in TIME-WAIT."""
    host = LoneNode(State.SHADOWING)
    host.node.shadow.take(Served(5, FLOW, 5000, 6000, 7), host.now)
    host.node.members.state = State.UNPROTECTED
    host.node.shadow.take_over(host.now)
    assert outward(host) == 4
    assert host.packet(client(0)) == "pass"  # the answer to a reset
    assert host.packet(server(0, ack=0)) == "drop inward"
    assert not host.node.gate.flows
    assert host.packet(server(0, ack=None, flags="R")) == "pass"  # it is gone: now our TCP resets the client
    assert host.packet(syn(irs=IRS + 70000)) == "pass"
    assert host.packet(server(0, ack=0)) == "pass"  # which makes the client repeat that


def test_refusal_of_a_syn_is_none_of_the_connection_that_was_taken_over() -> None:
    """Our TCP has given up what was taken over, and the application listens no more."""
    host, own = shadowing()
    host.node.members.state = State.UNPROTECTED
    host.node.shadow.take_over(host.now)
    host.effects()
    assert host.packet(syn(irs=IRS + 70000)) == "pass"
    refusal = server(-1 - ISS_OWN, ack=70000, flags="R.", wnd=0, **own).packet(ISS_OWN)
    host.node.handle(PacketQueued(Queue.OUT, 99, refusal), host.now)
    assert host.effects() == [Verdict(Queue.OUT, 99, True, None)]
    assert host.node.shadow.flows[FLOW].inward.rcv_nxt == 0


def test_syn_from_the_port_of_one_that_was_handed_over_is_for_our_tcp_alone() -> None:
    host, _ = shadowing()
    (connection,) = host.node.shadow.flows.values()
    host.node.shadow.take_over(host.now)
    connection.handed = connection.conn
    host.effects()
    assert host.packet(syn(irs=IRS + 70000)) == "pass"  # it answers with an ACK
    assert not host.node.gate.opening.tables()["syns"]


def test_nothing_of_them_is_repeated_in_doubt_either() -> None:
    host, own = shadowing()
    assert host.packet(server(0, 1000, ts=(OWN_TS + 1, 1001), **own)) == "drop"
    host.node.members.state = State.PROTECTED  # took over, and has a new backup
    host.node.shadow.take_over(host.now)
    host.now += 0.1
    host.node.handle(TimerFired(), host.now)
    assert outward(host) > 0
    host.now += 1.0  # paused
    host.node.handle(TimerFired(), host.now)
    assert host.node.members.state is State.DOUBT
    assert outward(host) == 0
    assert host.node.out.counters["in-doubt"] == 1


def outward(host: LoneNode) -> int:
    """How many packets of its own the host has sent to clients since the last look."""
    return sum(isinstance(effect, Inject) and not effect.inward for effect in host.effects())


def test_step_down_silences_and_forgets() -> None:
    host = Protected()
    host.node.members.state = State.WAITING
    host.node.members.actions.append(Do.SILENCE)
    host.node.handle(TimerFired(), host.now)
    effects = host.effects()
    assert [e for e in effects if isinstance(e, OwnAddress)] == [OwnAddress(False)]
    assert [e.profile for e in effects if isinstance(e, ApplyRules)] == [Profile.BACKUP]
    assert not host.node.gate.flows
    assert host.packet(server(0, 100, ack=1000)) == "drop"


def test_kernel_is_asked_about_old_connections() -> None:
    host = Protected()
    host.now += 0.1
    host.node.handle(TimerFired(), host.now)
    assert QueryFlows([FLOW]) in host.effects()
    assert CLIENT[1] == FLOW[1]
