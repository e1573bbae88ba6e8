"""What the daemon has sent, and that comes back to it without its mark: known, let out, and never learnt from."""

from __future__ import annotations

import random

import pytest

from nfq_failover.constants import ACK, RST, SYN
from nfq_failover.core.concerns import Concerns
from nfq_failover.core.events import PacketQueued, Queue, TimerFired, Verdict
from nfq_failover.core.injected import CODE, KEEP_S, MANY, MAX_INJECTED, MAX_OF_AN_AGE, QUIET_S, Injected
from nfq_failover.core.node import Node
from nfq_failover.core.outbox import Outbox
from nfq_failover.core.pair.roles import Do, State
from nfq_failover.wire.build import ack_options, build_segment
from nfq_failover.wire.icmp import build_host_unreachable
from tests.support.transcript import CLIENT, SERVER, settings

TS = ack_options((7, 8), [])


def segment(seq: int = 1000, ack: int = 2000, data: bytes = b"abc", options: bytes = TS, flags: int = ACK) -> bytearray:
    """A segment to the client."""
    return build_segment(SERVER, CLIENT, seq, ack, flags, 500, options, data)


def known(*sent: bytes | bytearray) -> Injected:
    """A registry that these were sent with."""
    injected = Injected(Concerns(lambda *_, **__: None))
    for each in sent:
        injected.note(each)
    return injected


def test_what_a_rule_may_change_does_not_matter() -> None:
    sent = segment()
    back = bytearray(sent)
    back[1], back[4:6], back[8], back[10:12] = 0x2E, b"\x12\x34", 63, b"\0\0"  # DSCP and ECN, ID, TTL, IP checksum
    assert known(sent).knows(back)
    handshake = segment(options=b"\x02\x04\x05\xb4", flags=SYN | ACK, data=b"")
    clamped = segment(options=b"\x02\x04\x05\x64", flags=SYN | ACK, data=b"")
    assert known(handshake).knows(clamped)


@pytest.mark.parametrize(
    "other",
    [
        segment(seq=1001),
        segment(ack=2001),
        segment(data=b"abd"),
        segment(data=b"abcd"),
        segment(data=b""),
        segment(options=ack_options((9, 8), [])),
        segment(options=ack_options((7, 8), [(3000, 4000)])),
        segment(flags=ACK | RST),
        build_segment(SERVER, (CLIENT[0], CLIENT[1] + 1), 1000, 2000, ACK, 500, TS, b"abc"),
        build_segment(SERVER, CLIENT, 1000, 2000, ACK, 501, TS, b"abc"),
    ],
)
def test_a_segment_of_our_tcp_that_says_anything_else_is_not_taken_for_one(other: bytearray) -> None:
    assert not known(segment()).knows(other)


def test_it_is_known_for_as_long_as_queues_may_hold_it_and_then_forgotten() -> None:
    injected = known()
    injected.on_timer(False, 0.0)
    injected.note(segment())
    injected.on_timer(False, KEEP_S)
    injected.on_timer(True, 100.0)  # this host was paused: its queues have waited as long
    injected.on_timer(False, 100.0 + KEEP_S - 0.1)
    assert injected.knows(segment())
    injected.on_timer(False, 100.0 + KEEP_S)
    assert not injected.knows(segment())
    assert not len(injected)


def test_it_holds_no_more_than_it_may() -> None:
    injected = known(segment(0))
    for seq in range(1, MAX_OF_AN_AGE + 1):
        injected.note(segment(seq))
    assert injected.knows(segment(0))
    assert injected.knows(segment(MAX_OF_AN_AGE))
    for seq in range(MAX_OF_AN_AGE):
        injected.note(segment(seq, ack=1))
    assert len(injected) <= MAX_INJECTED
    assert not injected.knows(segment(0))


def test_an_icmp_error_can_be_sent_as_well() -> None:
    outbox = Outbox()
    outbox.outward(build_host_unreachable(segment()))
    assert len(outbox.effects) == 1


class Host:
    """One node that serves without a peer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.node = Node(settings(service=SERVER[0]), random.Random(1).randbytes, 0, False, self.now)
        self.node.members.state = State.UNPROTECTED
        self.fire()

    def fire(self) -> None:
        """Let the timers fire."""
        self.node.handle(TimerFired(), self.now)
        while self.node.poll_effect() is not None:
            pass

    def queued(self, packet: bytearray, pending: bool = False) -> tuple[bool, bytearray | None]:
        """What becomes of a packet in the queue of what this host says: whether it passes, and what is put in its
        place."""
        self.node.handle(PacketQueued(Queue.OUT, 1, bytearray(packet), checksum_pending=pending), self.now)
        found = None
        while (effect := self.node.poll_effect()) is not None:
            if isinstance(effect, Verdict):
                found = effect.accept, effect.packet
        assert found is not None
        return found


def test_one_that_comes_back_passes_unchanged_and_nothing_is_learnt_from_it() -> None:
    host = Host()
    host.node.out.outward(segment())
    assert host.queued(segment()) == (True, None)
    assert not host.node.gate.flows
    assert host.node.out.counters["own-packet-queued"] == 1
    assert host.queued(segment(), pending=True) == (True, None), "our TCP's, which leaves the checksum to the card"
    assert len(host.node.gate.flows) == 1


def test_it_is_a_concern_until_none_has_come_back_for_a_while() -> None:
    host = Host()
    host.node.out.outward(segment())
    for _ in range(MANY - 1):
        host.queued(segment())
    assert not host.node.out.concerns.own, "our TCP itself may say some of it again"
    host.queued(segment())
    assert [concern.code for concern in host.node.out.concerns.own] == [CODE]
    for _ in range(int(QUIET_S) * 20 + 2):
        host.now += 0.05
        host.fire()
    assert CODE not in host.node.out.concerns.codes()


def test_a_host_in_doubt_or_silent_lets_none_out() -> None:
    host = Host()
    host.node.out.outward(segment())
    host.node.members.state = State.DOUBT
    assert host.queued(segment()) == (False, None)
    host.node.members.state = State.SHADOWING
    host.node.members.actions.append(Do.SILENCE)
    host.fire()
    assert host.queued(segment()) == (False, None)
