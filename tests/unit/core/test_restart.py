"""A restart of the daemon: what is in the checkpoint, what is believed of it, and how a connection goes on."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nfq_failover.core.events import (
    ApplyRules,
    Effect,
    FlowsGone,
    FlowsListed,
    Inject,
    ListFlows,
    Log,
    OwnAddress,
    PacketQueued,
    Profile,
    Queue,
    SaveCheckpoint,
    TimerFired,
    Verdict,
)
from nfq_failover.core.node import Node
from nfq_failover.core.pair.roles import Input, State
from nfq_failover.core.shadow.checkpoint import (
    HEADER_BYTES,
    LIFE_BYTES,
    SLOT_BYTES,
    Checkpoint,
    CheckpointWriter,
    pack,
    read_checkpoint,
    unpack,
)
from nfq_failover.core.shadow.connection import Shadow
from nfq_failover.core.status import connections_of
from tests.support.shadow import EDGE, Shadowing, from_client, replica
from tests.support.transcript import FLOW, After, server, settings, syn, syn_ack
from tests.unit.core.shadow.test_takeover import AT, shown

LIFE = b"L" * LIFE_BYTES


class Restarting(Shadowing):
    """A connection that is taken over; `restart` replaces the daemon, and keeps only the checkpoint."""

    def restart(self, away_s: float = 0.5) -> None:
        slot = pack(self.side.flows[FLOW])
        self.now += away_s
        self.side.flows.clear()
        self.side.numbers.clear()
        self.shadow = unpack(slot, self.side.settings, self.now)
        self.side.restore([self.shadow], self.now)
        self.drain()


def ask(offset: int, ack: int, stamped: bool = False) -> str:
    """The question to our TCP: one byte before what it expects."""
    return f"kernel [.] {offset - 1} ack {ack} wnd 500" + (" ts 1001/7000000" if stamped else "")


def taken_over(t: Restarting) -> None:
    """80 bytes from the client, 100 from the replica of which 40 are acknowledged."""
    t >> "takeover" << shown(0, 0, 0, 60)
    t >> from_client(0, 80) << "pass [.] 0:80 ack 0 wnd 500 ts 1001/7000000"
    t >> replica(0, 100, ack=80) << f"pass [.] 0:100 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 60}/1001"
    t >> from_client(80, 0, ack=40) << "pass [.] 80 ack 40 wnd 500 ts 1001/7000000"


def test_our_tcp_is_asked_where_it_is_and_then_all_goes_on() -> None:
    with Restarting() as t:
        taken_over(t)
        t.restart()
        t << ask(80, 40)
        t >> from_client(80, 24, ack=40) << "drop resyncing"
        # Its answer is news for the client, too. No TSval is older than what the client may have seen.
        t >> replica(100, 0, ack=80, ts=(7_000_100, 1001))
        t << f"pass [.] 100 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 560}/1001"
        t >> from_client(80, 24, ack=100, ts=(1600, AT + 560)) << "pass [.] 80:104 ack 100 wnd 500 ts 1600/7000560"
        t >> replica(100, 30, ack=104, ts=(7_000_600, 1600))
        t << f"pass [.] 100:130 ack 104 wnd {(EDGE - 104) // 4} ts {AT + 600}/1600"


def test_a_retransmission_of_our_tcp_answers_too() -> None:
    with Restarting() as t:
        taken_over(t)
        t.restart()
        t << ask(80, 40)
        t >> replica(40, 60, ack=80, ts=(7_000_600, 1001))
        t << f"pass [.] 40:100 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 600}/1001"
        assert not t.shadow.resync.pending


def test_the_question_is_repeated_until_it_is_answered() -> None:
    with Restarting() as t:
        taken_over(t)
        t.restart()
        t << ask(80, 40)
        t >> After(0.051) << ask(80, 40, stamped=True)
        t >> After(0.101) << ask(80, 40)
        t >> replica(100, 0, ack=80, ts=(7_000_900, 1001))
        t << f"pass [.] 100 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 900}/1001"
        t >> After(3.0)


def test_a_connection_that_our_tcp_has_lost_is_reset() -> None:
    with Restarting() as t:
        taken_over(t)
        t.restart()
        t << ask(80, 40)
        t >> server(40, 0, ack=None, flags="R", wnd=0) << "drop replica-gone"
        t << "log error: connection lost its replica" << "kernel [R.] 80 ack 40 wnd 500 ts 1001/7000000"
        t << "client [R.] 40 ack 80 wnd 0" << "client [R.] 100 ack 80 wnd 0" << "client [R.] 64039 ack 80 wnd 0"
        t << "client [R.] 64040 ack 80 wnd 0"
        t >> from_client(80, 24, ack=60) << "drop connection-dead" << "client [R.] 60 ack 104 wnd 0"


def test_the_clients_newest_timestamp_is_what_our_tcp_echoes() -> None:
    with Restarting() as t:
        t >> from_client(0, 0, ack=900)  # it has more than the replica has produced
        t << "pass [.] 0 ack 0 wnd 508 ts 1001/7000000"
        t >> "takeover" << shown(900, 0, 0, 60)
        t.restart()
        t << ask(0, 0)
        t >> replica(0, 300, ts=(7_000_600, 1333)) << "drop client-has-it"
        t << "kernel [.] 0 ack 300 wnd 505 ts 1333/7000000"


def test_what_only_the_dead_daemon_had_is_a_reset() -> None:
    with Restarting() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000"
        t.effects.clear()  # logged, and confirmed; our TCP has not taken it
        t >> "takeover" << shown(0, 0, 100, 60)
        t.restart()
        assert t.shadow.state is Shadow.DEAD
        t << ask(0, 0) << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"


def test_one_that_is_cut_is_asked_until_our_tcp_shows_itself_and_is_reset() -> None:
    """By RFC 7323 (section 3.2) our TCP drops a question without timestamps silently."""
    with Restarting() as t:
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000"
        t.effects.clear()
        t >> "takeover" << shown(0, 0, 100, 60)
        t.restart()
        t << ask(0, 0) << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"
        t >> After(0.051) << ask(0, 0, stamped=True)
        t >> replica(0, 0, ts=(7_000_900, 1001)) << "drop replica-silent" << "kernel [R] 0 wnd 0"
        t >> After(2.1) << ask(0, 0) << "client [R.] 0 ack 0 wnd 0"
        t << "client [R.] 63999 ack 0 wnd 0" << "client [R.] 64000 ack 0 wnd 0"
        t << "client [.] -1 ack 0 wnd 65535" << "client [.] -1 ack 0 wnd 65535 ts 2000000/1001"
        t >> server(0, 0, ack=None, flags="R", wnd=0) << "drop replica-silent"
        t >> FlowsGone([FLOW])
        assert not t.side.flows and not t.side.numbers


def test_no_window_edge_and_no_fin_is_forgotten() -> None:
    with Restarting() as t:
        taken_over(t)
        t >> from_client(80, 0, ack=100, flags="F.") << "pass [F.] 80 ack 100 wnd 500 ts 1001/7000000"
        (
            t
            >> replica(100, 0, ack=81, edge=EDGE + 1, flags="F.")
            << f"pass [F.] 100 ack 81 wnd {(EDGE - 80) // 4} ts {AT + 60}/1001"
        )
        t >> from_client(81, 0, ack=101) << "pass [.] 81 ack 101 wnd 500 ts 1001/7000000"
        edge = t.shadow.inward.rcv_edge
        t.restart()  # and nothing is asked: both directions are over
        assert t.shadow.ended
        assert t.shadow.mapping.told_edge == edge
        t >> from_client(80, 0, ack=101, flags="F.") << "drop ended"
        t << f"client [.] 101 ack 81 wnd {(EDGE - 80) // 4} ts {AT + 560}/1001"


def test_far_into_a_stream_numbers_wrap_as_before() -> None:
    with Restarting() as t:
        taken_over(t)
        shadow, far = t.shadow, 5 << 32
        for space in (shadow.mapping.seen, shadow.mapping.own, shadow.inward.client):
            space.near += far
        shadow.inward.rcv_nxt += far
        shadow.output.snd_una += far
        shadow.output.snd_nxt += far
        shadow.inward.rcv_edge += far
        t.restart()
        t << ask(80, 40)
        t >> replica(100, 0, ack=80, ts=(7_000_900, 1001))
        t << f"pass [.] 100 ack 80 wnd {(EDGE - 80) // 4} ts {AT + 900}/1001"
        assert (t.shadow.inward.rcv_nxt, t.shadow.output.snd_nxt) == (far + 80, far + 100)


# ------------------------------------------------------------------------------------------ what is in the checkpoint


class SavedFile:
    """What `SaveCheckpoint` has been writing on."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, effect: SaveCheckpoint) -> None:
        for at, data in effect.writes:
            self.data.extend(bytes(max(at + len(data) - len(self.data), 0)))
            self.data[at : at + len(data)] = data


