"""The configuration: what settings there are (`schema`), and a file of them, checked (`load`, `parse`)."""

from __future__ import annotations

from nfq_failover.config.checks import advice, doubts
from nfq_failover.config.fence import FencePlan, WitnessPlan
from nfq_failover.config.model import Config, HealthConfig, Limits, Privileges
from nfq_failover.config.parse import load, parse, parse_text, read_key, read_text, state_dir
from nfq_failover.config.values import address_and_port

__all__ = [
    "Config",
    "FencePlan",
    "HealthConfig",
    "Limits",
    "Privileges",
    "WitnessPlan",
    "address_and_port",
    "advice",
    "doubts",
    "load",
    "parse",
    "parse_text",
    "read_key",
    "read_text",
    "state_dir",
]
