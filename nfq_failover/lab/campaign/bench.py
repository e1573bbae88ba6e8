"""What protection costs: the same workloads on a plain and on a protected lab, turn by turn in one run.

    nfq-failover bench --quick

Both labs are up all the time and are measured alternately, so that what the machine does besides falls on both alike.
The labs don't scramble: that stage exists in the lab only, and would be measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nfq_failover.errors import CommandError
from nfq_failover.lab.campaign.section import write_section
from nfq_failover.lab.driver import LabDriver
from nfq_failover.lab.interrupt import EXIT_CODE, Interrupted, interruptible
from nfq_failover.lab.netns import LabError
from nfq_failover.lab.state import Options

PLAIN: Final = "plain"
PROTECTED: Final = "protected"
PORT: Final = "7000"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a workload's report gives, and what is demanded of it.

    `read` takes it out of a report. `compare` makes one number of (plain, protected); `target` bounds that number, from
    below if `at_least`, else from above.
    """

    name: str
    unit: str
    workload: tuple[str, ...]
    read: Callable[[dict[str, Any]], float]
    compare: Callable[[float, float], float]
    compare_unit: str
    target: float
    at_least: bool

    def meets(self, value: float) -> bool:
        """Whether a comparison is within the target."""
        return value >= self.target if self.at_least else value <= self.target


def _ratio(plain: float, protected: float) -> float:
    return protected / plain


def _difference(plain: float, protected: float) -> float:
    return protected - plain


def _throughput(report: dict[str, Any]) -> float:
    return float(report["mbit_per_s"])


def _median_us(report: dict[str, Any]) -> float:
    return float(report["latency_ms"]["p50"]) * 1000


def metrics(seconds: float) -> list[Metric]:
    """What is measured; each measurement takes about `seconds`."""
    bulk = ("--size", "25M", "--seconds", str(seconds), "--no-digest")
    echo = ("--rate", "1000", "--seconds", str(seconds), "--no-digest")
    return [
        Metric("download", "Mbit/s", ("bulk", *bulk), _throughput, _ratio, "of plain", 0.80, True),
        Metric("upload", "Mbit/s", ("upload", *bulk), _throughput, _ratio, "of plain", 0.80, True),
        Metric("echo 150 B, median", "us", ("echo", *echo), _median_us, _difference, "us more", 250.0, False),
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric over all rounds. `spread` is the least and the greatest comparison of a single round."""

    metric: Metric
    plain: tuple[float, ...]
    protected: tuple[float, ...]

    @property
    def value(self) -> float:
        """The comparison of the medians."""
        return self.metric.compare(statistics.median(self.plain), statistics.median(self.protected))

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest comparison of one round."""
        each = [self.metric.compare(*pair) for pair in zip(self.plain, self.protected, strict=True)]
        return min(each), max(each)

    @property
    def met(self) -> bool:
        """Whether the comparison of the medians is within the target."""
        return self.metric.meets(self.value)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "name": self.metric.name,
            "unit": self.metric.unit,
            "plain": list(self.plain),
            "protected": list(self.protected),
            "plain_median": statistics.median(self.plain),
            "protected_median": statistics.median(self.protected),
            "comparison": self.value,
            "comparison_unit": self.metric.compare_unit,
            "comparison_spread": list(self.spread),
            "target": self.metric.target,
            "met": self.met,
        }


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    lines = [
        "| median (min-max) | plain | protected | protected against plain (rounds' spread) | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in comparisons:
        low, high = row.spread
        digits = 2 if row.metric.at_least else 0
        sign = ">=" if row.metric.at_least else "<="
        lines.append(
            f"| {row.metric.name} | {_range(row.plain, row.metric.unit)} | {_range(row.protected, row.metric.unit)} "
            f"| {row.value:.{digits}f} {row.metric.compare_unit} ({low:.{digits}f} to {high:.{digits}f}) "
            f"| {sign} {row.metric.target:.{digits}f} | {'yes' if row.met else 'NO'} |"
        )
    return "\n".join(lines)


def _range(values: Sequence[float], unit: str) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f}) {unit}"


