"""`nfq-failover reload`: it waits for the outcome, says all of it, and its exit code says whether it was done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.cli import main
from nfq_failover.shell.control import ControlServer
from tests.unit.test_cli import STATUS, config, daemon

__all__ = ["config"]  # a fixture

APPLIED = {
    "done": True,
    "ok": True,
    "applied": [{"name": "ports", "before": "80", "after": "80, 8081"}],
    "restart": [{"name": "queue_in", "before": "7760", "after": "9"}],
    "waiting": "ports 8081 are not protected until the other host has them, too",
    "problems": ["the rules 'backup' could not be installed: no room"],
}
REFUSED = {
    "done": True,
    "ok": False,
    "errors": [
        {
            "file": "/etc/c.toml",
            "line": 7,
            "table": "[health]",
            "setting": "x",
            "what": "unknown setting 'x': remove it",
        },
        {"file": "", "line": None, "table": "", "setting": "", "what": "the privileged helper does not answer"},
    ],
}


@contextmanager
def reloading(directory: Path, outcome: dict[str, Any], turns: int = 3) -> Iterator[None]:
    """A daemon that has to be asked some times before it knows."""
    asked = []

    def answer(command: str, request: dict[str, Any]) -> dict[str, Any]:
        assert command == "reload"
        if "number" not in request:
            return {"number": 5}
        assert request["number"] == 5
        asked.append(request)
        return outcome if len(asked) > turns else {"done": False}

    server, stop = ControlServer(directory / "control.sock", answer), threading.Event()

    def loop() -> None:
        while not stop.wait(0.002):
            server.serve()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def test_all_of_it_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reloading(config.parent, APPLIED):
        assert main(["reload", "--config", str(config)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "applied: ports: 80 -> 80, 8081",
        "takes a restart: queue_in: 7760 -> 9",
        "note: ports 8081 are not protected until the other host has them, too",
        "warning: the rules 'backup' could not be installed: no room",
    ]


def test_nothing_new_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reloading(config.parent, {"done": True, "ok": True, "applied": [], "restart": []}):
        assert main(["reload", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "nothing has changed in the file\n"


def test_a_refusal_has_its_lines_and_exit_code(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reloading(config.parent, REFUSED):
        assert main(["reload", "--config", str(config)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "/etc/c.toml:7: [health]: unknown setting 'x': remove it",
        "the privileged helper does not answer",
        "nothing has changed: the daemon goes on as it was",
    ]


def test_for_programs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with reloading(config.parent, APPLIED):
        assert main(["reload", "--json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == APPLIED


def test_a_file_that_says_nothing_at_all_is_a_refusal_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where its daemon is."""
    config.write_text("state_dir = 3\n")
    assert main(["reload", "--config", str(config)]) == 1
    assert "nothing has changed" in capsys.readouterr().err


def test_a_file_that_is_no_toml_still_says_where_the_daemon_is(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text() + "name =\n")
    with reloading(config.parent, REFUSED):
        assert main(["reload", "--config", str(config)]) == 1
    assert "/etc/c.toml:7" in capsys.readouterr().err


def test_without_a_daemon(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reload", "--config", str(config)]) == 2
    assert "is 'nfq-failover run' running?" in capsys.readouterr().err


def test_status_finds_the_daemon_though_the_file_is_wrong_by_now(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace("interface", "interfase"))
    with daemon(config.parent, {"status": STATUS}):
        assert main(["status", "--config", str(config)]) == 0
    assert "a: primary, protected" in capsys.readouterr().out
