"""The demo's machinery in a plain lab: without protection its verdict must be bad, and it must clean up in any case."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nfq_failover.lab.demo.command import Options, run_demo
from nfq_failover.lab.demo.screen import Screen

pytestmark = pytest.mark.netns


def lab_name() -> str:
    return f"d{secrets.token_hex(3)}"


def left_of(name: str) -> list[str]:
    """Namespaces and processes that carry the lab's name."""
    names = [path.name for path in Path("/run/netns").glob(f"{name}-*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if name.encode() in command and int(entry.name) != os.getpid():
            names.append(command.decode(errors="replace"))
    return names


def test_without_protection_the_verdict_is_bad(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = lab_name()
    options = Options("clone", 50, "50mbit", 10_000_000, tmp_path / "out", plain=True, name=name, stall_timeout_s=3)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert not run_demo(options, Screen(sys.stdout), scratch)
    text = capfd.readouterr().out
    assert "The verdict is BAD." in text
    assert "NO   the file is intact" in text
    assert "yes  the primary lost its power half way" in text
    assert (tmp_path / "out" / "client.pcap").exists()
    assert left_of(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    name = lab_name()
    command = [sys.executable, "-m", "nfq_failover", "demo", "--plain", "--rate", "20mbit", "--name", name]
    command += ["--output", str(tmp_path / "out")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if "Mbit/s" in line:
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "everything has been taken away" in err
    assert left_of(name) == []
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_one_at_a_time_per_name(tmp_path: Path) -> None:
    name = lab_name()
    command = [sys.executable, "-m", "nfq_failover", "demo", "--plain", "--rate", "20mbit", "--name", name]
    first = subprocess.Popen([*command, "--output", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    with first:
        first.stdout.readline()
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tempfile.gettempdir())
        assert second.returncode == 2
        assert "Another demo is running" in second.stderr
        first.terminate()
        first.communicate(timeout=60)
    assert left_of(name) == []
