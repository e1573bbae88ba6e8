"""The lab of virtual machines, without any: plans, the verdicts, the table, the kernels' numbers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from nfq_failover.lab.demo.download import Download
from nfq_failover.lab.machines import timeline
from nfq_failover.lab.machines.demo import draw, judge
from nfq_failover.lab.machines.machines import other
from nfq_failover.lab.machines.numbers import Difference, Opening, differences, parse
from nfq_failover.lab.machines.report import Run, report
from nfq_failover.lab.machines.trial import FAULTS, WORKLOADS, Options, plans
from nfq_failover.lab.measure.verdict import Measurement, longest_stall
from nfq_failover.lab.topology import multicast_hardware
from tests.unit.lab.demo.test_verdict import GOOD
from tests.unit.lab.measure.test_plots import stream

OPTIONS = Options(30, FAULTS, WORKLOADS, ("clone", "multicast"), 1_000_000, 20.0, 20.0, 1, Path("unused"))
RUN = Run(
    number=1,
    fault="off",
    workload="bulk",
    tap="clone",
    primary="primary",
    survivor="backup",
    backup_again="primary",
    ok=True,
    error=None,
    bytes=20_000_000,
    wrong_bytes=0,
    sha256="ab" * 32,
    silence_ms=3100.4,
    stall_ms=3050.0,
    problems=[],
    fenced=True,
    struck_at=1000.0,
    in_time=True,
    transfer_after_s=18.0,
    back_after_s=95.0,
    seq_difference=[-1234567],
    tsval_difference=[89],
)
FACTS = replace(
    GOOD,
    size=24_000_000,
    crashed_at_bytes=12_100_000,
    primary_before="primary",
    primary_after="backup",
    silence_ms=3000.0,
    detection_ms=1000,
    heartbeat_ms=200,
)
FENCE_DEADLINE_MS = 60_000


def test_every_fault_meets_every_transfer_under_every_tap() -> None:
    first = list(islice(plans(OPTIONS), 30))
    assert len({(plan.fault, plan.workload, plan.tap) for plan in first}) == 30
    assert Counter(plan.tap for plan in first[:15]) == {"clone": 15}
    assert {plan.fault for plan in first[:5]} == set(FAULTS)
    assert {plan.workload for plan in first[:5]} == set(WORKLOADS)


def test_the_seed_decides_the_moments() -> None:
    def moments(seed: int) -> list[float]:
        return [plan.wait_s for plan in islice(plans(replace(OPTIONS, seed=seed)), 8)]

    assert moments(1) == moments(1) != moments(2)


def test_power_offs_alone_can_be_asked_for() -> None:
    chosen = list(islice(plans(replace(OPTIONS, faults=("off",), taps=("clone",))), 6))
    assert {plan.fault for plan in chosen} == {"off"}
    assert {plan.workload for plan in chosen[:3]} == set(WORKLOADS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ok": False, "error": "stalled"}, "stalled"),
        ({"ok": False, "error": None}, "the transfer failed"),
        ({"wrong_bytes": 3}, "3 wrong bytes"),
        ({"bytes": 0}, "nothing was transferred"),
        ({"in_time": False}, "nothing was tested"),
        ({"problems": ["reset from the service: 1 times"]}, "reset from the service"),
        ({"survivor": "primary"}, "does not serve"),
        ({"survivor": None}, "nobody"),
        ({"fenced": False}, "was not turned off"),
        ({"backup_again": "backup"}, "not the backup"),
        ({"seq_difference": []}, "not known"),
        ({"seq_difference": [0]}, "nothing was translated"),
    ],
)
def test_each_thing_that_is_not_as_it_must_be_is_told(change: dict[str, Any], words: str) -> None:
    assert RUN.good
    bad = replace(RUN, **change)
    assert not bad.good
    assert words in bad.line()
    assert words in report([RUN, bad])
    assert "1 of 2 good" in report([RUN, bad])


def test_a_machine_that_reboots_in_order_is_not_fenced() -> None:
    assert replace(RUN, fault="reboot", fenced=False).good


def test_the_table_has_the_numbers() -> None:
    text = report([RUN, replace(RUN, number=2, silence_ms=5000.0, tsval_difference=[None])])
    assert "-1,234,567" in text
    assert "+89" in text
    assert "median 4050 ms, worst 5000 ms" in text
    assert "2 of 2 good, 2 power-offs" in text


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"crashed_at_bytes": None}, "half way"),
        ({"sha256_received": "cd" * 32}, "intact"),
        ({"curl_exit_code": 28}, "intact"),
        ({"connections": 2}, "one TCP connection"),
        ({"resets": 1}, "one TCP connection"),
        ({"unseen_acknowledged": 1}, "not sent"),
        ({"dropped_by_capture": 1}, "not sent"),
        ({"silence_ms": None}, "pause"),
        ({"silence_ms": 61_001.0}, "pause"),
        ({"primary_after": "primary"}, "other machine"),
        ({"primary_after": None}, "other machine"),
    ],
)
def test_each_claim_of_the_demonstration_can_fail(change: dict[str, Any], claim: str) -> None:
    assert all(check.ok for check in judge(FACTS, FENCE_DEADLINE_MS))
    failed = [check for check in judge(replace(FACTS, **change), FENCE_DEADLINE_MS) if not check.ok]
    assert len(failed) == 1
    assert claim in failed[0].claim


def test_the_demonstration_is_drawn(tmp_path: Path) -> None:
    packets = stream(pause=4.0)
    result = Measurement(packets=len(packets), stall=longest_stall(packets))
    done = Download(tmp_path / "data", 0, "", 100.12, 12_100_000, tmp_path / "client.pcap", packets, result)
    paths = draw(done, FACTS, tmp_path)
    assert [path.name for path in paths] == ["demo.png", "demo.svg"]
    text = paths[1].read_text()
    for words in ("primary is powered off", "backup goes on", "silence 4002 ms", "Detection"):
        assert words in text
    assert draw(replace(done, exit_code=28), FACTS, tmp_path) == []


def test_differences_are_signed_and_of_the_same_connection() -> None:
    client = {40000: Opening(5, 10), 40001: Opening(7, None), 40002: Opening(1, 1)}
    replica = {40000: Opening((1 << 32) - 5, 3), 40001: Opening(1 << 31, 9), 40003: Opening(1, 1)}
    assert differences(client, replica) == {
        40000: Difference(-10, -7),
        40001: Difference((1 << 31) - 7, None),
    }


def test_of_a_syn_ack_that_came_twice_the_first_counts() -> None:
    assert parse(["40000\t5\t10", "40000\t5\t11", "40001\t6\t"]) == {40000: Opening(5, 10), 40001: Opening(6, None)}


def test_names() -> None:
    assert (other("primary"), other("backup")) == ("backup", "primary")
    assert multicast_hardware("192.168.60.100") == "01:00:5e:28:3c:64"
    assert multicast_hardware("10.200.1.2") == "01:00:5e:48:01:02"


CHECKING = (
    "2026-11-21T13:05:46.000000Z [warning  ] state  after=checking before=shadowing epoch=1 reason='no heartbeat'"
)
LEAVES = "2026-11-21T13:10:00.000000Z [warning  ] state  after=storing before=shadowing reason='the primary leaves'"
LOG = """\
2026-11-21T12:14:24.464359Z [info     ] state     after=shadowing before=waiting reason='a, b'
Nov 21 12:59:46 backup nfq-failover[336]: 2026-11-21T12:59:46.566463Z [warning  ] state  after=fencing before=checking
Nov 21 12:59:53 backup nfq-failover[336]: 2026-11-21T12:59:53.684199Z [warning  ] state  after=storing before=fencing
Nov 21 12:59:54 backup nfq-failover[336]: 2026-11-21T12:59:54.000199Z [warning  ] takeover  connections=1 epoch=4
2026-11-21T13:00:01.206655Z [info     ] clients reach this host  announced=7 client_heard_after_ms=7386
-- Boot dd8f5236914a47c1b18852ff12cebc0c --
"""


def test_the_log_tells_where_the_silence_went() -> None:
    assert timeline.parse(LOG.splitlines()) == timeline.Timeline(7118, 316, 7386)


def test_the_last_takeover_of_a_log_counts_and_what_it_lacks_is_unknown() -> None:
    lines = [*LOG.splitlines(), CHECKING, *LOG.splitlines()[1:3]]
    assert timeline.parse(lines) == timeline.Timeline(7118, None, None)
    assert timeline.parse([*LOG.splitlines(), LEAVES]) == timeline.Timeline()
    assert timeline.parse(["nothing of the daemon's"]) == timeline.Timeline()
    in_the_journal = [re.sub(r"Z(?= \[)", "+0000 b nfq-failover[88]:", line) for line in LOG.splitlines()]
    assert timeline.parse(in_the_journal) == timeline.parse(LOG.splitlines())
