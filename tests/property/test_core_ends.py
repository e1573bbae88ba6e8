"""Any input comes to an end within a bound of steps, and no timer stays in the past.

The two ends of a connection are fed with what no sane peer would send: digests of what nobody has sent, answers to
other questions, segments that overlap, contradict and leave holes, and a takeover in the middle. The lines that the
core executes are counted; an input that needs more than its budget is stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import FrameType
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nfq_failover.core.shadow.comparison import Comparison
from nfq_failover.core.shadow.resending import AckWait
from nfq_failover.errors import MalformedDatagram
from nfq_failover.wire.records import (
    DIGEST_BLOCK,
    AckAsked,
    BytesAsked,
    BytesSent,
    Close,
    Data,
    Digest,
    DigestSeen,
    End,
    EndAsked,
    EndKind,
    Missing,
    Opened,
    Progress,
    SentAsked,
    SentUpTo,
    Unprotected,
    decode_records,
)
from tests.support.gate import TS, digest
from tests.support.shadow import Shadowing, from_client, replica
from tests.support.transcript import (
    After,
    Copy,
    GateTranscript,
    Transcript,
    client,
    client_bytes,
    client_seq,
    confirmed,
    opening,
    server,
    server_bytes,
    server_seq,
    syn,
    syn_ack,
)

BUDGET = 20_000  # lines; the dearest input here needs a tenth
SOON = 8  # how often a timer may be due at the same instant
ROOM = 6 * DIGEST_BLOCK  # so that there is often none


class TooManySteps(AssertionError):
    """An input did not end within its budget."""


@contextmanager
def budget(lines: int) -> Iterator[None]:
    """Raise `TooManySteps` out of whatever is executed longer than that, in the core and in wire."""
    left = lines

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise TooManySteps(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if "/nfq_failover/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def feed(t: Transcript, given_input: object) -> None:
    """One input, and everything that comes of it."""
    with budget(BUDGET):
        t.feed(given_input)
        t.drain()
    t.effects.clear()


def quiet(t: Transcript) -> None:
    """Fire the timers that are due: each is over, or later, after a few times."""
    for _ in range(SOON):
        due = t.side.poll_timeout()  # type: ignore[attr-defined]
        if due is None or due > t.now:
            return
        feed(t, After(0.0))
    raise TooManySteps(f"a timer stays in the past: {t.now - (due or 0.0)} s")


# ---------------------------------------------------------------------------------------------- inputs

blocks = st.integers(-1, 16).map(lambda block: block * DIGEST_BLOCK)
offsets = st.builds(int.__add__, blocks, st.sampled_from((0, 0, 0, 0, -1, 1, 700)))
lengths = st.sampled_from((0, 1, 700, DIGEST_BLOCK, DIGEST_BLOCK, 2 * DIGEST_BLOCK, 3 * DIGEST_BLOCK + 5))
flags = st.sampled_from((".", ".", ".", "P.", "F.", "R", "R.", ""))
times = st.sampled_from((0.0, 0.001, 0.02, 0.3, 2.0, 100.0))
seqs = offsets.map(server_seq)
anywhere = st.integers(0, 2**32 - 1)


@st.composite
def pieces(draw: st.DrawFn, least: int = 0) -> tuple[int, bytes]:
    """Bytes of the server, at times other ones."""
    start, length = max(draw(offsets), least), draw(lengths)
    data = server_bytes(start, length)
    if draw(st.integers(0, 3)) == 0:
        data = bytes(byte ^ draw(st.sampled_from((0, 0x55))) for byte in data[:1]) + data[1:]
    return start, data


@st.composite
def digests(draw: st.DrawFn) -> Digest:
    start, data = draw(pieces(-DIGEST_BLOCK))
    if draw(st.integers(0, 4)) == 0:
        return Digest(1, server_seq(start), draw(st.sampled_from((0, 1, 5000, 1 << 20))))
    return digest(start, len(data), data)


policies = st.sampled_from(("default", "strict", "off"))
shadow_inputs = st.one_of(
    digests(),
    digests(),
    st.builds(lambda piece: BytesSent(1, server_seq(piece[0]), piece[1][:DIGEST_BLOCK]), pieces(-9)),
    st.builds(lambda piece, f: replica(piece[0], flags=f, payload=piece[1], length=len(piece[1])), pieces(), flags),
    st.builds(lambda piece: replica(piece[0], payload=piece[1], length=len(piece[1])), pieces()),
    st.builds(lambda at, edge: replica(0, 0, max(at, 0), edge), offsets, st.sampled_from((40000, 60000))),
    st.builds(lambda at, n, ack, f: from_client(at, n, ack, flags=f), offsets, lengths, offsets, flags),
    st.builds(lambda ack, wnd: from_client(0, 0, ack, wnd=wnd), offsets, st.sampled_from((0, 1, 500))),
    st.builds(
        lambda at, n, fin: Data(1, client_seq(at), client_bytes(max(at, 0), n), fin), offsets, lengths, st.booleans()
    ),
    st.builds(lambda at: Progress(1, client_seq(at), True), offsets),
    st.builds(lambda seq, kind: EndAsked(1, seq, kind), seqs, st.sampled_from(EndKind)),
    st.builds(lambda seq: SentUpTo(1, seq), seqs),
    st.builds(After, times),
    st.builds(After, times),
)


@st.composite
def sane(draw: st.DrawFn) -> list[Any]:
    """The replica is ahead, the client has acknowledged some of it, and a few digests have come, not all."""
    sent = draw(st.integers(0, 10))
    acked, first = draw(st.integers(0, sent)), draw(st.integers(0, 12))
    return [
        *[replica(at * DIGEST_BLOCK, DIGEST_BLOCK) for at in range(sent)],
        *[digest(at * DIGEST_BLOCK, DIGEST_BLOCK) for at in range(first, draw(st.integers(first, 13)))],
        from_client(ack=acked * DIGEST_BLOCK),
    ]


rare = st.one_of(
    st.just("takeover"),
    st.just("takeover"),
    st.builds(lambda: Close(1, "over")),
    st.builds(lambda: Unprotected(1, "so")),
)
gate_inputs = st.one_of(
    st.builds(lambda at, n, ack, f: server(at, n, ack, 10000, flags=f, ts=TS), offsets, lengths, offsets, flags),
    st.builds(lambda at, n: server(at, n, 0, 10000, ts=TS), offsets, lengths),
    st.builds(
        lambda at, n, ack, f: Copy(client(at, n, ack, flags=f, ts=(1002, 2_000_010))), offsets, lengths, offsets, flags
    ),
    st.builds(lambda at, edge, left, n: confirmed(at, edge, (left, left + n)), offsets, offsets, offsets, lengths),
    st.builds(lambda seq, n: DigestSeen(1, seq, n), seqs, st.integers(0, 9)),
    st.builds(lambda seq, n: BytesAsked(1, seq, (seq + n) & 0xFFFFFFFF), seqs, lengths),
    st.builds(lambda one, other: Missing(1, client_seq(one), client_seq(other)), offsets, offsets),
    st.builds(lambda seq: AckAsked(1, seq), seqs),
    st.builds(lambda: SentAsked(1)),
    st.builds(
        lambda seq, at, kind, well: End(1, seq, client_seq(at), kind, well),
        seqs,
        offsets,
        st.sampled_from(EndKind),
        st.booleans(),
    ),
    st.builds(After, times),
    st.builds(After, times),
)


connections = st.tuples(
    sane(), st.lists(shadow_inputs, max_size=12), st.lists(rare, max_size=2), st.lists(shadow_inputs, max_size=25)
)


def shadowed(policy: str, inputs: tuple[list[Any], ...]) -> None:
    """One connection in the shadow, with these inputs one after the other."""
    t = Shadowing(divergence=policy, max_unacked_bytes=ROOM, max_log_bytes=ROOM)
    for each in chain(*inputs):
        if not t.side.flows:
            break
        feed(t, each)
        quiet(t)


@settings(max_examples=400)
@given(policies, connections)
def test_whatever_a_shadow_is_given_ends(policy: str, inputs: tuple[list[Any], ...]) -> None:
    shadowed(policy, inputs)


@settings(max_examples=300)
@given(policies, st.lists(gate_inputs, max_size=50), st.lists(rare, max_size=1))
def test_whatever_a_gate_is_given_ends(policy: str, inputs: list[Any], then: list[Any]) -> None:
    t = GateTranscript(divergence=policy)
    t >> syn() << "pass"
    t >> syn_ack() << "drop syn-ack-held" << opening()
    t >> Opened(1, True, client_seq(40000)) << "client [S.] -1 ack 0 wnd 8000"
    for each in [*inputs, *[one for one in then if isinstance(one, Unprotected)], After(0.1)]:
        feed(t, each)
        quiet(t)


@given(st.binary(max_size=600))
def test_whatever_a_datagram_holds_ends(body: bytes) -> None:
    with budget(BUDGET):
        try:
            decode_records(body)
        except MalformedDatagram:
            return


@settings(max_examples=50)
@given(st.lists(st.tuples(anywhere, anywhere), min_size=1, max_size=5))
def test_numbers_from_anywhere_end(places: list[tuple[int, int]]) -> None:
    """Offsets follow from 32-bit numbers: they are never far, wherever the numbers are."""
    t = Shadowing(divergence="default", max_unacked_bytes=ROOM, max_log_bytes=ROOM)
    for seq, other in places:
        for record in (
            Digest(1, seq, other),
            BytesSent(1, seq, b"x"),
            Progress(1, seq, True),
            SentUpTo(1, other),
            Data(1, other, b"yz", False),
        ):
            feed(t, record)
            quiet(t)


# ---------------------------------------------------------------------------------------------- the check itself


def _goes_back(self: Comparison, stop: int) -> None:
    self.compared = stop


def _never_later(self: AckWait) -> None:
    self.next_s = 0.0


def _loops() -> None:
    compare = Comparison()
    while True:
        compare.advance(0)


def test_what_does_not_end_is_stopped() -> None:
    with pytest.raises(TooManySteps), budget(100):
        _loops()


def finds() -> None:
    """The property, without looking for the smallest example."""
    settings(max_examples=400, phases=(Phase.generate,))(given(policies, connections)(shadowed))()


def test_comparison_that_goes_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Comparison, "skip", _goes_back)
    with pytest.raises(TooManySteps):
        finds()


def test_timer_that_stays_in_the_past_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AckWait, "in_vain", _never_later)
    with pytest.raises(TooManySteps):
        finds()
