"""The demo's verdict: good only if every claim holds, and each claim can fail alone."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from nfq_failover.lab.demo.screen import Screen, bar
from nfq_failover.lab.demo.verdict import Facts, is_good, judge, render

GOOD = Facts(
    size=100_000_000,
    sha256_served="ab" * 32,
    sha256_received="ab" * 32,
    curl_exit_code=0,
    curl_message="",
    crashed_at_bytes=50_300_000,
    primary_before="a",
    primary_after="b",
    detection_ms=150,
    heartbeat_ms=50,
    connections=1,
    resets=0,
    unseen_acknowledged=0,
    tshark_ack_lost=0,
    dropped_by_capture=0,
    silence_ms=152.6,
)


def test_a_good_run_is_good_and_says_so() -> None:
    assert is_good(judge(GOOD))
    text = render(judge(GOOD), True, [], 31.0)
    assert "survived" in text
    assert "longest silence 153 ms" in text
    assert "3 heartbeats of 50 ms" in text
    assert "NO" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256_received": "cd" * 32}, "SHA-256 differ"),
        ({"sha256_received": None}, "SHA-256 differ"),
        ({"curl_exit_code": 18, "curl_message": "transfer closed"}, "transfer closed"),
        ({"crashed_at_bytes": None}, "over before the crash"),
        ({"connections": 2}, "connections 2"),
        ({"connections": 0}, "connections 0"),
        ({"resets": 1}, "RST from the service 1"),
        ({"unseen_acknowledged": 1}, "such ACKs 1"),
        ({"dropped_by_capture": 5}, "packets that the capture lost 5"),
        ({"silence_ms": 1151.0}, "longest silence 1151 ms"),
        ({"silence_ms": None}, "never ended"),
        ({"primary_after": "a"}, "now: a"),
        ({"primary_after": None}, "now: nobody"),
        ({"primary_before": None}, "before: nobody"),
    ],
)
def test_each_claim_can_fail_alone(change: dict[str, Any], words: str) -> None:
    facts = replace(GOOD, **change)
    assert not is_good(judge(facts))
    failed = [check for check in judge(facts) if not check.ok]
    assert len(failed) == 1
    assert words in failed[0].evidence
    assert "BAD" in render(judge(facts), False, [], 1.0)


def test_the_bar() -> None:
    assert bar(0, 100) == f"[{'.' * 30}]   0%"
    assert bar(50, 100) == f"[{'#' * 15}{'.' * 15}]  50%"
    assert bar(100, 100) == f"[{'#' * 30}] 100%"
    assert bar(0, 0).endswith("100%")


def test_progress_into_a_file_is_a_line_now_and_then() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for received in range(0, 100, 10):
        screen.progress(received, 100, "primary: a")
    screen.progress(100, 100, "primary: b")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "\r" not in out.getvalue()
    assert "primary: b" in lines[-1]
