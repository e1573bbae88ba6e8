"""Conformance cases: closing, timers, TIME-WAIT, ICMP."""

from __future__ import annotations

import time
from collections.abc import Callable
from struct import pack

from nfq_failover.constants import ACK, FIN, PSH, RST, SYN
from tests.netns.conformance.case import (
    Env,
    Transcript,
    alive,
    answer,
    case,
    digest_is,
    established,
    growing,
    said,
)
from tests.netns.conformance.client import End, Seen, icmp_unreachable
from tests.support.scripted_server import content


def until_fin(one: Seen) -> bool:
    return bool(one.flags & FIN)


@case("data 0..3000, fin at 3000, ack 1")
def half_close(env: Env) -> Transcript:
    end = established(env, ["take_all"], ["send", 3000, 5])
    told = answer(end, lambda: end.send(b"", ACK | FIN), until=lambda one: one.end == 3001)
    return [told, "right" if end.receive(3000) == content(5, 3000) else "wrong"]


@case("data 0..64, fin at 64, ack 4")
def a_fin_with_data(env: Env) -> Transcript:
    end = established(env, ["take_all"], ["digest"])
    told = answer(end, lambda: end.send(b"abc", ACK | FIN | PSH), until=until_fin)
    return [told, digest_is(end, b"tabc")]


@case("ack 1, dsack 0..1")
def a_fin_sent_again(env: Env) -> Transcript:
    gate = env.gate()
    end = established(env, ["take_all"], ["gate", str(gate)])
    end.send(b"", ACK | FIN)
    told = answer(end, lambda: end.emit(0, b"", ACK | FIN), until=lambda one: one.ack == 1)
    gate.touch()
    end.mark()
    end.wait(until_fin)
    return [told, said(end.since())]


@case("fin at 0, ack 0", "ack 1")
def the_server_closes_first(env: Env) -> Transcript:
    end = env.end()
    end.open()
    end.mark()
    env.cross(end)
    end.wait_for(lambda: end.expected == 1)
    lines = ["fin at 0, ack 0" if end.expected == 1 else "no fin"]
    lines.append(answer(end, lambda: end.send(b"", ACK | FIN), until=lambda one: one.ack == 1))
    lines.append(answer(end, lambda: end.emit(0, b"", ACK | FIN), until=lambda one: one.ack == 1))  # TIME-WAIT
    return lines


@case("growing")
def a_fin_that_nobody_acknowledges(env: Env) -> Transcript:
    end = env.end()
    end.open()
    end.automatic = False
    env.cross(end)
    end.wait_for(lambda: fins(end) >= 4)
    times = [one.time for one in end._seen if one.flags & FIN]
    end.reset()
    return [growing(times)]


def fins(end: End) -> int:
    """How many FINs have come."""
    return sum(bool(one.flags & FIN) for one in end._seen)


@case("rst at 0 ack 10")
def the_server_closes_with_unread_data(env: Env) -> Transcript:
    gate = env.gate()
    end = established(env, ["gate", str(gate)])
    end.send(b"never read")
    return [answer(end, gate.touch, until=lambda one: bool(one.flags & RST))]


@case("rst at 1")
def data_after_the_server_has_closed(env: Env) -> Transcript:
    end = env.end()
    end.open()
    env.cross(end)
    end.wait_for(lambda: end.expected == 1)
    return [answer(end, lambda: end.emit(0, b"too late"), until=lambda one: bool(one.flags & RST))]


@case("fin at 0, ack 0", "ack 1")
def both_close_at_once(env: Env) -> Transcript:
    gate = env.gate()
    end = established(env, ["gate", str(gate)])
    end.automatic = False
    lines = [answer(end, gate.touch, until=until_fin)]
    end.next = 1
    told = answer(end, lambda: end.emit(0, b"", ACK | FIN, 0), until=lambda one: one.ack == 1)
    lines.append("ack 1" if "ack 1" in told else told)
    end.expected = 1
    end.emit(1, b"", ACK)
    end.settle()
    lines.append(answer(end, lambda: end.emit(0, b"", ACK | FIN)))
    return [line.removeprefix("fin at 0, ") if number == 2 else line for number, line in enumerate(lines)]


@case("rst at 0 ack 0")
def the_server_resets(env: Env) -> Transcript:
    gate = env.gate()
    end = established(env, ["gate", str(gate)], ["reset"])
    return [answer(end, gate.touch, until=lambda one: bool(one.flags & RST))]


# ---------------------------------------- timers


@case("data 0..100, ack 1", "growing")
def data_that_nobody_acknowledges(env: Env) -> Transcript:
    gate = env.gate()
    end = established(env, ["take", 1], ["send", 100, 6], ["take", 1])
    end.automatic = False
    told = answer(end, lambda: end.send(b"g"), until=lambda one: one.end == 100)
    end.wait_for(lambda: sum(one.length == 100 for one in end.since()) >= 4)
    times = [one.time for one in end.since() if one.length]
    end.reset()
    assert not gate.exists()
    return [told, growing(times)]


