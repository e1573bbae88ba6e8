"""Workloads and capture over a real link: what the client reports and what its capture shows agree."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab.measure.capture import Capture
from nfq_failover.lab.measure.verdict import Measurement, measure, read_capture
from tests.support.namespaces import Namespace, pair

pytestmark = pytest.mark.netns

SERVICE = "10.77.0.100"
WORKLOADS = [sys.executable, "-m", "nfq_failover.lab.workloads"]


class Link:
    """A client namespace, and a server namespace in which the workloads' server runs."""

    def __init__(self, client: Namespace, server: Namespace, process: subprocess.Popen[str]) -> None:
        self.client = client
        self.server = server
        self.process = process

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = self.client.argv(*WORKLOADS, "client", *arguments, "--host", SERVICE, "--json", "--announce")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "started"
        return process

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        with process:
            out, _ = process.communicate(timeout=60)
        summary: dict[str, Any] = json.loads(out)
        return summary


@pytest.fixture
def link() -> Iterator[Link]:
    with pair() as (client, server):
        command = server.argv(*WORKLOADS, "server", "--port", "7000")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert "listening" in process.stderr.readline()
            yield Link(client, server, process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with process, contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def captured(link: Link, path: Path, *arguments: str, pause_s: float = 0.0) -> tuple[dict[str, Any], Measurement]:
    """Runs a client under a capture; the server stands still for `pause_s` in the middle."""
    with Capture(path, SERVICE, enter=link.client.argv()) as capture:
        process = link.start(*arguments)
        if pause_s:
            time.sleep(0.4)
            link.process.send_signal(signal.SIGSTOP)
            time.sleep(pause_s)
            link.process.send_signal(signal.SIGCONT)
        summary = link.finish(process)
    assert capture.counts is not None
    return summary, measure(read_capture(path, SERVICE), capture.counts.missing)


@pytest.mark.parametrize(
    ("arguments", "down", "up"),
    [
        (["echo", "--count", "200"], 200 * 150, 200 * 150),
        (["interactive", "--count", "50"], 50 * 10_000, 50 * 150),
        (["bulk", "--size", "5M"], 5_000_000, 150),
        (["upload", "--size", "5M"], 150, 5_000_150),
    ],
)
def test_a_plain_run_is_right_and_its_capture_whole(
    link: Link, tmp_path: Path, arguments: list[str], down: int, up: int
) -> None:
    summary, result = captured(link, tmp_path / "client.pcap", *arguments)
    assert summary["ok"], summary["error"]
    assert result.problems() == []
    assert (result.dropped_by_capture, result.connections) == (0, 1)
    assert (result.bytes_from_service, result.bytes_from_client) == (down, up)


@pytest.mark.parametrize("kind", ["echo", "interactive"])
def test_client_and_capture_agree_on_the_silence(link: Link, tmp_path: Path, kind: str) -> None:
    summary, result = captured(link, tmp_path / "client.pcap", kind, "--seconds", "1.2", "--rate", "200", pause_s=0.3)
    assert summary["ok"], summary["error"]
    assert result.stall is not None
    assert 280 < summary["longest_silence_ms"] < 700
    # The kernel acknowledges the request that the stopped server does not answer; the capture's stall ends that.
    assert abs(summary["longest_silence_ms"] - result.stall.ms) < 60


def test_many_connections_are_told_apart_in_the_capture(link: Link, tmp_path: Path) -> None:
    summary, result = captured(link, tmp_path / "client.pcap", "mixed", "--connections", "40", "--size", "100k")
    assert summary["ok"], summary["error"]
    assert result.problems() == []
    assert result.connections == 40


def test_a_killed_server_is_a_failed_run(link: Link, tmp_path: Path) -> None:
    path = tmp_path / "client.pcap"
    with Capture(path, SERVICE, enter=link.client.argv()) as capture:
        process = link.start("echo", "--seconds", "5", "--rate", "500")
        time.sleep(0.2)
        link.process.kill()
        summary = link.finish(process)
    assert capture.counts is not None
    assert not summary["ok"]
    assert "short" in summary["error"] or "broken" in summary["error"]
    assert process.returncode == 1
    result = measure(read_capture(path, SERVICE), capture.counts.missing)
    assert result.connections == 1
