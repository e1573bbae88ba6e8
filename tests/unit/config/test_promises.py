"""What the pages reckon from defaults is what the schema's defaults give."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import configured

PAIR = (Path(__file__).parents[3] / "docs" / "design" / "pair.md").read_text()


def tolerated(**chosen: int) -> str:
    """By how many percent two clocks may differ in rate, by the formula that the page has."""
    settings = configured.settings(has_fence=True, **chosen)
    half = settings.detection_ms / 2
    return f"{100 * half / (settings.release_after_ms - half):.2g}"


def test_how_long_a_fence_and_a_loop_may_take() -> None:
    text, settings = " ".join(PAIR.split()), configured.settings()
    said = re.search(r"`fence_deadline_ms` is (\d+) s.*`loop_stall_ms` is ([\d.]+) s.*noticed after ([\d.]+) s", text)
    assert said is not None
    deadline_s, stall_s, noticed_s = map(float, said.groups())
    assert (deadline_s * 1000, stall_s * 1000) == (settings.fence_deadline_ms, settings.loop_stall_ms)
    assert noticed_s * 1000 == settings.loop_stall_ms + settings.detection_ms


def test_how_far_two_clocks_may_differ() -> None:
    text = " ".join(PAIR.split())
    assert "`(detection / 2) / (release_after - detection / 2)`" in text
    default = re.search(
        r"([\d.]+) % with the defaults \(a heartbeat every (\d+) ms, a loop that may stand still for ([\d.]+) s, "
        r"a fence deadline of (\d+) s\), and ([\d.]+) % with a fence deadline of (\d+) s",
        text,
    )
    assert default is not None
    promised, heartbeat_ms, stall_s, deadline_s, slower, slow_s = default.groups()
    settings = configured.settings()
    assert int(heartbeat_ms) == settings.heartbeat_interval_ms
    assert float(stall_s) * 1000 == settings.loop_stall_ms
    assert int(deadline_s) * 1000 == settings.fence_deadline_ms
    assert promised == tolerated()
    assert slower == tolerated(fence_deadline_ms=int(slow_s) * 1000)
