"""The alert rules and the dashboard that are handed out ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nfq_failover.operator.metrics import PREFIX, metrics
from tests.support.sample_status import sample_status
from tests.unit.operator.test_metrics import CONCERN, NOW, TOOK

FILES = Path(__file__).resolve().parents[3] / "docs" / "operate" / "monitoring"


def labels_by_metric() -> dict[str, set[str]]:
    found = metrics(sample_status(takeover=TOOK, concerns=[CONCERN]), NOW)
    return {PREFIX + each.name: {key for labels, _ in each.samples for key, _ in labels} for each in found}


def check(expression: str) -> None:
    known = labels_by_metric()
    asked = re.findall(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?", expression)
    assert asked, expression
    for name, inside in asked:
        assert name in known, f"{name} in {expression}"
        for label in re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", inside):
            assert label in known[name] | {"instance"}, f"{label} in {expression}"


def test_alert_rules_ask_for_metrics_that_there_are() -> None:
    text = (FILES / "alerts.yml").read_text()
    expressions = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(expressions) == text.count("- alert:") >= 8
    for expression in expressions:
        check(expression)
    assert text.count("action:") == len(expressions)


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board: dict[str, Any] = json.loads((FILES / "grafana.json").read_text())
    targets = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(targets) >= 12
    for expression in targets:
        check(expression)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
