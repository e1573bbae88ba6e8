"""The core's small structures against naive models: stream log, stream offsets, timers, number mapping."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from nfq_failover.core.tcp.journal import Journal
from nfq_failover.core.tcp.seqspace import SeqSpace
from nfq_failover.core.tcp.translation import TS_SLACK_MS, Translation
from nfq_failover.core.tcp.window import ROUNDING_BYTES
from nfq_failover.core.timers import TimerQueue
from nfq_failover.wire.seqnum import MASK, add, diff

LIMIT = 100

# ---------------------------------------------------------------------------------------------- journal

insertion = st.tuples(st.just("insert"), st.integers(0, 160), st.binary(max_size=40))
trimming = st.tuples(st.just("trim"), st.integers(0, 160), st.just(b""))


@settings(max_examples=150)
@given(st.lists(st.one_of(insertion, insertion, trimming), max_size=40))
def test_journal_is_a_dict_of_bytes(steps: list[tuple[str, int, bytes]]) -> None:
    journal = Journal(LIMIT)
    start, end, model = 0, 0, dict[int, int]()
    for name, offset, data in steps:
        if name == "insert":
            new = {offset + i: byte for i, byte in enumerate(data) if offset + i >= end}
            fits = not new or max(new) < start + LIMIT
            assert journal.insert(offset, data) is fits
            if fits:
                model = {**new, **model}  # the first copy of a byte wins
        else:
            journal.trim(offset)
            start = max(start, offset)
            end = max(end, start)
            model = {at: byte for at, byte in model.items() if at >= start}
        while end in model:
            end += 1
        assert (journal.start, journal.end, journal.size) == (start, end, len(model))
        contradicts = any(model.get(offset + i, byte) != byte for i, byte in enumerate(data))
        assert journal.differs(offset, data) is contradicts
        assert journal.has_islands is any(at > end for at in model)
        assert journal.read(start, LIMIT) == bytes(model[at] for at in range(start, end))
        edges = [at for at in sorted(model) if at > end and at - 1 not in model]
        assert [left for left, _ in journal.ranges(1000)] == edges
        assert all(set(range(*pair)) <= set(model) and pair[1] not in model for pair in journal.ranges(1000))
        assert journal.ranges(2) == journal.ranges(1000)[:2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.data())
def test_journal_reads_any_piece(sizes: list[int], data: st.DataObject) -> None:
    stream = bytes(i & 0xFF for i in range(sum(sizes)))
    journal, at = Journal(1 << 20), 0
    for size in sizes:
        journal.insert(at, stream[at : at + size])
        at += size
    cut = data.draw(st.integers(0, at))
    journal.trim(cut)
    start, count = data.draw(st.integers(0, at + 5)), data.draw(st.integers(-1, at + 5))
    want = stream[start : start + count] if cut <= start and count > 0 else b""
    assert journal.read(start, count) == want


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.data())
def test_journal_is_overwritten_where_it_is_contiguous(sizes: list[int], data: st.DataObject) -> None:
    stream = bytearray(i & 0xFF for i in range(sum(sizes)))
    journal, at = Journal(1 << 20), 0
    for size in sizes:
        journal.insert(at, bytes(stream[at : at + size]))
        at += size
    journal.insert(at + 5, b"island")
    cut = data.draw(st.integers(0, at))
    journal.trim(cut)
    for _ in range(data.draw(st.integers(1, 3))):
        offset, other = data.draw(st.integers(-5, at + 5)), data.draw(st.binary(max_size=60))
        journal.overwrite(offset, other)
        for i, byte in enumerate(other, offset):
            if cut <= i < at:
                stream[i] = byte
    assert journal.read(cut, at) == bytes(stream[cut:])
    assert (journal.start, journal.end, journal.size) == (cut, at, at - cut + 6)


# ---------------------------------------------------------------------------------------------- offsets


@given(st.integers(0, MASK), st.integers(0, 1 << 40), st.integers(-(2**31) + 1, 2**31 - 1))
def test_offsets_convert_exactly_near_the_place_where_the_owner_is(initial: int, near: int, away: int) -> None:
    space = SeqSpace(initial)
    space.near = near
    assert space.offset(space.seq(near + away)) == near + away
    assert space.seq(0) == add(initial, 1) and space.seq(-1) == initial


# ---------------------------------------------------------------------------------------------- timers

keys = st.integers(0, 5)
times = st.integers(0, 50).map(lambda n: n / 8)
timer_step = st.one_of(
    st.tuples(st.just("set"), keys, times),
    st.tuples(st.just("set_earlier"), keys, times),
    st.tuples(st.just("cancel"), keys, times),
    st.tuples(st.just("pop"), keys, times),
)


@settings(max_examples=150)
@given(st.lists(timer_step, max_size=60))
def test_timers_keep_one_deadline_per_key(steps: list[tuple[str, int, float]]) -> None:
    timers: TimerQueue[int] = TimerQueue()
    model: dict[int, float] = {}
    for name, key, when in steps:
        if name == "set":
            timers.set(key, when)
            model[key] = when
        elif name == "set_earlier":
            timers.set_earlier(key, when)
            model[key] = min(when, model.get(key, when))
        elif name == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            due = timers.pop_due(when)
            assert sorted(due) == sorted(k for k, at in model.items() if at <= when)
            assert [model[k] for k in due] == sorted(model[k] for k in due)
            model = {k: at for k, at in model.items() if at > when}
        assert timers.next() == min(model.values(), default=None)


# ---------------------------------------------------------------------------------------------- mapping

numbers = st.integers(0, MASK)
scales = st.integers(0, 14)


@given(numbers, numbers, numbers, numbers, st.lists(st.tuples(st.booleans(), st.integers(-50, 400)), max_size=40))
def test_shown_timestamps_never_fall(
    iss: int, own: int, seen_ts: int, own_ts: int, steps: list[tuple[bool, int]]
) -> None:
    now, clock = 10.0, own_ts
    mapping = Translation(iss, own, 2, 7, (seen_ts, own_ts), now)
    shown: list[int] = []
    taken_over = False
    for is_echo, amount in steps:
        now += 0.01
        clock = add(clock, 10)
        if is_echo:
            mapping.note_seen_tsecr(add(seen_ts, amount), now)
        elif amount < 0 and not taken_over:
            taken_over = True
            mapping.take_over(0)
        else:
            mapping.note_own_tsval(add(clock, -(amount & 7)), now)  # segments may be old when they come
            if taken_over:
                shown.append(mapping.seen_tsval(add(clock, -(amount & 7))))
                shown.append(mapping.seen_tsval(mapping.own_clock(now)))
    assert all(diff(later, earlier) >= 0 for earlier, later in pairwise(shown))


@given(numbers, numbers, st.integers(0, 100_000), st.integers(0, 100_000), numbers)
def test_shown_timestamp_is_not_behind_what_the_client_has_echoed(
    seen_ts: int, own_ts: int, behind_ms: int, later_ms: int, iss: int
) -> None:
    mapping = Translation(iss, iss, 0, 0, (seen_ts, own_ts), 50.0)
    echoed = add(seen_ts, behind_ms)
    mapping.note_seen_tsecr(echoed, 50.0)
    mapping.take_over(0)
    shown = mapping.seen_tsval(mapping.own_clock(50.0 + later_ms / 1000))
    assert diff(shown, add(echoed, later_ms)) in (TS_SLACK_MS, TS_SLACK_MS - 1)


@given(numbers, numbers, st.lists(st.integers(0, 1000), min_size=1, max_size=20), numbers)
def test_echo_for_the_replica_is_one_that_it_has_sent(seen_ts: int, own_ts: int, steps: list[int], tsecr: int) -> None:
    mapping = Translation(1, 2, 0, 0, (seen_ts, own_ts), 0.0)
    last = own_ts
    for step in steps:
        last = add(last, step)
        mapping.note_own_tsval(last, 0.0)
    echoed = mapping.own_tsecr(tsecr)
    assert 0 <= diff(echoed, own_ts) <= diff(last, own_ts)


@given(
    scales, st.integers(0, 1 << 20), st.lists(st.tuples(st.integers(0, 3000), st.integers(-4000, 9000)), max_size=40)
)
def test_shown_right_edge_stays_and_does_not_creep(wscale: int, edge: int, steps: list[tuple[int, int]]) -> None:
    unit = 1 << wscale
    mapping = Translation(1, 2, wscale, 7, None, 0.0)
    mapping.told_edge = promised = limit = min(edge, 0xFFFF << wscale)
    ack = 0
    for ack_step, edge_step in steps:
        limit = max(limit, limit + edge_step)
        ack = min(ack + ack_step, limit)
        window = mapping.seen_window(ack, limit)
        right = ack + (window << wscale)
        assert 0 <= window <= 0xFFFF
        assert right <= max(limit + max(unit, ROUNDING_BYTES), ack), "more is promised than the backup has room for"
        crept = promised > limit + max(unit, ROUNDING_BYTES) - unit and promised - right < unit
        assert right >= promised or crept or window == 0xFFFF, "the right edge has moved left"
        promised = max(promised, right)


@given(
    numbers, numbers, st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 5000)), max_size=4), st.integers(0, 6000)
)
def test_selective_acknowledgements_are_mapped_and_cut(
    iss: int, own: int, blocks: list[tuple[int, int]], produced: int
) -> None:
    mapping = Translation(iss, own, 0, 0, None, 0.0)
    seen = [(mapping.seen.seq(left), mapping.seen.seq(left + size)) for left, size in blocks]
    got = [(mapping.own.offset(left), mapping.own.offset(right)) for left, right in mapping.own_sack(seen, produced)]
    assert got == [(left, min(left + size, produced)) for left, size in blocks if left < produced]
