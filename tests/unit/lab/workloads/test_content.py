"""The workloads' bytes: deterministic, position-dependent, and records that show any damage."""

from __future__ import annotations

import pytest

from nfq_failover.lab.workloads.__main__ import parse_ports, parse_size
from nfq_failover.lab.workloads.content import (
    REQUEST_SIZE,
    Content,
    Kind,
    Receipt,
    Request,
    WrongRecord,
    count_wrong,
    first_wrong,
)
from nfq_failover.lab.workloads.report import (
    ConnectionReport,
    SilenceClock,
    describe,
    latency_percentiles,
    summarize,
)


def test_content_is_a_function_of_seed_and_offset() -> None:
    whole = Content(7).read(0, 400_000)
    assert whole == Content(7).read(0, 400_000)
    assert whole != Content(8).read(0, 400_000)
    pieces = Content(7)
    assert whole == b"".join(pieces.read(at, min(65_537, 400_000 - at)) for at in range(0, 400_000, 65_537))
    assert pieces.read(200_000, 0) == b""


def test_no_block_of_the_content_is_like_another() -> None:
    content = Content(1)
    blocks = {content.read(index * 65_536, 65_536) for index in range(300)}
    assert len(blocks) == 300
    assert content.read(1, 1000) != content.read(0, 1000)


@pytest.mark.parametrize("kind", list(Kind))
def test_request_survives_its_wire_form(kind: Kind) -> None:
    request = Request(kind, seed=123_456, number=9, size=10_000, digest=False)
    data = request.encode()
    assert len(data) == REQUEST_SIZE
    assert Request.decode(data) == request


@pytest.mark.parametrize("position", range(REQUEST_SIZE))
def test_one_flipped_bit_anywhere_in_a_record_shows(position: int) -> None:
    flip = bytearray(REQUEST_SIZE)
    flip[position] = 0x10
    for record in (Request(Kind.BULK, 1, 2, 3), Receipt(1, 2, 3, bytes(32))):
        data = bytes(a ^ b for a, b in zip(record.encode(), flip, strict=True))
        with pytest.raises(WrongRecord):
            type(record).decode(data)


def test_a_record_of_the_wrong_length_or_sort_is_refused() -> None:
    data = Request(Kind.ECHO, 1, 0, 0).encode()
    with pytest.raises(WrongRecord):
        Request.decode(data[:-1])
    with pytest.raises(WrongRecord):
        Receipt.decode(data)


def test_wrong_bytes_are_counted_and_located() -> None:
    assert count_wrong(b"abcdef", b"abcdef") == 0
    assert count_wrong(b"abXdeY", b"abcdef") == 2
    assert first_wrong(b"abXdeY", b"abcdef") == 2
    assert first_wrong(b"abcdef", b"abcdef") is None


def test_silence_counts_waiting_and_not_idling() -> None:
    clock = SilenceClock(100.0)
    clock.progress(100.5)
    clock.ask(200.0)  # idle for 99.5 s
    clock.progress(200.75)
    clock.progress(200.80)
    assert (clock.longest, clock.longest_from) == (0.75, 200.0)


def test_percentiles_are_nearest_rank() -> None:
    assert latency_percentiles([]) == {}
    assert latency_percentiles([0.001]) == {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}
    hundred = [index / 1000 for index in range(1, 101)]
    assert latency_percentiles(hundred) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_one_bad_connection_makes_the_summary_bad() -> None:
    good = ConnectionReport("echo", 7000, ok=True, bytes=10, started=5.0, duration_s=2.0, longest_silence_ms=3.0)
    bad = ConnectionReport("bulk", 7000, bytes=4, wrong_bytes=2, error="2 wrong bytes", started=6.0, duration_s=3.0)
    bad.longest_silence_ms, bad.longest_silence_from = 900.0, 7.5
    summary = summarize("mixed", [good, bad])
    assert not summary["ok"]
    assert summary["failed_connections"] == 1
    assert summary["error"] == "bulk: 2 wrong bytes"
    assert (summary["bytes"], summary["wrong_bytes"], summary["duration_s"]) == (14, 2, 4.0)
    assert (summary["longest_silence_ms"], summary["longest_silence_from"]) == (900.0, 7.5)
    assert [each["ok"] for each in summary["each"]] == [True, False]
    assert "FAILED" in describe(summary)
    assert summarize("echo", [good])["ok"]


def test_sizes_and_ports_of_the_command_line() -> None:
    assert [parse_size(text) for text in ("150", "10k", "20M", "1G")] == [150, 10_000, 20_000_000, 1_000_000_000]
    assert parse_ports(["7000", "7002-7004"]) == [7000, 7002, 7003, 7004]
    for wrong in (["x"], ["7004-7002"], ["70000"]):
        with pytest.raises(ValueError):
            parse_ports(wrong)
    with pytest.raises(ValueError):
        parse_size("-1")
