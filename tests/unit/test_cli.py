"""The command line: what it teaches, its exit codes, and the commands that need no daemon."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.cli import main
from nfq_failover.shell.control import ControlServer

ROOT = Path(__file__).parents[2]

STATUS: dict[str, Any] = {
    "name": "a",
    "role": "primary",
    "state": "protected",
    "reason": "",
    "epoch": 3,
    "peer": {
        "name": "b",
        "address": "10.77.0.3:7766",
        "lost": False,
        "heartbeat": {"interval_ms": 50, "bandwidth_bps": 18080},
    },
    "connections": [
        {
            "client": f"10.77.0.1:{40000 + i}",
            "server": "10.77.0.100:80",
            "protected": i != 1,
            "reason": "" if i != 1 else "older than the backup",
            "lag_bytes": i,
        }
        for i in range(30)
    ],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef")
    key.chmod(0o600)
    path = tmp_path / "config.toml"
    path.write_text(
        f"""
name = "a"
service = "10.77.0.100"
ports = [80]
interface = "eth0"
listen = "10.77.0.2"
key_file = "{key}"
state_dir = "{tmp_path}"
[[peer]]
name = "b"
address = "10.77.0.3"
"""
    )
    return path


@contextmanager
def daemon(directory: Path, answers: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Something that answers like a daemon."""
    server = ControlServer(directory / "control.sock", lambda command, _: answers[command])
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(0.005):
            server.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in ("run", "status", "claim", "keygen", "check-config", "lab"):
        assert re.search(rf"^    {command}\s", text, re.MULTILINE), command
    assert "nfq-failover keygen /etc/nfq-failover/key" in text


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_help_says_where_the_settings_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "docs/operate/configuration.md" in text and (ROOT / "docs" / "operate" / "configuration.md").exists()
    assert "python -m nfq_failover.config.reference --sample" in text


@pytest.mark.parametrize("argv", [[], ["dance"], ["run", "--loud"], ["status", "--rows", "x"], ["keygen"]])
def test_misuse_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: nfq-failover" in capsys.readouterr().err


def test_servers_need_none_of_what_the_lab_needs() -> None:
    script = (
        "import sys; from nfq_failover.cli import main; main(['check-config', '--config', '/none']);"
        "print([m for m in sys.modules if m.startswith(('nfq_failover.lab', 'matplotlib', 'scapy'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_configuration_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", "--config", str(tmp_path / "none.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "none.toml" in captured.err


def test_check_config_says_what_it_understood_and_what_is_doubtful(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-config", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert "a serves 10.77.0.100 with b at 10.77.0.3:7766; tap clone" in text
    assert "detection 150 ms" in text
    assert "warning: without 'fence'" in text


def test_keygen_makes_a_key_that_only_its_owner_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    assert main(["keygen", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", key)
    assert key.strip() not in capsys.readouterr().out
    assert main(["keygen", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == key
    assert main(["keygen", str(tmp_path / "other")]) == 0
    assert (tmp_path / "other").read_text() != key


def test_keygen_in_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", str(tmp_path / "no" / "key")]) == 2
    assert "there is no directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "claim"])
def test_without_a_daemon_the_message_says_what_to_do(
    config: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--config", str(config)]) == 2
    assert "is 'nfq-failover run' running?" in capsys.readouterr().err


def test_status_for_people(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(config.parent, {"status": STATUS}):
        assert main(["status", "--config", str(config), "--rows", "3"]) == 0
    text = capsys.readouterr().out
    assert "a: primary, protected, epoch 3" in text
    assert "peer b at 10.77.0.3:7766: alive, heartbeat every 50 ms (18.1 kbit/s each way)" in text
    assert "30 connections, 29 protected" in text
    assert "UNPROTECTED: older than the backup" in text
    assert "... and 27 more" in text
    assert len(text.splitlines()) == 7


def test_status_for_programs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(config.parent, {"status": STATUS}):
        assert main(["status", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_word_of_an_operator_about_the_replica(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with daemon(config.parent, {"replica-is-whole": {"state": "protected"}}):
        assert main(["replica-is-whole", "--config", str(config)]) == 0
    assert capsys.readouterr().out.startswith("protected: said")


def test_a_bug_that_ends_a_daemon_is_raised_or_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError(f"bug in {path}")

    monkeypatch.setattr("nfq_failover.config.load", broken)
    with pytest.raises(RuntimeError, match="bug in"):  # no log yet: Python tells
        main(["run"])
    monkeypatch.setattr("nfq_failover.shell.logs.crashed", lambda error: True)
    assert main(["run"]) == 1


def test_a_refused_start_has_the_form_of_the_log(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    nowhere = str(tmp_path / "none.toml")
    assert main(["run", "--config", nowhere, "--log-json"]) in (1, 2)
    said = json.loads(capfdbinary.readouterr().err)
    assert said["level"] == "error"
    assert main(["run", "--config", nowhere]) in (1, 2)
    assert capfdbinary.readouterr().err.startswith(b"nfq-failover: ")
