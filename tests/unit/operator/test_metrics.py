"""The status as Prometheus text, read back by Prometheus's own library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nfq_failover.cli import main
from nfq_failover.operator import metrics
from nfq_failover.operator.metrics import PREFIX, render, without_daemon
from tests.support.sample_status import sample_status

NOW = 1_700_000_000.0
CONCERN = {"code": "rules-lost", "weight": "unprotected", "what": "no rules", "cure": "", "host": "", "for_s": 1.0}
TOOK = {"epoch": 3, "connections": 12, "reset": 1, "phases": [["checking", 150.0], ["heard", 1010.5]], "ago_s": 60.0}


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples, by name and labels; each at most once, with a help text and a type."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter")
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(status: dict[str, Any], name: str, **labels: str) -> float:
    return read(render(metrics.metrics(status, NOW)))[PREFIX + name, tuple(sorted(labels.items()))]


def test_a_status_is_some_thirty_series_that_prometheus_can_read() -> None:
    text = render(metrics.metrics(sample_status(takeover=TOOK, concerns=[CONCERN]), NOW))
    read(text)
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert 30 <= len(names) <= 50
    assert len(set(names)) == len(names)
    assert all(name.startswith(PREFIX) for name in names)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE))
    assert all(name.endswith("_total") is (kind == "counter") for name, kind in kinds.items())


def test_what_is_said_is_what_the_status_says() -> None:
    status = sample_status()
    assert value(status, "up") == 1
    assert value(status, "protected") == 1
    assert value(status, "role", role="primary") == 1
    assert value(status, "role", role="backup") == 0
    assert value(status, "state", state="protected") == 1
    assert value(status, "connections", protected="true") == 1
    assert value(status, "connections", protected="false") == 0
    assert value(status, "lag_bytes") == 1000
    assert value(status, "events_total", event="ack-held") == 1
    assert value(status, "store_limit", store="connections") == 20_000
    assert value(status, "queue_dropped_total", queue="out") == 7
    assert value(status, "state_since_timestamp_seconds") == NOW


def test_what_is_wrong_is_counted_and_named() -> None:
    twice = [CONCERN, {**CONCERN, "host": "b"}, {**CONCERN, "host": "b", "what": "again"}]
    mishaps = [{"what": "reset", "reason": reason, "client": "", "count": 2, "ago_s": 1.0} for reason in "xy"]
    status = sample_status(state="unprotected", concerns=twice, mishaps=mishaps)
    assert value(status, "protected") == 0
    assert value(status, "concerns", weight="unprotected") == 3
    assert value(status, "concern", code="rules-lost", weight="unprotected", host="a") == 1
    assert value(status, "concern", code="rules-lost", weight="unprotected", host="b") == 1
    assert value(status, "mishaps", what="reset") == 4


def test_a_takeover_has_its_time_and_its_silence() -> None:
    status = sample_status(takeover=TOOK)
    assert value(status, "takeover_timestamp_seconds") == NOW - 60
    assert value(status, "takeover_connections") == 12
    assert value(status, "takeover_silence_seconds") == pytest.approx(1.0105)


def test_odd_text_is_escaped() -> None:
    status = sample_status(versions={"own": 'x"\\\n', "peer": ""})
    assert ("version", 'x"\\\n') in next(
        labels for (name, labels) in read(render(metrics.metrics(status, NOW))) if name == PREFIX + "info"
    )


def test_without_a_daemon_there_is_one_series_and_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    key.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        f'name = "a"\nservice = "10.77.0.100"\nports = [80]\ninterface = "lo"\nlisten = "127.0.0.1"\n'
        f'key_file = "{key}"\nstate_dir = "{tmp_path}/state"\n[[peer]]\nname = "b"\naddress = "127.0.0.2"\n'
    )
    assert main(["metrics", "--config", str(config)]) == 1
    assert capsys.readouterr().out == render(without_daemon())
    file = tmp_path / "out.prom"
    assert main(["metrics", "--config", str(config), "--file", str(file)]) == 1
    assert file.read_text() == render(without_daemon())
    assert file.stat().st_mode & 0o777 == 0o644
    assert main(["metrics", "--config", str(config), "--file", "/no/such/place/x"]) == 2
    assert "/no/such/place/x" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
