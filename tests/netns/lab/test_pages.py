"""The pages that are followed word by word do what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.lab_world import fresh_name
from tests.support.pages import follow, machines

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OPERATE = Path(__file__).parents[3] / "docs" / "operate"
ADDRESSES = {"alpha": "192.0.2.11/24", "beta": "192.0.2.12/24", "gamma": "192.0.2.13/24"}
GROUPS: dict[str, Sequence[str]] = {"servers": ("alpha", "beta"), "all": tuple(ADDRESSES), "host": ("beta",)}


def test_ten_minutes_to_a_protected_service_and_what_comes_after(tmp_path: Path) -> None:
    with machines(fresh_name(), tmp_path, ADDRESSES) as made:
        done = follow(OPERATE / "ten-minutes.md", made, GROUPS)
        made["beta"].type("mkdir -p /var/lib/prometheus/node-exporter")  # node_exporter's
        later = [follow(OPERATE / f"{page}.md", made, GROUPS) for page in ("reload", "monitoring", "upgrade")]
        assert all(len(commands) >= 2 for commands in later)
    said = [text for _, command, text in done if command == "nfq-failover status"]
    assert len(said) == 2
    alpha, beta = said
    assert "protected" in alpha.splitlines()[0] and "192.0.2.13:" in alpha, alpha
    assert "last takeover" in beta and "1 of 1 connections went on" in beta, beta
    assert [text for _, command, text in done if command.endswith("echo the same")] == ["the same\n"]