def written(count: int = 3) -> bytes:
    """A checkpoint with some connections."""
    saved, writer = SavedFile(), CheckpointWriter(LIFE)
    connections = []
    for number in range(count):
        with Shadowing() as t:
            t >> "takeover"
            t.effects.clear()
            flow = (t.shadow.flow[0], 1000 + number, *t.shadow.flow[2:])
            t.shadow.flow, t.shadow.open = flow, replace(t.shadow.open, flow=flow, conn=number)
            connections.append(t.shadow)
    writer.begin(connections)
    writer.note(True, 7, True)
    saved.write(SaveCheckpoint(tuple(writer.writes)))
    return bytes(saved.data)


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    found = read_checkpoint(written(), LIFE)
    assert found is not None
    assert (found.damage, found.serving, found.epoch, found.adopts_unknown, found.damaged) == ("", True, 7, True, 0)
    assert len(found.slots) == 3
    for slot in found.slots:
        # But for the replica's clock, which has run on.
        once = pack(unpack(slot, settings(), 100.5))
        assert pack(unpack(once, settings(), 100.5)) == once
        assert sum(x != y for x, y in zip(slot, once, strict=True)) <= 4 + 8 + 4  # last TSval, when, checksum


def test_a_checkpoint_of_another_boot_says_nothing() -> None:
    assert read_checkpoint(written(), b"M" * LIFE_BYTES) is None


