"""The benchmark's arithmetic: medians, ratios, spread, targets; and the order of the measurements."""

from __future__ import annotations

import json

import pytest

from nfq_failover.lab.campaign.bench import PLAIN, PROTECTED, Comparison, Metric, metrics, order, section, table


def by_name(start: str) -> Metric:
    return next(metric for metric in metrics(1.5) if metric.name.startswith(start))


def test_the_targets_are_those_of_the_proof() -> None:
    assert [(m.name.split()[0], m.target, m.at_least) for m in metrics(1.5)] == [
        ("download", 0.80, True),
        ("upload", 0.80, True),
        ("echo", 250.0, False),
    ]
    echo = by_name("echo").workload
    assert echo[echo.index("--rate") + 1] == "1000"


def test_throughput_is_a_ratio_of_medians_with_the_rounds_spread() -> None:
    row = Comparison(by_name("download"), (900.0, 1000.0, 950.0), (810.0, 600.0, 855.0))
    assert row.value == pytest.approx(810 / 950)
    assert list(row.spread) == pytest.approx([0.6, 0.9])
    assert row.met
    assert not Comparison(by_name("upload"), (1000.0,), (799.0,)).met
    assert Comparison(by_name("upload"), (1000.0,), (800.0,)).met


def test_echo_is_a_difference() -> None:
    row = Comparison(by_name("echo"), (100.0, 120.0, 110.0), (300.0, 360.0, 500.0))
    assert row.value == pytest.approx(250)
    assert row.met
    assert list(row.spread) == pytest.approx([200, 390])
    assert not Comparison(by_name("echo"), (100.0,), (351.0,)).met


def test_the_numbers_come_from_the_workloads_report() -> None:
    report = {"mbit_per_s": 940.5, "latency_ms": {"p50": 0.321, "p99": 9.0}}
    assert by_name("download").read(report) == 940.5
    assert by_name("echo").read(report) == pytest.approx(321)


def test_the_table_and_the_json_say_the_same() -> None:
    rows = [
        Comparison(by_name("download"), (900.0, 1000.0), (700.0, 700.0)),
        Comparison(by_name("echo"), (100.0,), (200.0,)),
    ]
    text = table(rows)
    assert (
        "| download | 950 (900-1000) Mbit/s | 700 (700-700) Mbit/s | 0.74 of plain (0.70 to 0.78) | >= 0.80 | NO |"
        in text
    )
    assert "| 100 us more (100 to 100) | <= 250 | yes |" in text
    values = json.loads(json.dumps(rows[0].to_json()))
    assert (values["plain_median"], values["met"]) == (950, False)


def test_the_section_has_the_conditions() -> None:
    values = {"rounds": 5, "rate": "1gbit", "tap": "clone", "seconds": 1.5, "time": "T", "kernel": "K", "cpus": 2}
    text = section([Comparison(by_name("echo"), (100.0,), (200.0,))], values)
    for words in ("5 rounds", "1gbit", "1.5 s", "kernel K, 2 CPUs", "100 us more"):
        assert words in text


def test_who_is_first_changes() -> None:
    assert [order(number)[0] for number in range(4)] == [PLAIN, PROTECTED, PLAIN, PROTECTED]
    assert {frozenset(order(number)) for number in range(4)} == {frozenset((PLAIN, PROTECTED))}