def order(round_number: int) -> tuple[str, str]:
    """Who is measured first changes from round to round."""
    return (PLAIN, PROTECTED) if round_number % 2 == 0 else (PROTECTED, PLAIN)


def run_bench(rate: str, rounds: int, seconds: float, tap: str, say: Callable[[str], None]) -> list[Comparison]:
    """Measure `rounds` rounds after one that warms up and does not count. Raises LabError if a workload goes wrong."""
    wanted = metrics(seconds)
    values: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        labs = {}
        for kind, name in ((PLAIN, "nfqfbench0"), (PROTECTED, "nfqfbench1")):
            say(f"starting the {kind} lab")
            driver = LabDriver(name)
            driver.clear()  # what a benchmark left behind that was killed
            labs[kind] = stack.enter_context(driver)
            driver.up(Options(tap=tap, rate=rate, scramble=False, plain=kind == PLAIN))
            driver.serve_workloads(PORT)
        for round_number in range(-1, rounds):
            for metric in wanted:
                for kind in order(round_number):
                    value = metric.read(_measure(labs[kind], metric))
                    say(f"round {round_number + 1} of {rounds}: {metric.name}, {kind}: {value:.0f} {metric.unit}")
                    if round_number >= 0:
                        values.setdefault((metric.name, kind), []).append(value)
    return [
        Comparison(metric, tuple(values[metric.name, PLAIN]), tuple(values[metric.name, PROTECTED]))
        for metric in wanted
    ]


def _measure(driver: LabDriver, metric: Metric) -> dict[str, Any]:
    with driver.start_workload([*metric.workload, "--port", PORT]) as workload:
        report = workload.result()
    if not report["ok"]:
        raise LabError(f"{metric.name} on {driver.name} went wrong, so its speed means nothing: {report['error']}")
    return report


def to_json(comparisons: Sequence[Comparison], arguments: argparse.Namespace) -> dict[str, Any]:
    """The results with what is needed to judge them."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rate": arguments.rate,
        "tap": arguments.tap,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "comparisons": [row.to_json() for row in comparisons],
    }


def section(comparisons: Sequence[Comparison], values: dict[str, Any]) -> str:
    """The table with its heading and conditions, as Markdown."""
    return (
        "## What protection costs\n\n"
        f"From `nfq-failover bench`: {values['rounds']} rounds, plain and protected lab measured in turn in each, "
        f"{values['rate']}, {values['tap']} tap, {values['seconds']:g} s per measurement; the comparison is of the "
        f"medians, in brackets the least and the greatest of one round.\n\n{table(comparisons)}\n\n"
        f"{values['time']}, kernel {values['kernel']}, {values['cpus']} CPUs."
    )


def add_parser(subparsers: Any) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser("bench", help="compare plain and protected throughput and latency in the lab")
    parser.add_argument("--quick", action="store_true", help="5 rounds of 1.5 s each (default 15 rounds of 4 s)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="per measurement")
    parser.add_argument("--rate", default="1gbit", help="of the client's link, in tc's syntax")
    parser.add_argument("--tap", choices=("clone", "multicast"), default="clone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument("--docs", type=Path, help="also write the table into its section of this Markdown file")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; exit code: 0; 1 with --check if a target is missed, or if a workload went wrong; 2 misuse."""
    arguments.rounds = arguments.rounds or (5 if arguments.quick else 15)
    arguments.seconds = arguments.seconds or (1.5 if arguments.quick else 4.0)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with interruptible():
            comparisons = run_bench(arguments.rate, arguments.rounds, arguments.seconds, arguments.tap, say)
    except (CommandError, LabError) as error:
        say(str(error))
        return 2 if isinstance(error, CommandError) else 1
    except Interrupted:
        say("Interrupted; the labs are down.")
        return EXIT_CODE
    values = to_json(comparisons, arguments)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(values, indent=2) + "\n")
    if arguments.docs:
        write_section(arguments.docs, "bench", section(comparisons, values))
    print(json.dumps(values) if arguments.json else table(comparisons))
    return 1 if arguments.check and not all(row.met for row in comparisons) else 0
