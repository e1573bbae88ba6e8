"""The lab's programs as commands of `nfq-failover`."""

from __future__ import annotations

from typing import Any

from nfq_failover.lab import bench, campaign, demo, faults_campaign


def add_parsers(subparsers: Any) -> None:
    """Adds `demo`, `campaign`, `faults` and `bench`. None of them loads matplotlib before it draws."""
    for program in (demo, campaign, faults_campaign, bench):
        program.add_parser(subparsers)