@pytest.mark.parametrize("stored", [6, 8])
def test_a_checkpoint_of_another_epoch_does_not_let_it_serve(stored: int) -> None:
    found = read_checkpoint(written(), LIFE)
    assert found is not None and found.allows(7, True)
    assert not found.allows(stored, True)
    assert not found.allows(7, False)


def test_no_damage_goes_unnoticed() -> None:
    whole = written()
    good = read_checkpoint(whole, LIFE)
    assert good is not None
    rng = random.Random(1)
    for _ in range(500):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        found = read_checkpoint(bytes(data), LIFE)
        assert found is not None and (found.damage or found.damaged == 1)
        assert set(found.slots) < set(good.slots)
    for size in range(0, len(whole), 7):
        found = read_checkpoint(whole[:size], LIFE)
        assert found is not None and (found.damage or found.damaged > 0)


def test_a_packet_without_news_writes_nothing_and_a_change_one_slot() -> None:
    writer = CheckpointWriter(LIFE)
    with Shadowing() as t:
        t >> "takeover"
        t.effects.clear()
        writer.begin([t.shadow])
        writer.note(True, 1, True)
        writer.writes.clear()
        t >> from_client(0, 100) << "pass [.] 0:100 ack 0 wnd 500 ts 1001/7000000"
        t >> replica(0, 100, ack=100) << f"pass [.] 0:100 ack 100 wnd {(EDGE - 100) // 4} ts {AT + 60}/1001"
        writer.review(t.shadow)
        writer.note(True, 1, True)
        assert writer.writes == []
        t.shadow.output.snd_nxt += 1 << 28
        writer.review(t.shadow)
        assert [(at, len(data)) for at, data in writer.writes] == [(HEADER_BYTES, SLOT_BYTES)]
        writer.writes.clear()
        writer.forget(t.shadow.flow)
        writer.review(t.shadow)
        assert writer.writes == [(HEADER_BYTES, bytes(SLOT_BYTES))]


# -------------------------------------------------------------------------------------------------------- the node


