"""The live view: what is drawn of a status, and what the keys do. A terminal: tests/netns/lab/test_screens.py."""

from __future__ import annotations

import curses
from typing import Any

import pytest

from nfq_failover.cli import main
from nfq_failover.operator.top import SORTS, Style, View, draw, press
from tests.support.sample_status import sample_status

CONCERN = {"code": "x", "weight": "degraded", "what": "the disk is slow", "cure": "mend it", "host": "b", "for_s": 1.0}


def row(port: int, protected: bool = True, **more: Any) -> dict[str, Any]:
    [like] = sample_status()["connections"]
    reason = "" if protected else "too old"
    return {**like, "client": f"10.0.0.1:{port}", "protected": protected, "reason": reason, **more}


def text(lines: list[tuple[Style, str]]) -> str:
    return "\n".join(line for _, line in lines)


def test_a_screen_has_who_serves_what_is_wrong_and_the_connections() -> None:
    took = {"epoch": 3, "connections": 12, "reset": 1, "phases": [["checking", 150.0]], "ago_s": 60.0}
    lines = draw(sample_status(concerns=[CONCERN], takeover=took, connections=[row(1), row(2, False)]), View(), 200, 24)
    assert len(lines) == 24
    shown = text(lines)
    for words in ("primary, protected", "peer b", "degraded: b: the disk is slow", "what to do: mend it", "too old"):
        assert words in shown
    assert "12 of 13 connections went on; checking after 150 ms" in shown
    assert "2 connections, 1 protected" in shown
    assert lines[-1][1].startswith("q quit")


@pytest.mark.parametrize("height", range(1, 12))
@pytest.mark.parametrize("width", [1, 10, 80])
def test_it_fits_into_any_terminal(width: int, height: int) -> None:
    status = sample_status(concerns=[CONCERN] * 20, connections=[row(port) for port in range(100)])
    for found in (status, "no daemon answers " * 20):
        lines = draw(found, View(first=50), width, height)
        assert len(lines) == height
        assert all(len(line) <= max(width, 40) and "\n" not in line for _, line in lines)


def test_rows_can_be_sorted_chosen_and_moved() -> None:
    rows = [row(port, protected=port % 10 != 3, lag_bytes=port) for port in range(100, 200)]
    status = sample_status(connections=rows)
    view = View()
    assert "10.0.0.1:103" in text(draw(status, view, 120, 12))
    view = press(view, ord("s"), 12)
    assert "10.0.0.1:199" in text(draw(status, view, 120, 12))
    view = press(press(view, ord("u"), 12), curses.KEY_DOWN, 12)
    shown = text(draw(status, view, 120, 12))
    assert "unprotected only" in shown and ":193" not in shown and ":183" in shown
    for _ in range(100):
        view = press(view, curses.KEY_NPAGE, 12)
    assert "10.0.0.1:103" in text(draw(status, view, 120, 12))
    assert press(view, curses.KEY_HOME, 12).first == 0
    assert press(press(View(), curses.KEY_UP, 12), ord("x"), 12) == View()
    for _ in range(len(SORTS)):
        view = press(view, ord("s"), 12)
    assert view.sort == 1


def test_without_a_daemon_the_reason_is_on_the_screen() -> None:
    assert draw("no daemon answers", View(), 80, 5)[1] == (Style.BAD, "no daemon answers")


def test_without_a_terminal_it_says_what_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top"]) == 2
    assert "status --json" in capsys.readouterr().err


def test_what_is_long_goes_on_in_the_next_line_and_columns_have_names() -> None:
    took = {"epoch": 3, "connections": 12, "reset": 1, "phases": [["checking", 150.0], ["heard", 200.0]], "ago_s": 60.0}
    concern = {**CONCERN, "what": "word " * 40 + "end", "cure": "do " * 40 + "it"}
    lines = draw(sample_status(concerns=[concern], takeover=took, connections=[row(1)]), View(), 80, 40)
    shown = " ".join(text(lines).split())
    assert "checking after 150 ms, heard after 200 ms" in shown
    assert "word end" in shown and "do it" in shown
    [columns] = [line for _, line in lines if line.startswith("client")]
    [last] = [line for _, line in lines if line.startswith("10.0.0.1:1 ")]
    for name, number in (("unconfirmed", "lag_bytes"), ("behind", "lag_out_bytes")):
        assert last[: columns.index(name) + len(name)].endswith(f" {row(1)[number]} B")
