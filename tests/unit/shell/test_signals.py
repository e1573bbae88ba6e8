"""A program that is started with the signals kept back outlives them from its first instruction on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nfq_failover.shell import signals

LATE = "import sys; print(1, flush=True); sys.stdin.readline(); from nfq_failover.shell import signals; {}; input()"


@pytest.mark.parametrize("number", signals.HARMLESS)
def test_before_and_after_it_has_handlers(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", LATE.format("signals.survive(lambda n: print('heard', n, flush=True))")]
    with signals.kept_back():
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(signals.HARMLESS)
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, number)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"heard {int(number)}\n"
        os.kill(process.pid, number)
        assert process.stdout.readline() == f"heard {int(number)}\n"
        process.communicate("\n", timeout=20)
    assert process.returncode == 0


def test_without_them_it_would_end() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(20) == -signal.SIGUSR1


def test_the_witness_outlives_them_and_says_what_it_has_done(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key of more than sixteen bytes")
    key.chmod(0o600)
    argv = [sys.executable, "-m", "nfq_failover", "witness", "--listen", "127.0.0.1:17767", "--key", str(key)]
    argv += ["--state-dir", str(tmp_path / "state")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        for number in signals.HARMLESS:
            os.kill(process.pid, number)
        said = process.stderr.readline()
        assert "status of the witness" in said and "decisions=0" in said
        process.terminate()
        assert process.wait(20) == 0


def test_the_unit_starts_a_wrong_configuration_once() -> None:
    """systemd's RestartPreventExitStatus= counts for the main process alone, so `run` itself has to refuse."""
    unit = (Path(__file__).parents[3] / "vagrant" / "nfq-failover.service").read_text().splitlines()
    assert "RestartPreventExitStatus=2" in unit and "StartLimitIntervalSec=0" in unit
    assert not any(line.startswith("ExecStartPre=") for line in unit)
