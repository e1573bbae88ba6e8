"""`nfq-failover claim`: what it says of the other host, and that it asks before it acts."""

from __future__ import annotations

import os
import pty
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.cli import main
from tests.unit.test_cli import STATUS, config, daemon

__all__ = ["config"]  # a fixture

ALONE: dict[str, Any] = STATUS | {
    "role": "none",
    "membership": "waiting",
    "reason": "the peer does not answer",
    "peer": STATUS["peer"] | {"lost": True, "said": "protected", "heartbeat": {"silent_ms": 12_300.0}},
}
ANSWERS = {"status": ALONE, "claim": {"before": "waiting", "state": "claiming"}}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> int:
    """Standard input is a terminal; what is written to the descriptor is typed there."""
    keyboard, screen = pty.openpty()
    monkeypatch.setattr("sys.stdin", os.fdopen(screen, "r"))
    return keyboard


def claim(config: Path, *words: str, answers: dict[str, dict[str, Any]] = ANSWERS) -> int:
    with daemon(config.parent, answers):
        return main(["claim", "--config", str(config), *words])


def test_it_says_what_it_believes_and_does_what_is_confirmed(
    config: Path, terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(terminal, b"yes\n")
    assert claim(config) == 0
    text = capsys.readouterr().out
    assert "a is none (waiting): the peer does not answer" in text
    assert "b at 10.77.0.3:7766: silent for 12.3 s, which does not mean that it is off; it said last" in text
    assert "it is protected" in text and "both hosts answer for the same address" in text
    assert text.endswith("waiting -> claiming\n")


@pytest.mark.parametrize("typed", [b"\n", b"no\n", b"y\n", b"\x04"])
def test_anything_but_yes_claims_nothing(
    config: Path, terminal: int, typed: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(terminal, typed)
    assert claim(config, answers={"status": ALONE}) == 1  # the daemon would fail at a claim
    assert "nothing was claimed" in capsys.readouterr().out


def test_where_nobody_can_be_asked_it_says_what_to_do(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert claim(config, answers={"status": ALONE}) == 2
    assert "claim --yes" in capsys.readouterr().err


@pytest.mark.parametrize(("after", "code"), [("claiming", 0), ("waiting", 1)])
def test_scripts_say_yes(config: Path, after: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"status": ALONE, "claim": {"before": "waiting", "state": after}}
    assert claim(config, "--yes", answers=answers) == code
    assert capsys.readouterr().out.endswith(f"waiting -> {after}\n")


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        ({"lost": False, "said": "shadowing", "heartbeat": {"silent_ms": 20.0}}, "HEARD, so it is not off"),
        ({"lost": True, "said": "", "heartbeat": {"silent_ms": None}}, "never heard since this daemon's start"),
    ],
)
def test_other_beliefs(config: Path, peer: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers = ANSWERS | {"status": ALONE | {"peer": STATUS["peer"] | peer}}
    assert claim(config, "--yes", answers=answers) == 0
    assert says in capsys.readouterr().out
