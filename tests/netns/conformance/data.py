"""Conformance cases: data, acknowledgements, timestamps, and blind segments (RFC 5961)."""

from __future__ import annotations

import time
from functools import partial

from nfq_failover.constants import ACK, PSH, RST, URG
from tests.netns.conformance.case import (
    NEVER_SENT,
    Env,
    Transcript,
    alive,
    answer,
    case,
    digest_is,
    established,
    is_dsack,
    said,
    selectively,
)
from tests.netns.conformance.client import MSS_1400, content_digest
from tests.support.scripted_server import content


@case("ack 300")
def data_in_order(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    end.mark()
    for _ in range(3):
        end.send(b"x" * 100)
    return [said(end.since())]


@case("ack 0, sack 100..200", "ack 200")
def data_out_of_order(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    first = selectively(end, lambda: end.emit(100, b"x" * 100), (100, 200))
    second = answer(end, lambda: end.emit(0, b"x" * 100), until=lambda one: one.ack == 200)
    return [first, second]


@case("ack 0, sack 400..500, sack 200..300", "ack 500")
def two_holes(env: Env) -> Transcript:
    """A third block would have no room beside timestamps and the report of a duplicate (RFC 2018 section 3)."""
    end = established(env, ["take_all"])
    lines: Transcript = []
    blocks: list[tuple[int, int]] = []
    for at in (200, 400):
        blocks.insert(0, (at, at + 100))
        lines.append(selectively(end, partial(end.emit, at, b"x" * 100), *blocks))
    end.mark()
    for at in (0, 100, 300):
        end.emit(at, b"x" * 100)
    end.wait(lambda one: one.ack == 500)
    return [*lines, said(end.since()[-1:])]


@case("ack 100, dsack 0..100")
def a_duplicate(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    end.send(b"x" * 100)
    return [answer(end, lambda: end.emit(0, b"x" * 100), until=is_dsack)]


@case("the digest is right")
def segments_that_overlap(env: Env) -> Transcript:
    end = established(env, ["take", 300], ["digest"])
    data = content(4, 300)
    end.emit(0, data[:100])
    end.emit(50, data[50:150])
    end.emit(140, data[140:300])
    end.next = 300
    end.wait(lambda one: one.ack == 300)
    return [digest_is(end, b"t" + data)]


@case(lives=False)
def segments_that_overlap_and_differ(env: Env) -> Transcript:
    """The bytes that were there first count, or the later ones. No longer protected: a replica may think otherwise."""
    end = env.end()
    end.open(["take", 300], ["take", 1], ["digest"])
    end.tick()
    old, new = b"A" * 300, b"B" * 300
    selectively(end, lambda: end.emit(100, old[100:200]), (100, 200))
    answer(end, lambda: end.emit(50, new[50:150]))
    answer(end, lambda: end.emit(0, new[:120]), until=lambda one: one.ack == 200)
    end.next = 200
    end.send(old[200:])
    env.cross(end)
    stream = end.receive(64).decode()
    candidates = {
        "the first of each byte": b"t" + new[:100] + old[100:] + b"t",
        "the last of each byte": b"t" + new[:150] + old[150:] + b"t",
        "the last of all": b"t" + new[:120] + old[120:] + b"t",
    }
    return [next((name for name, data in candidates.items() if content_digest(data) == stream), "something else")]


@case("ack 0", "alive")
def data_beyond_the_window(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    told = answer(end, lambda: end.emit(1 << 23, b"x" * 100))
    return [told, alive(end)]


@case("nothing", "alive")
def a_damaged_segment(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    end.mark()
    end.emit(0, b"x" * 100, damaged=True)
    told = [one for one in end.sync() if not one.length]
    end.receive(1)
    return [said(told), end.received().decode(), alive(end)]


@case("nothing", "alive")
def data_without_the_ack_flag(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    end.mark()
    end.emit(0, b"x" * 100, PSH)
    told = [one for one in end.sync() if not one.length]
    end.receive(1)
    return [said(told), end.received().decode(), alive(end)]


@case("the digest is right", lives=False)
def urgent_data(env: Env) -> Transcript:
    """The urgent byte (RFC 6093 section 3.4: the one before the pointer) is not in the stream of this application."""
    end = established(env, ["take", 4], ["digest"])
    end.emit(0, b"abcde", ACK | PSH | URG, urgent=3)
    end.next = 5
    return [digest_is(end, b"tabde")]


@case("data 0..100, ack 100")
def data_without_push(env: Env) -> Transcript:
    end = established(env, ["echo", 100, 100], ["take_all"])
    end.next = 100
    end.emit(0, b"x" * 100, ACK)
    end.wait(lambda one: one.length == 100)
    end.wait(lambda one: one.ack == 100)
    return [said(end.since())]


@case("ack 0")
def keepalive_probes(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    return [answer(end, lambda: end.emit(-1, b"", ACK)), answer(end, lambda: end.emit(-1, b"t", ACK), until=is_dsack)]


@case("within 500 ms")
def the_delay_of_an_ack(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    delays = []
    for _ in range(4):
        time.sleep(0.3)  # RFC 9293 section 3.8.6.3: also of a connection that was idle
        began = time.monotonic()
        end.mark()
        end.emit(end.next, b"x")
        end.next += 1
        found = end.wait(lambda one: one.ack == end.next)
        assert found is not None
        delays.append(found.time - began)
    return ["within 500 ms" if min(delays) < 0.5 else f"{min(delays):.2f} s"]


@case("ack 0", "alive")
def an_ack_of_what_was_never_sent(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    told = answer(end, lambda: end.emit(0, b"", ACK, NEVER_SENT))
    return [told, alive(end)]


@case("ack 0", "alive", lives=False)
def blind_data_with_an_old_ack(env: Env) -> Transcript:
    """RFC 5961 section 5.2. Linux's fast path, for segments with the window of the last one, does not look: so nobody
    can tell what our TCP has taken, and a connection that this has happened to is not protected any more."""
    end = established(env, ["echo_all"])
    told = answer(end, lambda: end.emit(0, b"injected", ACK | PSH, -30_000_000, window=7000))
    return [told, alive(end)]


# ---------------------------------------- resets, SYNs (RFC 5961)


@case("rst at 0")
def a_reset_at_the_right_number(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    end.emit(0, b"", RST, 0)
    end.settle()
    told = answer(end, lambda: end.emit(0, b"x", ACK, 0), until=lambda one: bool(one.flags & RST))
    return [told.removesuffix(" ack 0")]  # one that had to wait is sent newly built, with an ACK


@case("ack 0", "alive")
def a_reset_in_the_window(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    return [answer(end, lambda: end.emit(100, b"", RST, 0)), alive(end)]


@case("ack 0", "alive")
def a_reset_in_the_window_whose_number_is_reached_later(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    told = answer(end, lambda: end.emit(100, b"", RST, 0))
    end.send(b"x" * 100)
    end.receive(100)
    return [told, alive(end)]


@case("ack 0", "alive")
def a_reset_in_the_window_before_the_takeover(env: Env) -> Transcript:
    end = env.end()
    end.open(["take", 1], ["echo_all"])
    end.tick()
    told = answer(end, lambda: end.emit(100, b"", RST, 0))
    end.send(b"x" * 100)
    end.settle()
    env.cross(end)
    end.receive(100)
    return [told, alive(end)]


@case("ack 0", "alive")
def an_ack_of_what_was_never_sent_before_the_takeover(env: Env) -> Transcript:
    end = env.end()
    end.open(["take", 1], ["echo_all"])
    end.tick()
    told = answer(end, lambda: end.emit(0, b"", ACK, NEVER_SENT))
    env.cross(end)
    return [told, alive(end)]


@case("nothing", "alive")
def a_reset_outside_the_window(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    end.mark()
    end.emit(1 << 23, b"", RST, 0)
    end.emit(-1000, b"", RST, 0)
    told = [one for one in end.sync() if not one.length]
    end.receive(1)
    return [said(told), alive(end)]


@case("ack 0", "alive")
def a_syn_in_the_window(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    return [answer(end, lambda: end.syn(MSS_1400, seq=50)), alive(end)]


@case("ack 0", "alive")
def an_old_syn(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    return [answer(end, lambda: end.syn(MSS_1400, seq=-200)), alive(end)]


# ---------------------------------------- timestamps


@case("ack 0", "alive")
def a_segment_with_an_old_timestamp(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    return [answer(end, lambda: end.emit(0, b"x" * 100, older_s=1000)), alive(end)]


@case("echoed", "never falls")
def timestamps(env: Env) -> Transcript:
    end = established(env, ["echo_all"])
    lines, values = [], []
    for _ in range(3):
        time.sleep(0.02)
        end.mark()
        tsval = end.emit(end.next, b"x")
        end.next += 1
        found = end.wait(lambda one: one.ack == end.next)
        assert found is not None
        lines.append("echoed" if found.tsecr == tsval else "not echoed")
        values.append(found.tsval or 0)
    return [*lines, "never falls" if values == sorted(values) or values[0] > 1 << 31 else "falls"]


@case()
def a_segment_without_its_timestamp(env: Env) -> Transcript:
    end = established(env, ["take_all"])
    return [answer(end, lambda: end.emit(0, b"x" * 100, options=b""))]