def node(checkpoint: Checkpoint | None, epoch: int = 7, served: bool = True) -> tuple[Node, list[Effect]]:
    """A node that starts, and what it does at once."""
    made = Node(
        settings(has_fence=True), random.Random(1).randbytes, epoch, served, 200.0, CheckpointWriter(LIFE), checkpoint
    )
    return made, drain(made)


def drain(made: Node) -> list[Effect]:
    effects = []
    while (effect := made.poll_effect()) is not None:
        effects.append(effect)
    return effects


def test_a_host_that_served_alone_goes_on_at_once_and_what_it_needs_to_know_is_written_first() -> None:
    made, effects = node(read_checkpoint(written(), LIFE))
    assert made.members.state is State.UNPROTECTED
    assert made.members.epoch == 7
    assert isinstance(effects[0], SaveCheckpoint)
    assert [e.own for e in effects if isinstance(e, OwnAddress)] == [True]
    (rules,) = [e for e in effects if isinstance(e, ApplyRules)]
    assert (rules.profile, len(rules.inherited)) == (Profile.ALONE, 3)
    assert [e.inward for e in effects if isinstance(e, Inject)] == [True] * 3  # nothing to the clients yet
    saved = SavedFile()
    saved.write(effects[0])
    again = read_checkpoint(bytes(saved.data), LIFE)
    assert again is not None and again.serving and len(again.slots) == 3


@pytest.mark.parametrize(
    ("checkpoint", "epoch", "served"),
    [
        (read_checkpoint(written(), LIFE), 8, True),
        (read_checkpoint(written(), LIFE), 7, False),
        (read_checkpoint(written()[:-50], b"M" * LIFE_BYTES), 7, True),
        (Checkpoint("it is missing"), 7, True),
        (None, 7, True),
    ],
)
def test_otherwise_it_is_silent_and_lets_nothing_through(
    checkpoint: Checkpoint | None, epoch: int, served: bool
) -> None:
    made, effects = node(checkpoint, epoch, served)
    assert made.members.state is State.WAITING
    assert not any(isinstance(e, OwnAddress | ApplyRules) for e in effects)
    assert all(e.inward for e in effects if isinstance(e, Inject))
    for number, sent in enumerate((from_client(0, 50), replica(0, 50)), 1):
        queue = Queue.IN if sent.by == "client" else Queue.OUT
        made.handle(PacketQueued(queue, number, sent.packet(1)), 200.1)
        verdicts = [e for e in drain(made) if isinstance(e, Verdict)]
        assert [v.accept for v in verdicts] == [False]


def test_what_is_lost_is_said_and_unknown_connections_are_not_let_out() -> None:
    made, effects = node(Checkpoint("it is missing"))
    assert [e.level for e in effects if isinstance(e, Log)] == ["error"]
    assert not made.gate.opening.adopts_unknown


def test_connections_that_could_not_go_on_are_reset_when_this_host_serves() -> None:
    made, _ = node(read_checkpoint(written(), LIFE), epoch=8)
    made.members.claim()
    made.handle(TimerFired(), 200.2)
    made.members.epoch_stored(9, True, "")
    made.handle(TimerFired(), 200.3)
    assert made.members.state is State.UNPROTECTED
    outward = [e for e in drain(made) if isinstance(e, Inject) and not e.inward]
    assert len({bytes(e.packet[20:24]) for e in outward}) == 3  # ports
    assert all(e.packet[33] & 4 for e in outward)  # RST


def test_protection_begins_only_when_the_checkpoint_says_that_a_restart_must_not_go_on() -> None:
    made, _ = node(read_checkpoint(written(0), LIFE))
    saved = SavedFile()
    made.members.state = State.ARMING
    made.members.rules_ready = True
    made.members._go(Input.ARMED, "")
    made.handle(TimerFired(), 200.1)
    first = drain(made)[0]
    assert isinstance(first, SaveCheckpoint)
    saved.data.extend(written(0))
    saved.write(first)
    found = read_checkpoint(bytes(saved.data), LIFE)
    assert found is not None and not found.serving


# ------------------------------------------------------------------------------------ connections that nobody knows


