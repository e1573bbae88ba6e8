"""The limits in docs/operate/limits.md are the code's own."""

from __future__ import annotations

import re
from pathlib import Path

from nfq_failover.config import _SETTINGS
from nfq_failover.constants import DEFAULT_QUEUE_BUFFER, DEFAULT_QUEUE_PACKETS, DEFAULT_SYNC_BUFFER
from nfq_failover.core import bounds
from nfq_failover.core.settings import Peer, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "operate" / "limits.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
KERNEL = {
    "queue_max_packets": DEFAULT_QUEUE_PACKETS,
    "queue_buffer_bytes": DEFAULT_QUEUE_BUFFER,
    "sync_buffer_bytes": DEFAULT_SYNC_BUFFER,
}
DEFAULTS = Settings("a", bytes(4), ((80, 80),), (Peer("b", "192.0.2.2"),), b"k" * 16)


def test_every_limit_is_on_the_page_with_its_default() -> None:
    rows = {name: int(default) for name, default, *_ in ROW.findall(PAGE)}
    assert rows == {**bounds.limits(DEFAULTS), **KERNEL}


def test_settings_and_counters_on_the_page_are_there() -> None:
    for name, _, setting, counter, answer in ROW.findall(PAGE):
        named = re.search(r"`(\w+)`", setting)
        assert named is None or named[1] in _SETTINGS
        if name not in KERNEL:
            assert counter.strip().strip("`") == bounds.COUNTERS.get(name, "none")
        assert answer.strip()
