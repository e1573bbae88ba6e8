"""The lab's command line: a contract that other programs drive."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from nfq_failover.lab import command


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nfq-failover")
    command.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["lab", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["up"], {"name": "nfqf", "tap": "clone", "heartbeat_ms": 50, "loss": 0.0, "port": None, "plain": False}),
        (
            ["--name", "two", "up", "--tap", "multicast", "--heartbeat-ms", "20", "--rate", "200mbit", "--loss", "1.5"],
            {"name": "two", "tap": "multicast", "heartbeat_ms": 20, "rate": "200mbit", "loss": 1.5},
        ),
        (["up", "--port", "80", "7000-7099", "--tap-loss", "10"], {"port": ["80", "7000-7099"], "tap_loss": 10.0}),
        (["up", "--port", "80", "--port", "81", "--no-scramble"], {"port": ["80", "81"], "no_scramble": True}),
        (["exec", "a", "--", "ls", "-l"], {"node": "a", "detach": False, "command": ["ls", "-l"]}),
        (["exec", "a", "--detach", "--", "ls"], {"node": "a", "detach": True, "command": ["ls"]}),
        (["exec", "--detach", "a", "--", "ls"], {"node": "a", "detach": True, "command": ["ls"]}),
        (["exec", "client", "--", "x", "--", "-y", "--"], {"node": "client", "command": ["x", "--", "-y", "--"]}),
        (["exec", "a", "--", "--detach", "--help"], {"detach": False, "command": ["--detach", "--help"]}),
        (["serve", "--", "nginx", "-g", "daemon off;"], {"command": ["nginx", "-g", "daemon off;"]}),
        (["crash", "primary"], {"node": "primary"}),
        (["restore", "b"], {"node": "b"}),
        (["cut", "a"], {"node": "a", "only": None, "direction": None}),
        (["cut", "b", "--only", "sync", "--direction", "in"], {"node": "b", "only": "sync", "direction": "in"}),
        (["cut", "b", "--only", "witness"], {"node": "b", "only": "witness"}),
        (["up", "--no-fence", "--witness"], {"no_fence": True, "witness": True}),
        (["heal", "a"], {"node": "a"}),
        (["status", "--json"], {"json": True}),
        (["down"], {"name": "nfqf"}),
    ],
)
def test_accepted(words: list[str], expected: dict[str, Any]) -> None:
    found = vars(parse(*words))
    assert {key: found[key] for key in expected} == expected
    assert callable(found["run"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["up", "--tap", "mirror"],
        ["up", "--loss", "much"],
        ["up", "extra"],
        ["exec", "a"],
        ["exec", "a", "--"],
        ["exec", "a", "ls"],
        ["exec", "--", "ls"],
        ["serve"],
        ["serve", "ls"],
        ["crash"],
        ["cut", "a", "--only", "tap"],
        ["cut", "a", "--direction", "up"],
    ],
)
def test_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["up"], ["exec"], ["serve"], ["crash"], ["restore"], ["cut"], ["heal"], ["status"], ["down"]]
)
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words, "--help")
    assert ended.value.code == 0
    assert "usage: nfq-failover lab" in capsys.readouterr().out