def test_a_host_that_serves_again_hunts_connections_of_another_time() -> None:
    made, _ = node(None, epoch=3, served=False)
    made.members.claim()
    made.handle(TimerFired(), 200.1)
    made.members.epoch_stored(4, True, "")
    made.handle(TimerFired(), 200.2)
    assert not made.gate.opening.adopts_unknown
    assert sum(isinstance(e, ListFlows) for e in drain(made)) == 1
    made.handle(FlowsListed([FLOW]), 200.4)
    (poke,) = [e for e in drain(made) if isinstance(e, Inject)]
    assert poke.inward
    # It answers, and is reset for that; the client hears nothing.
    made.handle(PacketQueued(Queue.OUT, 1, replica(0, 0).packet(1)), 200.5)
    effects = drain(made)
    assert [e.accept for e in effects if isinstance(e, Verdict)] == [False]
    assert [e.inward for e in effects if isinstance(e, Inject)] == [True]
    for moment in (201.5, 202.6):
        made.handle(TimerFired(), moment)
        assert not made.gate.opening.adopts_unknown
        made.handle(FlowsListed([]), moment)
    assert made.gate.opening.adopts_unknown


def test_last_words_that_waited_in_the_queue_when_the_hunt_was_over_reach_no_client() -> None:
    """The kernel knows their connection no more, so it was in no list."""
    made, _ = node(None, epoch=3, served=False)
    made.members.claim()
    made.handle(TimerFired(), 200.1)
    made.members.epoch_stored(4, True, "")
    for moment in (200.2, 200.6):
        made.handle(TimerFired(), moment)
        made.handle(FlowsListed([], 0xFFFFFFFF), moment)
    assert made.gate.opening.adopts_unknown
    drain(made)
    for number, passes in ((0xFFFFFFFE, False), (0xFFFFFFFF, False), (0, True), (1, True)):
        made.handle(PacketQueued(Queue.OUT, number, server(5000, 100, ack=700).packet(1)), 200.7)
        assert [e.accept for e in drain(made) if isinstance(e, Verdict)] == [passes], number


def test_native_connections_are_not_hunted() -> None:
    made, _ = node(read_checkpoint(written(0), LIFE))
    made.gate.opening.adopt_unknown(False)
    made.handle(PacketQueued(Queue.IN, 1, syn().packet(1)), 200.1)
    made.handle(PacketQueued(Queue.OUT, 2, syn_ack().packet(1)), 200.1)
    made.handle(TimerFired(), 200.2)
    drain(made)
    made.handle(FlowsListed([FLOW]), 200.3)
    assert not [e for e in drain(made) if isinstance(e, Inject)]


def test_nothing_may_bypass_a_dead_daemon_before_the_hunt_is_over() -> None:
    made, _ = node(None, epoch=3, served=False)
    made.members.claim()
    made.handle(TimerFired(), 200.1)
    made.members.epoch_stored(4, True, "")
    made.handle(TimerFired(), 200.2)
    assert [e.profile for e in drain(made) if isinstance(e, ApplyRules)] == [Profile.BACKUP]
    made.handle(FlowsListed([]), 200.3)
    made.handle(TimerFired(), 200.6)
    assert [e.profile for e in drain(made) if isinstance(e, ApplyRules)] == []
    made.handle(FlowsListed([]), 200.6)
    assert [e.profile for e in drain(made) if isinstance(e, ApplyRules)] == [Profile.ALONE]


def test_a_connection_that_was_opened_while_the_daemon_was_away_is_listed_as_unprotected() -> None:
    made, _ = node(read_checkpoint(written(0), LIFE))
    sent = server(5000, 100, ack=700)
    for number in (1, 2):
        made.handle(PacketQueued(Queue.OUT, number, sent.packet(1)), 200.1)
    assert [(e.accept, e.packet) for e in drain(made) if isinstance(e, Verdict)] == [(True, None)] * 2
    (row,) = connections_of(made.gate, made.shadow)
    assert (row.protected, row.reason) == (False, "opened while no daemon was there")
    made.handle(FlowsGone([FLOW]), 203.0)
    assert connections_of(made.gate, made.shadow) == []
