"""The limits in docs/operate/limits.md are the code's own."""

from __future__ import annotations

import re
from pathlib import Path

from nfq_failover.config import schema
from nfq_failover.core import bounds
from tests.support import configured

PAGE = (Path(__file__).parents[2] / "docs" / "operate" / "limits.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
KERNEL = {name: schema.find(name).default for name in ("queue_max_packets", "queue_buffer_bytes", "sync_buffer_bytes")}


def test_every_limit_is_on_the_page_with_its_default() -> None:
    rows = {name: int(default) for name, default, *_ in ROW.findall(PAGE)}
    assert rows == {**bounds.limits(configured.settings()), **KERNEL}


def test_settings_and_counters_on_the_page_are_there() -> None:
    for name, _, setting, counter, answer in ROW.findall(PAGE):
        named = re.search(r"`(\w+)`", setting)
        assert named is None or named[1] in schema.names()
        if name not in KERNEL:
            assert counter.strip().strip("`") == bounds.COUNTERS.get(name, "none")
        assert answer.strip()
