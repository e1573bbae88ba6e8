"""The lab's programs as commands of `nfq-failover`."""

from __future__ import annotations

from typing import Any

from nfq_failover.lab import bench, campaign, demo


def add_parsers(subparsers: Any) -> None:
    """Adds `demo`, `campaign` and `bench`. None of them loads matplotlib before it draws."""
    for program in (demo, campaign, bench):
        program.add_parser(subparsers)
