"""Conformance cases: the handshake, its options, and segments without a connection."""

from __future__ import annotations

from struct import pack

from nfq_failover.constants import ACK, FIN, PSH, RST, SYN
from nfq_failover.wire.tcp_options import each_option
from tests.netns.conformance.case import (
    CLOSED_PORT,
    Env,
    Transcript,
    answer,
    bare,
    case,
    established,
    granted,
)
from tests.netns.conformance.client import MSS_1400, SACK_PERMITTED, SCALE_7
from tests.support.scripted_server import content


@case("the same number", lives=False)
def a_syn_sent_again(env: Env) -> Transcript:
    end = env.end()
    first = end.handshake()
    end.mark()
    end.syn(MSS_1400 + SACK_PERMITTED + b"\x01\x01" + SCALE_7, seq=-1)
    again = end.wait(lambda one: bool(one.flags & SYN))
    assert again is not None
    end.ask(["echo", 10, 10])
    end.send(b"t" + b"0123456789")
    same = "the same number" if again.raw.seq == first.raw.seq else "another number"
    return [granted(first), same, granted(again), end.receive(10).decode()]


@case("0123456789", lives=False)
def data_with_the_handshakes_last_ack(env: Env) -> Transcript:
    end = env.end()
    end.handshake()
    end.ask(["echo", 10, 10])
    end.send(b"t" + b"0123456789")
    return [end.receive(10).decode()]


@case("rst at 1000", "0123456789", lives=False)
def a_wrong_ack_of_the_syn_ack_is_reset_and_the_right_one_still_counts(env: Env) -> Transcript:
    end = env.end()
    end.handshake()
    told = answer(end, lambda: end.emit(0, b"", ACK, 1000), until=lambda one: bool(one.flags & RST))
    end.ask(["echo", 10, 10])
    end.send(b"t" + b"0123456789")
    return [told, end.receive(10).decode()]


@case("then: rst at 0", lives=False)
def another_syn_in_the_window_before_the_handshake_ends(env: Env) -> Transcript:
    end = env.end()
    end.handshake()
    told = answer(end, lambda: end.syn(MSS_1400 + SACK_PERMITTED, seq=5000))
    then = answer(end, lambda: end.emit(0, b"", ACK, 0), until=lambda one: bool(one.flags & RST))
    return [bare(told), f"then: {then}"]


@case("0123456789", lives=False)
def an_older_syn_before_the_handshake_ends(env: Env) -> Transcript:
    end = env.end()
    end.handshake()
    told = answer(end, lambda: end.syn(MSS_1400 + SACK_PERMITTED, seq=-5000))
    end.ask(["echo", 10, 10])
    end.send(b"t" + b"0123456789")
    return [told, end.receive(10).decode()]


@case("the same number, after about 1 s", lives=False)
def a_syn_ack_that_nobody_acknowledges(env: Env) -> Transcript:
    end = env.end()
    first = end.handshake()
    end.mark()
    again = end.wait(lambda one: bool(one.flags & SYN), 6.0)
    assert again is not None
    same = "the same number" if again.raw.seq == first.raw.seq else "another number"
    gap = again.time - first.time
    end.reset()
    return [f"{same}, after {'about 1 s' if 0.7 < gap < 2 else f'{gap:.1f} s'}", granted(again)]


@case("longest 536", lives=False)
def a_syn_without_options(env: Env) -> Transcript:
    end = env.end()
    end.timestamps = False
    first = end.handshake(b"")
    end.ask(["send", 3000, 1])
    end.tick()
    right = end.receive(3000) == content(1, 3000)
    longest = max(map(len, end.got.values()))
    kinds = sorted({kind for one in end.since() for kind, _, _ in each_option(one.raw.options())})
    return [granted(first), f"longest {longest}", "right" if right else "wrong", f"later options {kinds}"]


@case("longest 288", "right")
def a_small_mss(env: Env) -> Transcript:
    end = established(env, ["send", 3000, 2], options=pack("!BBH", 2, 4, 300) + SACK_PERMITTED)
    right = end.receive(3000) == content(2, 3000)
    return [f"longest {max(map(len, end.got.values()))}", "right" if right else "wrong"]


@case("up to 1000", "right")
def a_small_window_without_scaling(env: Env) -> Transcript:
    end = env.end()
    end.window = 1000
    end.automatic = False
    end.open(["send", 5000, 3], ["take_all"], options=MSS_1400)
    env.cross(end)
    end.wait_for(lambda: len(end.received()) >= 1000)
    end.sync()
    furthest = max(map(len, [end.received()]))
    end.automatic = True
    end.expected = furthest
    end.emit(end.next, b"", ACK)
    right = end.receive(5000) == content(3, 5000)
    return [f"up to {furthest}", "right" if right else "wrong"]


@case(lives=False)
def unknown_options_in_the_syn(env: Env) -> Transcript:
    end = env.end()
    return [granted(end.handshake(MSS_1400 + b"\xfd\x04\x12\x34" + SACK_PERMITTED + b"\x01\x01"))]


@case("acknowledges 1", lives=False)
def data_in_the_syn(env: Env) -> Transcript:
    end = env.end()
    end.syn(MSS_1400 + SACK_PERMITTED, data=b"too early")
    found = end.wait(lambda one: bool(one.flags & SYN))
    assert found is not None
    told = f"acknowledges {found.ack}"
    end.accept(found)
    end.ask(["echo", 10, 10])
    end.send(b"t" + b"0123456789")
    return [told, granted(found), end.receive(10).decode()]


@case("rst at 0", lives=False)
def a_reset_before_the_handshake_ends(env: Env) -> Transcript:
    end = env.end()
    end.handshake()
    end.emit(0, b"", RST, 0)
    end.settle()
    return [answer(end, lambda: end.emit(0, b"", ACK, 0), until=lambda one: bool(one.flags & RST))]


@case("syn: rst, ack 1", "ack: rst at 77", lives=False)
def a_closed_port(env: Env) -> Transcript:
    lines = []
    end = env.end(CLOSED_PORT)
    lines.append("syn: " + bare(answer(end, lambda: end.syn(MSS_1400))))
    other = env.end(CLOSED_PORT)
    lines.append("ack: " + answer(other, lambda: other.emit(0, b"", ACK, 77)))
    third = env.end(CLOSED_PORT)
    lines.append("data: " + answer(third, lambda: third.emit(0, b"data", ACK | PSH, 78)))
    fourth = env.end(CLOSED_PORT)
    lines.append("fin: " + bare(answer(fourth, lambda: fourth.emit(0, b"", FIN, 0))))
    return lines


@case("ack: rst at 77", lives=False)
def an_open_port_without_the_connection(env: Env) -> Transcript:
    end = env.end()
    lines = ["ack: " + answer(end, lambda: end.emit(0, b"", ACK, 77))]
    other = env.end()
    lines.append("data: " + answer(other, lambda: other.emit(0, b"data", ACK | PSH, 78)))
    return lines
