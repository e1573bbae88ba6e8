"""The lab's programs as commands of `nfq-failover`."""

from __future__ import annotations

from typing import Any

from nfq_failover.lab.campaign import bench
from nfq_failover.lab.campaign.crashes import run as campaign
from nfq_failover.lab.campaign.faults import command as faults_campaign
from nfq_failover.lab.demo import command as demo


def add_parsers(subparsers: Any) -> None:
    """Adds `demo`, `campaign`, `faults` and `bench`. None of them loads matplotlib before it draws."""
    for program in (demo, campaign, faults_campaign, bench):
        program.add_parser(subparsers)