@case("again", "right")
def a_lost_segment_is_sent_again_when_later_ones_are_reported(env: Env) -> Transcript:
    end = env.end()
    end.open(["send", 14_000, 7], ["take_all"])
    end.automatic = False
    env.cross(end)
    end.wait_for(lambda: len(end.received()) >= 14_000)
    first = next(one for one in end._seen if one.seq == 0 and one.length)
    end.mark()
    for count in (2, 3, 4, 6):
        end.emit(0, b"", ACK, 0, sack=[(first.length, count * first.length)])
    again = end.wait(lambda one: one.seq == 0 and one.length > 0, 3.0)
    end.automatic = True
    end.expected = 14_000
    end.emit(0, b"", ACK)
    right = end.receive(14_000) == content(7, 14_000)
    return ["again" if again else "not again", "right" if right else "wrong"]


@case("probes", "growing", "right")
def the_clients_window_closes(env: Env) -> Transcript:
    end = env.end()
    end.automatic = False
    end.window = 8
    end.open(["send", 5000, 8])
    env.cross(end)
    end.wait_for(lambda: len(end.received()) >= 8 << 7)
    furthest = len(end.received())
    end.mark()
    end.expected, end.window = furthest, 0
    end.emit(end.next, b"", ACK)
    begun = end.wait_for(lambda: len([one for one in end.since() if one.seq <= furthest]) >= 4)
    times = [one.time for one in end.since()]
    beyond = max(one.seq + one.length for one in end.since()) - furthest if begun else 0
    end.window, end.automatic = 8000, True
    end.emit(end.next, b"", ACK)
    right = end.receive(5000) == content(8, 5000)
    lines = [f"up to {furthest}", "probes" if begun else "no probes", f"{max(0, beyond)} beyond", growing(times)]
    return [*lines, "right" if right else "wrong"]


@case("closes", "probe: window 0", "opens", "the digest is right")
def the_servers_window_closes(env: Env) -> Transcript:
    gate = env.gate()
    size = 1_000_000
    data = content(9, size)
    end = env.end()
    end.open(["gate", str(gate)], ["take_all"], ["digest"])
    env.cross(end)
    end.mark()
    end.emit(-1, b"", ACK)
    end.wait(lambda one: True)
    give_up = time.monotonic() + 15
    while (edge := max(one.edge for one in end.since())) > end.next and time.monotonic() < give_up:
        end.send_many(data[end.next : min(edge, end.next + 16_000)])
    lines = ["closes" if edge == end.next < size else "does not close"]
    end.settle()

    def probe(until: Callable[[Seen], bool]) -> Seen | None:
        """What a client with data does, again and again (RFC 9293 section 3.8.6.1): an answer may be lost."""
        for _ in range(20):
            end.emit(end.next, data[end.next : end.next + 1])
            if found := end.wait(until, 0.7):
                return found
        return None

    probed = probe(lambda one: True)
    lines.append(f"probe: window {probed.window if probed else None}")
    end.settle()
    gate.touch()
    opened = end.wait(lambda one: one.window >= 1000, 0.7) or probe(lambda one: one.window >= 1000)
    lines.append("opens" if opened else f"stays closed at {end.next}")
    end.send(data[end.next : end.next + 1000])
    taken = end.next
    end.send(b"", ACK | FIN)
    return [*lines, digest_is(end, b"t" + data[:taken])]


# ---------------------------------------- TIME-WAIT, ICMP


@case("a new connection", "0123456789", lives=False)
def a_port_used_again_in_time_wait(env: Env) -> Transcript:
    end = env.end()
    end.open()
    end.tick()
    end.wait_for(lambda: end.expected == 1)
    end.send(b"", ACK | FIN)
    old = end.base
    again = env.end(source_port=end.source_port)
    again.base = (old + 100_000) & 0xFFFF_FFFF
    found = again.handshake()
    again.ask(["echo", 10, 10])
    again.send(b"t" + b"0123456789")
    return ["a new connection" if found.flags & SYN else "none", again.receive(10).decode()]


@case("alive")
def an_icmp_error_that_is_not_hard(env: Env) -> Transcript:
    """RFC 1122 section 4.2.3.9: unreachable ports and hosts don't end an established connection."""
    end = established(env, ["take", 1], ["send", 100, 10], ["echo_all"])
    end.automatic = False
    end.send(b"g")
    found = end.wait(lambda one: one.length == 100)
    assert found is not None
    quoted = bytearray(found.raw.buf)
    quoted[24:28] = pack("!I", env.quoted(found.raw.seq))
    for code in (1, 3):
        end._wire.send(icmp_unreachable(code, bytes(quoted)))
    end.automatic, end.expected = True, 100
    end.emit(end.next, b"", ACK)
    return [alive(end)]


@case("right", "at most 560", lives=False, alone=True)
def a_path_with_a_smaller_mtu(env: Env) -> Transcript:
    """RFC 1191."""
    end = env.end()
    end.open(["send", 3000, 11])
    end.automatic = False
    end.tick()
    end.wait_for(lambda: len(end.received()) >= 3000)
    first = next(one for one in end._seen if one.seq == 0 and one.length)
    quoted = bytearray(first.raw.buf)
    quoted[24:28] = pack("!I", env.quoted(first.raw.seq))
    end.mark()
    end._wire.send(icmp_unreachable(4, bytes(quoted), mtu=600))
    end.wait(lambda one: one.seq == 0 and one.length > 0)
    longest = max(one.length for one in end.since() if one.length)
    end.automatic, end.expected = True, 3000
    end.emit(end.next, b"", ACK)
    right = end.receive(3000) == content(11, 3000)
    return ["at most 560" if longest <= 560 else f"longest {longest}", "right" if right else "wrong"]
