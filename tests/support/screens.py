"""Pictures of `top` and of the page through a crash, and a check that they show what they should: script/screens."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nfq_failover.lab.lab import Lab
from nfq_failover.lab.state import Options
from nfq_failover.lab.topology import namespace
from tests.netns.lab.test_screens import program, terminal
from tests.support.lab_world import SERVER, connect, eventually, lab

_URL = "http://127.0.0.1:9767/"
_CLIENTS = 5


def browser(pair: Lab, node: str, home: Path, url: str, *options: str) -> str:
    """Run a browser without a window on a host; what it prints."""
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}")
    waits = "--virtual-time-budget=4000"  # until the page has asked a few times
    argv = ["ip", "netns", "exec", namespace(pair.name, node), "chromium", *fixed, waits, *options, url]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout


def photograph(pair: Lab, node: str, home: Path, picture: Path, words: tuple[str, ...], height: int = 1240) -> None:
    """A picture of the page, so many pixels high; raises AssertionError if these words are not on it."""
    shown = browser(pair, node, home, _URL, "--dump-dom")
    for word in words:
        assert word in shown, f"'{word}' is not on the page of {node}"
    browser(pair, node, home, _URL, f"--window-size=1120,{height}", f"--screenshot={picture}")
    print(f"screens: {picture}")


def main(directory: Path) -> int:
    """Make the pictures in `directory`. Returns the exit code."""
    with tempfile.TemporaryDirectory() as disk, lab(Options(heartbeat_ms=100)) as pair:
        home = Path(disk) / "browser"
        pair.serve(SERVER)
        for node in ("a", "b"):
            pair.detach(node, program(pair, node, "web"))
        connections = [connect(pair) for _ in range(_CLIENTS)]
        inside = ["ip", "netns", "exec", namespace(pair.name, "b"), *program(pair, "b", "top", "--every", "0.3")]
        try:
            with terminal(Path(disk) / "tmux", inside) as screen:
                protected = f"{_CLIENTS} connections, {_CLIENTS} protected"
                assert screen.shows("backup, shadowing", protected), screen.text()
                photograph(pair, "a", home, directory / "page.png", ("protected", "shadows this host", "heartbeats"))
                pair.crash("a")
                assert screen.shows("primary, unprotected", "last takeover at"), screen.text()
                time.sleep(1.0)
                words = (
                    "heard by the clients",
                    "taken over",
                    "silent",
                    f"{_CLIENTS} of {_CLIENTS} connections went on",
                )
                photograph(pair, "b", home, directory / "page-takeover.png", words, 1700)
                page = Path(disk) / "top.html"
                page.write_text(_html(screen.text(colours=True)))
                browser(
                    *(pair, "b", home, page.as_uri()),
                    *("--window-size=1180,560", f"--screenshot={directory / 'top.png'}"),
                )
                print(f"screens: {directory / 'top.png'}")
                screen.press("q")
                assert eventually(lambda: screen.ended)
        finally:
            for connection in connections:
                connection.close()
    return 0


def _html(text: str) -> str:
    done = subprocess.run(["aha", "--black"], input=text, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
