"""The campaign of faults in real labs: it can be interrupted and goes on; a promise that is broken is seen."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfq_failover.lab.campaign.faults.plan import BY_NAME, CONDITIONS, Record, Task, plan
from nfq_failover.lab.campaign.faults.run import FaultRunner, campaign, runner
from nfq_failover.lab.campaign.journal import Journal, Settings

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def settings(tmp_path: Path) -> Settings:
    # A slow heartbeat, so that a starved processor is not taken for a dead host.
    return Settings(f"f{secrets.token_hex(3)}", tmp_path, heartbeat_ms=200, rate="100mbit", stall_timeout_s=15.0)


def task(number: int, fault: str, mix: str) -> Task:
    return Task(number, 1, BY_NAME[fault], CONDITIONS[0], mix, 0.3)


def namespaces(name: str) -> list[Path]:
    return list(Path("/run/netns").glob(f"{name}-*"))


def test_a_takeover_that_does_not_come_is_an_anomaly_with_all_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfq_failover.lab.campaign.faults.run._TAKEOVER_DEADLINE_S", 1.0)
    monkeypatch.setattr(FaultRunner, "_fault", lambda *_: time.time())  # the fault that nobody notices
    chosen = settings(tmp_path)
    with runner(chosen, lambda _: None) as one:
        record = one.run(task(7, "power", "echo"))
    assert any("did not take over" in text for text in record.violations)
    assert any("heard in turn: a instead of ab" in text for text in record.violations)
    place = tmp_path / "anomalies" / "1-7-power"
    kept = {path.name for path in place.iterdir()}
    assert {"client.pcap", "client.pcap.status.json", "daemon-a.log", "daemon-b.log", "lab.json", "record.json"} <= kept
    assert json.loads((place / "record.json").read_text())["lab_seed"] == record.lab_seed != 0


def test_an_interrupted_campaign_leaves_a_report_and_no_lab_and_does_nothing_twice(tmp_path: Path) -> None:
    name = f"f{secrets.token_hex(3)}"
    argv = [sys.executable, "-m", "nfq_failover", "faults", "--name", name, "--output", str(tmp_path)]
    argv += ["--heartbeat-ms", "200", "--fault", "kill", "--fault", "cut"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("[") and " 2/" in line:
                    break
            time.sleep(0.5)  # in the midst of the third run, wherever that is
            os.kill(process.pid, signal.SIGINT)
            rest = process.stdout.read()
        finally:
            process.kill()
    assert process.returncode == 130, rest
    assert "Interrupted; the lab is down" in rest
    assert "Faults on real kernels" in (tmp_path / "report.md").read_text()
    assert not namespaces(name)
    records = Journal(tmp_path / "faults.jsonl", Record).read()
    assert [(record.violations, record.crashed) for record in records.values()] == [([], "a"), ([], "b")]
    said: list[str] = []
    assert campaign(plan(1000, 1, ["kill", "cut"])[:2], settings(tmp_path), said.append).go_on() == records
    assert said == ["2 of 2 runs are done already; 0 to go"]
